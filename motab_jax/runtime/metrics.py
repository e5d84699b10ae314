"""Logs as JSON lines, one object a step, and the trackers that draw curves of them.

The file is the record; TensorBoard, wandb and trackio get a copy. Each has an extra and is imported only when its
switch in the section `log` is on. Left out: what is measured.
"""

import json
import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from motab_jax.config import UserError
from motab_jax.runtime.distributed import is_main
from motab_jax.runtime.files import write_atomically
from motab_jax.runtime.storage import AnyPath, to_path

RUN_ID = "run_id"  # the file of the run folder that holds the run's id with wandb


class Tracker(NamedTuple):
    """A service that draws curves: `log(step, figures)` takes flat names and finite numbers; `close()` flushes."""

    log: Callable[[int, dict[str, float]], None]
    close: Callable[[], None]


class MetricsLog:
    """Appends `{"step": n, ...}` lines to `folder/filename`; only the main process writes. A context manager.

    Every line is flushed, so a killed run loses at most the line it was writing. NaN and infinities are written as
    null.

    Raises:
      UserError: the file can't be written.
    """

    def __init__(self, folder: str | Path, filename: str = "metrics.jsonl", trackers: Sequence[Tracker] = ()):
        self.path = Path(folder) / filename
        self._trackers = tuple(trackers)
        self._file = None
        if is_main():
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("a", encoding="utf-8")
            except OSError as error:
                raise UserError(f"{self.path}: cannot write the log: {error}") from None

    def append(self, step: int, record: Mapping[str, Any]) -> None:
        """Write one line.

        Args:
          step: of the run.
          record: by name, what JSON can hold and arrays; those of one element become numbers, others lists.
        """
        if self._file is None:
            return
        plain = {"step": int(step), **as_json(record)}
        self._file.write(json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        if self._trackers:
            figures = dict(_figures(plain))
            figures.pop("step")
            for tracker in self._trackers:
                tracker.log(int(step), figures)

    def truncate_after(self, step: int) -> None:
        """Drop the lines of later steps and a half-written last line, for a run that resumes at `step`.

        Raises:
          UserError: a line before the last is not a JSON object with a `step`; it names the line.
        """
        if self._file is None:
            return
        lines = self.path.read_bytes().splitlines()
        kept = []
        for number, line in enumerate(lines, start=1):
            line_step = _step_of(line)
            if line_step is None and number < len(lines):
                raise UserError(f"{self.path}, line {number}: not a JSON object with a step; mend or delete the line")
            if line_step is not None and line_step <= step:
                kept.append(line + b"\n")
        self._file.close()
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_bytes(b"".join(kept))
        os.replace(partial, self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Close the file and the trackers; a second call does nothing."""
        if self._file is not None and not self._file.closed:
            self._file.close()
            for tracker in self._trackers:
                tracker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_log(path: str | AnyPath) -> list[dict]:
    """The records of a log, in order; a half-written last line is left out."""
    lines = to_path(path).read_bytes().splitlines()
    return [json.loads(line) for line in lines if _step_of(line) is not None]


def _step_of(line: bytes) -> int | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record.get("step") if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def as_json(value: Any) -> Any:
    """A value as JSON can hold it: arrays as numbers or lists, NaN and infinities as None.

    >>> as_json({"loss": np.float32(0.5), "counts": np.array([1, 2]), "ratio": float("nan")})
    {'loss': 0.5, 'counts': [1, 2], 'ratio': None}
    """
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    array = np.asarray(value)
    return as_json(array.item() if array.size == 1 else array.tolist())


def _figures(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a record, nested names joined by a slash."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _figures(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield prefix + key, float(value)


def open_trackers(
    folder: str | Path,
    name: str,
    *,
    tensorboard: bool = False,
    wandb: bool = False,
    trackio: bool = False,
    step: int = 0,
) -> tuple[Tracker, ...]:
    """The trackers whose switch is on; none on processes other than the main one.

    Args:
      folder: of the run.
      name: of the run.
      tensorboard: the switch of TensorBoard.
      wandb: the switch of wandb.
      trackio: the switch of trackio.
      step: the step that the run resumes at; 0 for a new run.

    Raises:
      UserError: a tracker is not installed; it names the extra.
    """
    if not is_main():
        return ()
    switches = ((tensorboard, _tensorboard), (wandb, _wandb), (trackio, _trackio))
    return tuple(make(Path(folder), name, step) for on, make in switches if on)


def _tensorboard(folder: Path, name: str, step: int) -> Tracker:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise _missing("tensorboard") from None
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def log(at: int, figures: dict[str, float]) -> None:
        for key, value in figures.items():
            writer.add_scalar(key, value, at)

    return Tracker(log, writer.close)


def _wandb(folder: Path, name: str, step: int) -> Tracker:
    try:
        import wandb
    except ImportError:
        raise _missing("wandb") from None
    run = wandb.init(project="motab_jax", name=name, dir=str(folder), id=_run_id(folder), resume="allow")
    return Tracker(lambda at, figures: run.log(figures, step=at), run.finish)


def _run_id(folder: Path) -> str:
    """The run's own id, which it keeps when it resumes; two runs of one name have two."""
    path = folder / RUN_ID
    if not path.is_file():
        write_atomically(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8")


def _trackio(folder: Path, name: str, step: int) -> Tracker:
    try:
        import trackio
    except ImportError:
        raise _missing("trackio") from None
    run = trackio.init(project="motab_jax", name=name, resume="allow")
    return Tracker(lambda at, figures: run.log(figures, step=at), trackio.finish)


def _missing(name: str) -> UserError:
    return UserError(f"log.{name} is on but {name} is not installed; install the extra: pip install '.[{name}]'")
