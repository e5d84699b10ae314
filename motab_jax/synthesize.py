"""`python -m motab_jax.synthesize [CONFIG.yaml] output=FILE [key=value ...]`: rollouts only, one record a trajectory.

rollout.samples_per_prompt trajectories of each training prompt, by the configured student under the teacher's eye; with
method=seqkd by the teacher alone.
A trajectory depends on its prompt, its sample number and run.seed, not on the batch it ran in. FILE is JSON lines, or
Parquet where it ends in .parquet. The same command again goes on where it was stopped; a signal (SIGTERM, SIGINT)
leaves with status 75. Also: sft=FILE.jsonl (chats of prompt and target), preferences=FILE.jsonl (what was discarded
against the teacher's correction), only_correct=true (leave out what isn't known to be right).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from motab_jax import products
from motab_jax.cli import (
    STOPPED,
    Signals,
    check_writable,
    enable_compilation_cache,
    read_config,
    read_flag,
    run_verb,
    split_words,
)
from motab_jax.config import Config, UserError
from motab_jax.data.answers import grade
from motab_jax.data.records import Prompt
from motab_jax.data.tokenizer import decode, load_tokenizer
from motab_jax.record_log import RecordLog, look
from motab_jax.rollout import Prompts, Trajectory, rollout
from motab_jax.rollout.given import written_by_teacher
from motab_jax.rollout.groups import in_groups
from motab_jax.rollout.record import describe
from motab_jax.runtime.clocks import now
from motab_jax.runtime.distributed import initialize, is_main
from motab_jax.runtime.hosts import any_process, fetch, from_main
from motab_jax.runtime.mesh import check_batch
from motab_jax.runtime.metrics import as_json
from motab_jax.runtime.progress import Progress
from motab_jax.session import EncodedPrompts, Session, model_paths, open_session, read_prompts, training_prompts

FILES = ("output", "sft", "preferences")
OWN = (*FILES, "only_correct")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The files that the command names."""

    output: Path
    sft: Path | None
    preferences: Path | None
    only_correct: bool

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


def make_record(
    session: Session, prompt: Prompt, tokens: list[int], sample: int, trajectory, row: int
) -> dict[str, Any]:
    """One trajectory as a JSON-able record; `correct` is null where no answer is known."""
    objective = session.config.objective
    found = describe(trajectory, row, session.decode, target=objective.target, transition=objective.transition_text)
    correct = None if prompt.grader == "none" else grade(prompt, found["text"])
    return {
        "id": prompt.id,
        "sample": sample,
        "prompt": prompt.prompt,
        "prompt_tokens": list(tokens),
        **found,
        "correct": correct,
    }


def work(words: list[str]) -> int:
    """The verb: look at what is there, roll out what is missing, make the other files of it."""
    path, overrides, own = split_words(words, own=OWN)
    wanted = _wanted(own)
    config = read_config(path, overrides)
    _check_writer(config)
    prompts = read_prompts(config)
    if wanted.parquet:
        products.prompt_type(prompts)
    initialize()
    log = look(wanted.log, wanted.sidecar, config, prompts)
    log = dataclasses.replace(log, done=from_main(log.done))
    console = Console(quiet=not is_main())
    if log.done < log.total:
        if _roll_out(log, config, prompts):
            console.out("stopped by a signal; the same command goes on from there")
            return STOPPED
    else:
        console.out(f"{log.path} holds all {log.total} records already")
    if is_main():
        _write_products(wanted, log, prompts)
    return 0


def _check_writer(config: Config) -> None:
    """UserError for a recipe in which nobody writes."""
    if config.rollout.on_policy == 0 and config.rollout.off_policy == "data":
        raise UserError(
            "rollout.on_policy=0 with rollout.off_policy=data (as method: sft sets them) trains on the data's own "
            "completions: there is nothing to write; use rollout.off_policy=teacher (method: seqkd) or a method "
            "whose student writes"
        )


def _wanted(own: dict[str, str]) -> Wanted:
    """The verb's own words. UserError for one that is missing or can't be written, and where files would collide."""
    if "output" not in own:
        raise UserError("synthesize needs output=FILE.jsonl (or FILE.parquet), the file to write")
    paths = {word: Path(own[word]) for word in FILES if word in own}
    for word, path in paths.items():
        check_writable(word, path)
    wanted = Wanted(paths["output"], paths.get("sft"), paths.get("preferences"), read_flag(own, "only_correct"))
    written = [*paths.values(), wanted.sidecar, *([wanted.log] if wanted.log != wanted.output else [])]
    if len({path.resolve() for path in written}) < len(written):
        named = ", ".join(f"{word}={path}" for word, path in paths.items())
        raise UserError(f"{named}: these files would overwrite each other; name a different one for each")
    _check_kind(wanted)
    return wanted


