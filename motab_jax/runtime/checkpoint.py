"""Checkpoints: a pytree of arrays and a JSON dictionary, kept by orbax, written while the run continues.

A step's folder gets its name only when it is complete, so a run killed in the middle of a save resumes from the step
before. Typed PRNG keys are stored as their data. Orbax has no checksum over array data (a flipped byte came back as
another number), so a digest of every leaf is stored with it. Left out: what the state is made of, and when to save.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp

from motab_jax.config import EnvironmentFailure, RunError, UserError
from motab_jax.runtime.digest import digests
from motab_jax.runtime.distributed import barrier, is_main
from motab_jax.runtime.failures import is_environment
from motab_jax.runtime.hosts import any_process
from motab_jax.runtime.storage import AnyPath, to_path

# What orbax and tensorstore raise on folders that are damaged or hold something else; lack of memory is not among them.
_DAMAGE = (ValueError, KeyError, TypeError, OSError, AttributeError, EOFError)


class Unreadable(RunError):
    """A checkpoint that can't be read: it is damaged, or of another configuration or version."""


class _Damage:
    """Turns the errors of a folder that can't be read into Unreadable, those of its storage into EnvironmentFailure.

    It is no `except` clause, because orbax raises a plain Exception for a shortened file, and a clause that names
    Exception catches every other error too.
    """

    def __init__(self, folder: Any):
        self.folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None:
            return
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if is_environment(error):
            raise EnvironmentFailure(f"{self.folder}: the checkpoint could not be read now ({reason})") from None
        if kind is Exception or isinstance(error, _DAMAGE):
            raise Unreadable(f"{self.folder}: this checkpoint can't be read ({reason})") from None


class Checkpointer:
    """Saves and restores (state, extra), in one subfolder a step. A context manager, which waits for the writes.

    Every process of a run makes one, over the same shared folder, and calls the same methods in the same order.

    Args:
      folder: made where it is missing.
      keep: the number of steps that are kept, the newest.

    Raises:
      UserError: the folder can't be made or written.
    """

    def __init__(self, folder: str | AnyPath, keep: int):
        path = to_path(folder)
        self.folder = path.absolute() if isinstance(path, Path) else path
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=("state", "extra"))
        except OSError as error:
            raise UserError(f"{self.folder}: cannot keep checkpoints here: {error}") from None

    def save(self, step: int, state: Any, extra: dict) -> None:
        """Start writing; returns when the arrays of `state` may be donated.

        Args:
          step: names the subfolder.
          state: a tree of arrays, typed PRNG keys and numbers.
          extra: what JSON can hold.
        """
        stored = jax.tree.map(_stored, state)
        record = {"extra": extra, "digests": digests(stored), "extra_digest": _text_digest(extra)}
        args = ocp.args.Composite(state=ocp.args.StandardSave(stored), extra=ocp.args.JsonSave(record))
        self._manager.save(step, args=args, force=True)

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict]:
        """Read what was saved at a step.

        Args:
          step: one that was saved.
          abstract_state: a tree like the saved one, of arrays or ShapeDtypeStructs with shardings.

        Returns:
          (state, extra). Each array has the shape, dtype and sharding of its leaf in `abstract_state`; numbers are
          NumPy arrays without dimensions.

        Raises:
          UserError: nothing was saved at this step.
          Unreadable: the folder is damaged, or was saved with another configuration; it names the folder.
          EnvironmentFailure: the storage failed; nothing is wrong with the folder.
        """
        steps = self._manager.all_steps()
        if step not in steps:
            there = ", ".join(map(str, sorted(steps))) or "none"
            raise UserError(f"{self.folder}: there is no checkpoint of step {step}; there are {there}")
        target = jax.tree.map(_abstract, abstract_state)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target), extra=ocp.args.JsonRestore())
        with _Damage(self.folder / str(step)):
            restored = self._manager.restore(step, args=args)
            if digests(restored["state"]) != restored["extra"]["digests"]:
                raise ValueError("the arrays are not those that were saved")
            record = restored["extra"]
            older = record.keys() == {"extra", "digests"}  # versions before the record had a digest
            if not older and record["extra_digest"] != _text_digest(record["extra"]):
                raise ValueError("the record beside the arrays is not the one that was saved")
            state = jax.tree.map(_with_key_type, abstract_state, restored["state"])
            return state, dict(restored["extra"]["extra"])

    def restore_newest(self, abstract_state: Any, say: Callable[[str], None]) -> tuple[int, Any, dict] | None:
        """Read the newest step that can be read. Later ones, which can't, are kept in the folder's `damaged`.

        Args:
          abstract_state: as for `restore`.
          say: called with a line for each step that is passed over.

        Returns:
          (step, state, extra); None where nothing was saved.

        Raises:
          Unreadable: no step can be read; nothing is moved then.
          EnvironmentFailure: the storage failed.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        problems: dict[int, str] = {}
        for step in steps:
            state, extra = None, {}
            try:
                state, extra = self.restore(step, abstract_state)
            except Unreadable as error:
                problems[step] = str(error)
            # What one process can't read, none of them uses.
            if any_process(step in problems):
                problems.setdefault(step, f"{self.folder / str(step)}: another process can't read it")
                continue
            for unreadable, problem in problems.items():
                kept = self._set_aside(unreadable)
                say(f"{problem}; going back to step {step}, the folder is kept as {kept}")
            return step, state, extra
        if not steps:
            return None
        first = problems[steps[0]]
        raise Unreadable(f"none of the checkpoints of the steps {', '.join(map(str, steps))} can be read: {first}")

    def _set_aside(self, step: int) -> Any:
        """Move a step's folder to `damaged`, beside the checkpoints."""
        source = self.folder / str(step)
        aside = self.folder.parent / "damaged"
        number = 0
        while (target := aside / (f"{step}.{number}" if number else str(step))).exists():
            number += 1
        barrier("a damaged checkpoint is found")
        if is_main():
            aside.mkdir(parents=True, exist_ok=True)
            source.rename(target)
        barrier("a damaged checkpoint is set aside")
        self._manager.reload()
        return target

    def wait(self) -> None:
        """Return when everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the writes, then end orbax's threads."""
        self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _text_digest(value: Any) -> str:
    """A digest of what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(getattr(leaf, "dtype", np.dtype(np.int32)), jax.dtypes.prng_key)


def _stored(leaf: Any) -> Any:
    """The leaf as orbax stores it, which takes neither typed keys nor NumPy scalars."""
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _abstract(leaf: Any) -> Any:
    """The shape, dtype and sharding that orbax restores a leaf with."""
    if not hasattr(leaf, "dtype") or isinstance(leaf, np.ndarray | np.generic):
        return np.empty_like(np.asarray(leaf))
    data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=_data_sharding(leaf))


def _data_sharding(leaf: Any) -> Any:
    """The sharding of a leaf, or of a key's data, whose extra dimension is replicated."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return sharding


def _with_key_type(leaf: Any, stored: Any) -> Any:
    """The stored array, as a typed key where `leaf` is one."""
    return jax.random.wrap_key_data(stored, impl=_key_impl(leaf)) if _is_key(leaf) else stored


def _key_impl(leaf: Any) -> Any:
    """The generator of a typed key or of its ShapeDtypeStruct, which `key_impl` itself does not take."""
    impls = []
    jax.eval_shape(lambda key: impls.append(jax.random.key_impl(key)), leaf)
    return impls[0]
