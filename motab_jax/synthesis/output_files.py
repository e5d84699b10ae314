"""The output files of `synthesize`: checked before any work, derived from the complete record log at the end."""

import dataclasses
import functools
from pathlib import Path

from motab_jax.config import UserError
from motab_jax.data.records import Prompt
from motab_jax.data.tokenizer import decode, load_tokenizer
from motab_jax.runtime.files import check_writable
from motab_jax.runtime.staging import Staged, shown
from motab_jax.runtime.storage import AnyPath, check_bucket
from motab_jax.session.session import model_paths
from motab_jax.synthesis import derived_files
from motab_jax.synthesis.record_log import RecordLog


@dataclasses.dataclass(frozen=True)
class OutputFiles:
    """The output files of one command; see `python -m motab_jax.synthesize --help`."""

    output: Path
    sft: Path | None = None
    preferences: Path | None = None
    only_correct: bool = False
    staged: tuple[Staged, ...] = ()  # the folders on buckets that some of the files are uploaded to

    @property
    def parquet(self) -> bool:
        """Whether the output is a Parquet file."""
        return self.output.suffix == ".parquet"

    @property
    def sidecar(self) -> Path:
        """The file that holds the configuration of the record log."""
        return self.output.with_name(self.output.name + ".config.yaml")

    @property
    def log(self) -> Path:
        """The record log: the output itself, or a file beside it that the output is derived from."""
        apart = self.parquet or self.only_correct
        return self.output.with_name(self.output.name + ".all.jsonl") if apart else self.output


def open_files(
    output: AnyPath, sft: AnyPath | None = None, preferences: AnyPath | None = None, only_correct: bool = False
) -> OutputFiles:
    """The output files as files of this machine; where one is on a bucket, with what the bucket holds of it.

    Raises:
      UserError, EnvironmentFailure: a bucket can't be written to.
    """
    folders: dict[AnyPath, Staged] = {}

    def local(path: AnyPath) -> Path:
        if isinstance(path, Path):
            return path
        if path.parent not in folders:
            check_bucket(path.parent)
            folders[path.parent] = Staged(path.parent, last=(path.name, path.name + ".all.jsonl"))
        return folders[path.parent].local / path.name

    paths = [None if path is None else local(path) for path in (output, sft, preferences)]
    files = OutputFiles(local(output), *paths[1:], only_correct=only_correct, staged=tuple(folders.values()))
    held = [files.output, files.sidecar, dataclasses.replace(files, only_correct=True).log]
    for staged in files.staged:
        staged.pull([path.name for path in held if path.parent == staged.local])
    return files


def check_files(files: OutputFiles) -> None:
    """Raise UserError where one of the files can't be written, and where two of them would be the same."""
    named = {"output": files.output, "sft": files.sft, "preferences": files.preferences}
    paths = {word: path for word, path in named.items() if path is not None}
    for word, path in paths.items():
        check_writable(word, path)
    written = [*paths.values(), files.sidecar, *([files.log] if files.log != files.output else [])]
    if len({path.resolve() for path in written}) < len(written):
        words = ", ".join(f"{word}={path}" for word, path in paths.items())
        raise UserError(f"{words}: these files would overwrite each other; name a different one for each")
    _check_kind(files)


def _check_kind(files: OutputFiles) -> None:
    """UserError where the output is the record log of an earlier run and should be derived from one, or vice versa."""
    filtered_log = dataclasses.replace(files, only_correct=True).log
    if files.log == files.output and filtered_log.exists():
        raise UserError(
            f"{files.output} belongs to a run with only_correct=true ({filtered_log.name}); name a new file"
        )
    if files.log != files.output and not files.log.exists() and files.output.exists():
        raise UserError(
            f"{files.output} exists already, and {files.log.name}, the records it would be made of, does not; "
            "move it away or name a new file"
        )


def write_derived(files: OutputFiles, log: RecordLog, prompts: list[Prompt]) -> None:
    """Write each requested file that is derived from the complete log; print each file's number of lines."""
    records = functools.partial(derived_files.wanted_records, log.path, files.only_correct)
    counts = {files.output: log.total}
    if files.parquet:
        counts[files.output] = derived_files.write_parquet(files.output, (record for _, record in records()), prompts)
    elif files.only_correct:
        counts[files.output] = derived_files.write_lines(files.output, (line for line, _ in records()))
    if files.sft is not None:
        chats = (derived_files.to_line(derived_files.chat(record)) for _, record in records())
        counts[files.sft] = derived_files.write_lines(files.sft, chats)
    if files.preferences is not None:
        student, teacher = model_paths(log.config)
        pairs_of = functools.partial(
            derived_files.preference_pairs,
            decode=functools.partial(decode, load_tokenizer(teacher or student)),
            templated=log.config.data.chat_template,
        )
        pairs = (derived_files.to_line(pair) for _, record in records() for pair in pairs_of(record))
        counts[files.preferences] = derived_files.write_lines(files.preferences, pairs)
    for path, count in counts.items():
        lines = f"{count} lines" if path != files.output else f"{count} of {log.total} records"
        print(f"{shown(str(path))}: {lines}")