def _check_kind(wanted: Wanted) -> None:
    """UserError where the output is the file of all records and should be made of one, or the other way round."""
    whole = dataclasses.replace(wanted, only_correct=True).log
    if wanted.log == wanted.output and whole.exists():
        raise UserError(f"{wanted.output} belongs to a run with only_correct=true ({whole.name}); name a new file")
    if wanted.log != wanted.output and not wanted.log.exists() and wanted.output.exists():
        raise UserError(
            f"{wanted.output} exists already, and {wanted.log.name}, the records it would be made of, does not; "
            "move it away or name a new file"
        )


def _roll_out(log: RecordLog, config: Config, prompts: list[Prompt]) -> bool:
    """Roll out what the log lacks, batch by batch; returns whether a signal stopped it."""
    enable_compilation_cache()
    session = open_session(config, teacher=True)
    check_batch(session.mesh, config.rollout.batch_size, "rollout.batch_size")
    encoded = training_prompts(session, prompts)
    with log.opened() as file, Signals() as signals, Progress(log.total, "synthesize", done=log.done) as progress:
        if log.done:
            progress.print(f"resuming at record {log.done + 1} of {log.total}")
        began = now()
        for jobs, host in _batches(session, encoded, log.done):
            records = _records(session, encoded, host, jobs)
            file.write(b"".join(products.to_line(record) for job, record in records if job >= log.done))
            file.flush()
            count, tokens, rewinds = len(jobs), host.length[: len(jobs)].sum(), host.num_rewinds[: len(jobs)].sum()
            speed = float(tokens) / (now() - began)
            progress.update(jobs.stop, {"tokens_per_second": speed, "rewinds": float(rewinds) / count})
            if any_process(signals.came) and jobs.stop < log.total:
                return True
            began = now()
    return False


def _batches(session: Session, encoded: EncodedPrompts, done: int) -> Iterator[tuple[range, Trajectory]]:
    """(trajectory numbers, trajectories on the host) of every batch from the one that holds number `done` on.

    Batches are cut the same way wherever the work begins: one that was written in part is rolled out again whole, as
    the last bits of its numbers may depend on who else is in it.
    """
    config = session.config
    samples, size = config.rollout.samples_per_prompt, config.rollout.batch_size
    total, key, write = len(encoded.prompts) * samples, jax.random.key(config.run.seed), _writer(session)
    for start in range(done // size * size, total, size):
        jobs = range(start, min(start + size, total))
        rows = [*jobs, *[jobs[-1]] * (size - len(jobs))]  # a last batch is filled up with its own last row
        batch = encoded.batch([job // samples for job in rows], rows, session.mesh)
        yield jobs, fetch(write(batch, key).slim(), session.mesh)


def _writer(session: Session) -> Callable[[Prompts, jax.Array], Trajectory]:
    """Who writes: the student under the teacher's eye, or the teacher alone where no step is on-policy (`seqkd`)."""
    # Records want the teacher's values and none of its distributions.
    numbers = dataclasses.replace(session.rollout, targets="sampled", read_after=False)
    if session.config.rollout.on_policy == 0:
        write = functools.partial(written_by_teacher, read=False)
        alone = jax.jit(in_groups(write, session.mesh, (False, True, False)))
        return lambda batch, key: alone(session.teacher, batch, key, numbers)
    program = jax.jit(in_groups(rollout, session.mesh, (False, False, True, False)))
    student = session.serve(session.student.params)
    return lambda batch, key: program(student, session.teacher, batch, key, numbers)


def _records(session: Session, encoded: EncodedPrompts, host: Trajectory, jobs: range) -> Iterator[tuple[int, Any]]:
    """(trajectory number, record) of a batch's rows."""
    for row, job in enumerate(jobs):
        index, sample = divmod(job, session.config.rollout.samples_per_prompt)
        prompt, tokens = encoded.prompts[index], encoded.tokens[index]
        yield job, as_json(make_record(session, prompt, tokens, sample, host, row))


def _write_products(wanted: Wanted, log: RecordLog, prompts: list[Prompt]) -> None:
    """Make, of the finished log, each file that is wanted besides it, and say what is where."""
    found = functools.partial(products.wanted_records, log.path, wanted.only_correct)
    counts = {wanted.output: log.total}
    if wanted.parquet:
        counts[wanted.output] = products.write_parquet(wanted.output, (record for _, record in found()), prompts)
    elif wanted.only_correct:
        counts[wanted.output] = products.write_lines(wanted.output, (line for line, _ in found()))
    if wanted.sft is not None:
        chats = (products.to_line(products.chat(record)) for _, record in found())
        counts[wanted.sft] = products.write_lines(wanted.sft, chats)
    if wanted.preferences is not None:
        text_of = functools.partial(decode, load_tokenizer(model_paths(log.config)[1]))
        pairs_of = functools.partial(products.preference_pairs, decode=text_of, templated=log.config.data.chat_template)
        pairs = (products.to_line(pair) for _, record in found() for pair in pairs_of(record))
        counts[wanted.preferences] = products.write_lines(wanted.preferences, pairs)
    for path, count in counts.items():
        print(f"{path}: {count} lines" if path != wanted.output else f"{path}: {count} of {log.total} records")


if __name__ == "__main__":
    run_verb(__doc__, work, own=OWN)
