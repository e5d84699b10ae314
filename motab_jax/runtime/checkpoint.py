"""Checkpoints: a pytree of arrays and a JSON dictionary, kept by orbax, written while the run goes on.

A step's folder gets its name only when it is complete, so a run killed in the middle of a save goes back to the one
before. Typed PRNG keys are stored as their data. Orbax has no checksum over array data (a flipped byte came back as
another number), so a digest of every leaf is kept beside it. Left out: what the state is made of, and when to save.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp

from motab_jax.config import UserError
from motab_jax.runtime.digest import digests

# What orbax and tensorstore raise on damaged or alien folders; running out of memory is not among them.
_DAMAGE = (ValueError, KeyError, TypeError, OSError, AttributeError, EOFError)


class _Damage:
    """Turns the errors of a damaged folder into UserError, and lets all others through.

    Not an `except` clause, because orbax raises a plain Exception for a shortened file, which no clause can name
    without taking every other error too.
    """

    def __init__(self, explain: Callable[[BaseException], str]):
        self.explain = explain

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is not None and (kind is Exception or isinstance(error, _DAMAGE)):
            raise UserError(self.explain(error)) from None


class Checkpointer:
    """Saves and restores (state, extra) in `folder`, one subfolder a step; keeps the newest `keep`.

    Every process of a run makes one, over the same shared folder, and calls the same methods. A context manager:
    leaving it waits for the writes. Raises UserError if the folder cannot be made or written.
    """

    def __init__(self, folder: str | Path, keep: int):
        self.folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=("state", "extra"))
        except OSError as error:
            raise UserError(f"{self.folder}: cannot keep checkpoints here: {error}") from None

    def save(self, step: int, state: Any, extra: dict) -> None:
        """Start writing; returns when `state` may be donated. Leaves: arrays, typed keys, numbers."""
        stored = jax.tree.map(_stored, state)
        record = {"extra": extra, "digests": digests(stored)}
        args = ocp.args.Composite(state=ocp.args.StandardSave(stored), extra=ocp.args.JsonSave(record))
        self._manager.save(step, args=args, force=True)

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict]:
        """(state, extra) of a step, each array with the shape, dtype and sharding of its leaf in `abstract_state`.

        Leaves are arrays or ShapeDtypeStructs with a sharding; numbers come back as NumPy arrays of no dimension.
        Raises UserError naming the folder if it is missing, damaged, or made by another configuration.
        """
        target = jax.tree.map(_abstract, abstract_state)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target), extra=ocp.args.JsonRestore())
        with _Damage(lambda error: self._cannot_restore(step, error)):
            found = self._manager.restore(step, args=args)
            if digests(found["state"]) != found["extra"]["digests"]:
                raise ValueError("the arrays are not those that were saved")
            return jax.tree.map(_revived, abstract_state, found["state"]), dict(found["extra"]["extra"])

    def _cannot_restore(self, step: int, error: BaseException) -> str:
        earlier = [other for other in self._manager.all_steps() if other < step]
        then = f"go back to step {max(earlier)}" if earlier else "start the run anew"
        reason = " ".join(str(error).split())[:300]
        return (
            f"{self.folder / str(step)}: this checkpoint is damaged, or was made by another configuration; "
            f"delete the folder to {then} ({type(error).__name__}: {reason})"
        )

    def wait(self) -> None:
        """Return when everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the writes, then let go of the threads."""
        self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(getattr(leaf, "dtype", np.dtype(np.int32)), jax.dtypes.prng_key)


def _stored(leaf: Any) -> Any:
    """What orbax writes for a leaf: it knows neither typed keys nor NumPy scalars."""
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _abstract(leaf: Any) -> Any:
    """What orbax is told to read: shape, dtype and sharding."""
    if not hasattr(leaf, "dtype") or isinstance(leaf, np.ndarray | np.generic):
        return np.empty_like(np.asarray(leaf))
    data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=_data_sharding(leaf))


def _data_sharding(leaf: Any) -> Any:
    """A key's data has one dimension more, which no mesh axis cuts: the same partition serves."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return sharding


def _revived(leaf: Any, found: Any) -> Any:
    """`found` as the caller had it: a typed key where `leaf` is one."""
    return jax.random.wrap_key_data(found, impl=_key_impl(leaf)) if _is_key(leaf) else found


def _key_impl(leaf: Any) -> Any:
    """The generator of a typed key or of its ShapeDtypeStruct, which `key_impl` itself does not take."""
    impls = []
    jax.eval_shape(lambda key: impls.append(jax.random.key_impl(key)), leaf)
    return impls[0]
