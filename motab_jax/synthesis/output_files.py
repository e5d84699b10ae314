"""The files that `synthesize` is asked for, checked before any work and made of the finished record log."""

import dataclasses
import functools
from pathlib import Path

from motab_jax.config import UserError
from motab_jax.data.records import Prompt
from motab_jax.data.tokenizer import decode, load_tokenizer
from motab_jax.runtime.files import check_writable
from motab_jax.session.session import model_paths
from motab_jax.synthesis import derived_files
from motab_jax.synthesis.record_log import RecordLog


@dataclasses.dataclass(frozen=True)
class OutputFiles:
    """The files that the command names."""

    output: Path
    sft: Path | None = None
    preferences: Path | None = None
    only_correct: bool = False

    @property
    def parquet(self) -> bool:
        return self.output.suffix == ".parquet"

    @property
    def sidecar(self) -> Path:
        """Where the configuration of the records lies."""
        return self.output.with_name(self.output.name + ".config.yaml")

    @property
    def log(self) -> Path:
        """The file of all records: the output itself, unless that is made of it."""
        apart = self.parquet or self.only_correct
        return self.output.with_name(self.output.name + ".all.jsonl") if apart else self.output


def check_files(wanted: OutputFiles) -> None:
    """Raise UserError where one of the files can't be written, and where two of them would be the same."""
    named = {"output": wanted.output, "sft": wanted.sft, "preferences": wanted.preferences}
    paths = {word: path for word, path in named.items() if path is not None}
    for word, path in paths.items():
        check_writable(word, path)
    written = [*paths.values(), wanted.sidecar, *([wanted.log] if wanted.log != wanted.output else [])]
    if len({path.resolve() for path in written}) < len(written):
        words = ", ".join(f"{word}={path}" for word, path in paths.items())
        raise UserError(f"{words}: these files would overwrite each other; name a different one for each")
    _check_kind(wanted)


def _check_kind(wanted: OutputFiles) -> None:
    """UserError where the output is the file of all records and should be made of one, or the other way round."""
    whole = dataclasses.replace(wanted, only_correct=True).log
    if wanted.log == wanted.output and whole.exists():
        raise UserError(f"{wanted.output} belongs to a run with only_correct=true ({whole.name}); name a new file")
    if wanted.log != wanted.output and not wanted.log.exists() and wanted.output.exists():
        raise UserError(
            f"{wanted.output} exists already, and {wanted.log.name}, the records it would be made of, does not; "
            "move it away or name a new file"
        )


def write_derived(wanted: OutputFiles, log: RecordLog, prompts: list[Prompt]) -> None:
    """Make, of the finished log, each file that is wanted besides it, and say what is where."""
    found = functools.partial(derived_files.wanted_records, log.path, wanted.only_correct)
    counts = {wanted.output: log.total}
    if wanted.parquet:
        counts[wanted.output] = derived_files.write_parquet(wanted.output, (record for _, record in found()), prompts)
    elif wanted.only_correct:
        counts[wanted.output] = derived_files.write_lines(wanted.output, (line for line, _ in found()))
    if wanted.sft is not None:
        chats = (derived_files.to_line(derived_files.chat(record)) for _, record in found())
        counts[wanted.sft] = derived_files.write_lines(wanted.sft, chats)
    if wanted.preferences is not None:
        text_of = functools.partial(decode, load_tokenizer(model_paths(log.config)[1]))
        pairs_of = functools.partial(
            derived_files.preference_pairs, decode=text_of, templated=log.config.data.chat_template
        )
        pairs = (derived_files.to_line(pair) for _, record in found() for pair in pairs_of(record))
        counts[wanted.preferences] = derived_files.write_lines(wanted.preferences, pairs)
    for path, count in counts.items():
        print(f"{path}: {count} lines" if path != wanted.output else f"{path}: {count} of {log.total} records")
