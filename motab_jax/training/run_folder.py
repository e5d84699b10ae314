"""The run folder: its configuration, its logs, its summary, and whether a run may resume in it.

Left out: checkpoints (runtime/checkpoint.py) and the exported student (session/export.py).
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from motab_jax.config import Config, UserError, dump_config, load_config
from motab_jax.config.compare import differences
from motab_jax.config.locations import scheme_of
from motab_jax.runtime.distributed import barrier, is_main
from motab_jax.runtime.files import write_atomically
from motab_jax.runtime.folder_lock import FolderLock
from motab_jax.runtime.hosts import any_process, from_main
from motab_jax.runtime.metrics import RUN_ID, MetricsLog, open_trackers, read_log
from motab_jax.runtime.staging import Staged
from motab_jax.runtime.storage import AnyPath, check_bucket, to_path

# What a resumed run needs or replaces.
STAGED = ("config.yaml", "metrics.jsonl", "trajectories.jsonl", "summary.json", RUN_ID)


@contextlib.contextmanager
def open_run_folder(config: Config) -> Iterator[Staged]:
    """Make the folder run.dir/run.name, or open it again, and hold its lock.

    The configuration is not written yet (see `write_config`), so that a command that fails for a bad path leaves no run
    behind and may be corrected.

    Raises:
      UserError: the folder can't be written, holds a run of another configuration, or is not seen by all processes.
    """
    folder = to_path(config.run.dir) / config.run.name
    if isinstance(folder, Path):
        if is_main():
            _check_writable(folder)
        _check_shared(folder)
    else:
        _check_bucket(folder)
    with FolderLock(folder) if is_main() else contextlib.nullcontext():
        yield _open_staged(config, folder)


def _open_staged(config: Config, folder: AnyPath) -> Staged:
    """The folder on this machine; UserError where it holds a run of another configuration."""
    staged = Staged(folder, STAGED if is_main() else STAGED[:1])
    path = staged.local / "config.yaml"
    if path.is_file():
        changed = differences(load_config(path), config)
        if changed:
            raise UserError(
                f"{folder} holds a run of another configuration ({', '.join(changed)} differ); "
                "give this one its own run.name, or delete the folder"
            )
    return staged


def _check_bucket(folder: AnyPath) -> None:
    """UserError unless checkpoints can be kept on this bucket, and the main process can write there."""
    if scheme_of(str(folder)) != "gs":
        raise UserError(
            f"run.dir={folder.parent}: checkpoints can be kept on gs:// or on a path that all hosts share; other "
            "buckets hold models, data and outputs"
        )
    if is_main():
        check_bucket(folder)
    barrier("the run folder is made")


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"{folder}: the run folder can't be written ({error.strerror}); set run.dir") from None


def _check_shared(folder: Path) -> None:
    """UserError unless all processes see what the main process writes here: all of them write checkpoints."""
    probe = folder / f".seen-{from_main(int.from_bytes(os.urandom(3), 'big'))}"
    if is_main() and jax.process_count() > 1:
        probe.touch()
    barrier("the run folder is made")
    unseen = any_process(jax.process_count() > 1 and not probe.exists())
    if is_main():
        probe.unlink(missing_ok=True)
    if unseen:
        raise UserError(
            f"{folder}: not all processes of this run see the same folder; set run.dir to storage that all hosts share"
        )


def write_config(folder: Path, config: Config) -> None:
    """Write config.yaml, in the main process."""
    if is_main():
        write_atomically(folder / "config.yaml", dump_config(config))


@dataclasses.dataclass(frozen=True)
class Logs:
    """The two files that a run appends to."""

    metrics: MetricsLog  # metrics.jsonl, one line for each step
    trajectories: MetricsLog  # trajectories.jsonl, sample trajectories

    def last_step(self) -> int:
        """The step of the last line of metrics; 0 without one. The same in all processes."""
        steps = [line["step"] for line in read_log(self.metrics.path)] if is_main() else []
        return from_main(max(steps, default=0))


def open_logs(opened: contextlib.ExitStack, config: Config, folder: Path, step: int) -> Logs:
    """The run's logs, without the lines of steps that a resumed run will do again.

    Args:
      opened: closes the logs.
      config: the run's.
      folder: the run folder.
      step: the last step that is done.
    """
    trackers = open_trackers(folder, config.run.name, step=step, **config.log.model_dump())
    logs = Logs(
        opened.enter_context(MetricsLog(folder, trackers=trackers)),
        opened.enter_context(MetricsLog(folder, "trajectories.jsonl")),
    )
    for log in (logs.metrics, logs.trajectories):
        log.truncate_after(step)
    return logs


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write summary.json."""
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
