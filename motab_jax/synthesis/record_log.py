"""The record log: the file that `synthesize` appends to, and how a stopped run resumes with it.

One line for each trajectory, the samples of the first prompt first: line n is trajectory n, and the number of lines
says what is left to do. A file beside it holds the configuration. Left out: what a record is (rollout/record.py).
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
from motab_jax.runtime.hosts import from_main

FIELDS = (
    *("id", "sample", "prompt", "prompt_tokens", "text", "tokens", "sources", "target_text", "steps", "rewinds"),
    *("finish_reason", "correct"),
)

# Keys and sections that may differ when a file is resumed. A trajectory depends on its prompt, its sample number and
# run.seed, not on its batch or on what is derived from it. The prompts themselves are compared, and there may be more.
FREE = frozenset(
    {
        *("method", "optimizer", "mesh", "eval", "log", "data.count", "data.max_prompt_tokens"),
        "data.template_args",  # the token ids of the prompts are compared
        *("rollout.batch_size", "rollout.slots", "rollout.segment_tokens", "rollout.scan_layers"),
        *("rollout.targets", "rollout.targets_k", "rollout.targets_dtype"),
        *("backtrack.teacher_batch", "backtrack.teacher_rows"),
        *(f"run.{name}" for name in RunSection.model_fields if name != "seed"),
        *(f"objective.{name}" for name in ObjectiveSection.model_fields if name not in ("target", "transition_text")),
    }
)


@dataclasses.dataclass(frozen=True)
class RecordLog:
    """A file of records, complete or not, with the configuration that it belongs to."""

    path: Path
    sidecar: Path  # the file that holds the configuration
    config: Config
    total: int  # trajectories in all
    done: int  # trajectories that the file holds
    valid_bytes: int  # of those
    size: int  # bytes of the file; more than `valid_bytes` where the last line is incomplete

    @contextlib.contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The file, ready to be appended to: locked, its configuration written, an incomplete last line removed.

        Only the main process has the file; what the others write is discarded.
        """
        if not is_main():
            with open(os.devnull, "wb") as discarded:
                yield discarded
            return
        try:
            file = self.path.open("ab")
        except OSError as error:
            raise UserError(f"{self.path}: can't be written: {error.strerror}") from None
        with file:
            _lock(file, self)
            if self.size > self.valid_bytes:
                print(f"{self.path}: an incomplete last line is removed and computed again", file=sys.stderr)
                file.truncate(self.valid_bytes)
            write_atomically(self.sidecar, dump_config(self.config))
            yield file


def open_existing(path: Path, sidecar: Path, config: Config, prompts: Sequence[Prompt]) -> RecordLog:
    """The log as it is on disk, empty where there is no file.

    Args:
      path: of the log.
      sidecar: the file beside it that holds its configuration.
      config: the configuration of this command.
      prompts: the prompts of this command, in order.

    Raises:
      UserError: the file is damaged, or belongs to another configuration or to other prompts.
    """
    samples = config.rollout.samples_per_prompt
    total = len(prompts) * samples
    size = path.stat().st_size if path.exists() else 0
    if size:
        _check_configuration(path, sidecar, config)
    done = valid_bytes = 0
    for line, record in itertools.islice(read_records(path), total) if size else ():
        prompt = prompts[done // samples]
        if (record["id"], record["sample"], record["prompt"]) != (prompt.id, done % samples, prompt.prompt):
            raise UserError(
                f"{path}, line {done + 1}: this record is of prompt '{record['id']}', sample {record['sample']}, where "
                f"prompt '{prompt.id}', sample {done % samples} belongs: the prompts have changed; name a new file"
            )
        done, valid_bytes = done + 1, valid_bytes + len(line)
    if done == total and valid_bytes < size:
        raise UserError(f"{path} holds more than the {total} records asked for; raise data.count, or name a new file")
    return RecordLog(path, sidecar, config, total, done, valid_bytes, size)


def check_tokens(log: RecordLog, prompt_tokens: Sequence[Sequence[int]]) -> None:
    """UserError, in all processes, unless the log's records were made from the token ids that their prompts have now.

    Chat templates that print the date, and tokenizers that were replaced, give the same text other ids.

    Args:
      log: the log as `open_existing` found it.
      prompt_tokens: of all prompts.
    """
    samples, wrong = log.config.rollout.samples_per_prompt, 0
    for number, (_, record) in enumerate(itertools.islice(read_records(log.path), log.done) if is_main() else (), 1):
        if list(record["prompt_tokens"]) != list(prompt_tokens[(number - 1) // samples]):
            wrong = number
            break
    if wrong := from_main(wrong):
        raise UserError(
            f"{log.path}, line {wrong}: its prompt had other token ids when this record was made. Does the chat "
            "template print the date? Set data.template_args={strftime_now: YYYY-MM-DD} to that day; or name a new file"
        )


def read_records(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """(line, record) of all complete lines; a last line without a newline is left out.

    Raises:
      UserError: a line is not a record; the message has its number.
    """
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
    """Lock the file until it is closed. Another process may have opened it since it was read."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = os.fstat(file.fileno()).st_size == log.size
    except BlockingIOError:
        locked = False
    if not locked:
        raise UserError(f"{log.path}: another process is writing to it; wait for that one, or name a new file")
