"""The run folder: its configuration, its logs, its summary, and whether a run may go on in it."""

import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax

from motab_jax.config import Config, UserError, dump_config, load_config
from motab_jax.config.compare import differences
from motab_jax.runtime.distributed import barrier, is_main
from motab_jax.runtime.files import write_atomically
from motab_jax.runtime.hosts import any_process, from_main
from motab_jax.runtime.metrics import MetricsLog, open_trackers


def open_run_folder(config: Config) -> Path:
    """Make or re-enter dir/name; UserError if it can't be written, holds a run of another configuration, or is not the
    same folder for all processes.

    The configuration is not written yet (`write_config`): a command that fails for a bad path leaves no run behind, so
    that the mended one may use the folder.
    """
    folder = Path(config.run.dir) / config.run.name
    if is_main():
        _check_writable(folder)
    _check_shared(folder)
    path = folder / "config.yaml"
    if path.is_file():
        changed = differences(load_config(path), config)
        if changed:
            raise UserError(
                f"{folder} holds a run of another configuration ({', '.join(changed)} differ); "
                "give this one its own run.name, or delete the folder"
            )
    return folder


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"{folder}: the run folder can't be written ({error.strerror}); set run.dir") from None


def _check_shared(folder: Path) -> None:
    """UserError unless what the main process writes here is seen by all: checkpoints are written by all of them."""
    mark = folder / f".seen-{from_main(int.from_bytes(os.urandom(3), 'big'))}"
    if is_main() and jax.process_count() > 1:
        mark.touch()
    barrier("the run folder is made")
    blind = any_process(jax.process_count() > 1 and not mark.exists())
    if is_main():
        mark.unlink(missing_ok=True)
    if blind:
        raise UserError(
            f"{folder}: not all processes of this run see the same folder; set run.dir to storage that all hosts share"
        )


def write_config(folder: Path, config: Config) -> None:
    """config.yaml, whole; the main process writes it."""
    if is_main():
        write_atomically(folder / "config.yaml", dump_config(config))


@dataclasses.dataclass(frozen=True)
class Logs:
    """The two files that grow with the run."""

    metrics: MetricsLog
    trajectories: MetricsLog


def open_logs(opened: contextlib.ExitStack, config: Config, folder: Path, step: int) -> Logs:
    """The logs, cut back to `step`, where the run goes on."""
    trackers = open_trackers(folder, config.run.name, step=step, **config.log.model_dump())
    logs = Logs(
        opened.enter_context(MetricsLog(folder, trackers=trackers)),
        opened.enter_context(MetricsLog(folder, "trajectories.jsonl")),
    )
    for log in (logs.metrics, logs.trajectories):
        log.truncate_after(step)
    return logs


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """summary.json, whole."""
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
