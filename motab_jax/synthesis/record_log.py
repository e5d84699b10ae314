"""The file of records that `synthesize` fills as it goes: where it stands, whether it may go on, and going on with it.

One line a trajectory, the samples of the first prompt first, so line n is trajectory n and the number of lines says
what is left to do. Beside it lies the configuration that wrote it. Left out: what a record is (rollout/record.py).
"""

import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from motab_jax.config import Config, UserError, dump_config, load_config
from motab_jax.config.compare import differences
from motab_jax.config.sections import ObjectiveSection, RunSection
from motab_jax.data.records import Prompt
from motab_jax.runtime.distributed import is_main
from motab_jax.runtime.files import write_atomically

FIELDS = (
    *("id", "sample", "prompt", "prompt_tokens", "text", "tokens", "sources", "target_text", "steps", "rewinds"),
    *("finish_reason", "correct"),
)

# Keys and sections that may differ when a file is gone on with. A trajectory depends on its prompt, its sample number
# and run.seed, not on its batch or on what is made of it later. Prompts are compared themselves: more may be asked for.
FREE = frozenset(
    {
        *("method", "optimizer", "mesh", "eval", "log", "data.count", "data.max_prompt_tokens"),
        *("rollout.batch_size", "rollout.slots", "rollout.segment_tokens", "rollout.scan_layers"),
        *("rollout.targets", "rollout.targets_k", "rollout.targets_dtype"),
        *("backtrack.teacher_batch", "backtrack.teacher_rows"),
        *(f"run.{name}" for name in RunSection.model_fields if name != "seed"),
        *(f"objective.{name}" for name in ObjectiveSection.model_fields if name not in ("target", "transition_text")),
    }
)


@dataclasses.dataclass(frozen=True)
class RecordLog:
    """A file of records, whole or begun, that belongs to a configuration and its prompts."""

    path: Path
    sidecar: Path
    config: Config
    total: int  # trajectories, in all
    done: int  # of them the file holds
    kept: int  # bytes of those
    size: int  # bytes of the file; more than `kept` where a last line is half

    @contextlib.contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The file, ready to be appended to: locked, its configuration beside it, a half last line cut off.

        Of several processes the main one has it; what the others write goes nowhere.
        """
        if not is_main():
            with open(os.devnull, "wb") as nowhere:
                yield nowhere
            return
        try:
            file = self.path.open("ab")
        except OSError as error:
            raise UserError(f"{self.path}: can't be written: {error.strerror}") from None
        with file:
            _lock(file, self)
            if self.size > self.kept:
                print(f"{self.path}: a half-written last line is cut off and computed again", file=sys.stderr)
                file.truncate(self.kept)
            write_atomically(self.sidecar, dump_config(self.config))
            yield file


def look(path: Path, sidecar: Path, config: Config, prompts: Sequence[Prompt]) -> RecordLog:
    """What is in the file so far. UserError if it is damaged, of another configuration or of other prompts."""
    samples = config.rollout.samples_per_prompt
    total = len(prompts) * samples
    size = path.stat().st_size if path.exists() else 0
    if size:
        _check_configuration(path, sidecar, config)
    done = kept = 0
    for line, record in itertools.islice(read_records(path), total) if size else ():
        prompt = prompts[done // samples]
        if (record["id"], record["sample"], record["prompt"]) != (prompt.id, done % samples, prompt.prompt):
            raise UserError(
                f"{path}, line {done + 1}: this record is of prompt '{record['id']}', sample {record['sample']}, where "
                f"prompt '{prompt.id}', sample {done % samples} belongs: the prompts have changed; name a new file"
            )
        done, kept = done + 1, kept + len(line)
    if done == total and kept < size:
        raise UserError(f"{path} holds more than the {total} records asked for; raise data.count, or name a new file")
    return RecordLog(path, sidecar, config, total, done, kept, size)


def read_records(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """(line, record) of all whole lines; a last line without its end is left out. UserError names a broken line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _broken(path, number, f"not valid JSON ({error})") from None
            if not isinstance(record, dict) or not record.keys() >= set(FIELDS):
                raise _broken(path, number, "not a record")
            yield line, record


def _broken(path: Path, number: int, reason: str) -> UserError:
    return UserError(f"{path}, line {number}: {reason}; mend it, or delete it and all lines after it")


def _check_configuration(path: Path, sidecar: Path, config: Config) -> None:
    if not sidecar.is_file():
        raise UserError(
            f"{path} exists already, and {sidecar.name}, which would say what wrote it, does not; "
            "move it away or name a new file"
        )
    if changed := differences(load_config(sidecar), config, FREE):
        raise UserError(
            f"{path} was written by another configuration ({', '.join(changed)} differ); "
            f"name a new file, or delete this one and {sidecar.name}"
        )


def _lock(file: BinaryIO, log: RecordLog) -> None:
    """Keep the file to this process until it is closed; another one may have got hold of it since it was read."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = os.fstat(file.fileno()).st_size == log.size
    except BlockingIOError:
        mine = False
    if not mine:
        raise UserError(f"{log.path}: another process is writing to it; wait for that one, or name a new file")
