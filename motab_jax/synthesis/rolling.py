"""`synthesize`: roll out the trajectories that a record log lacks, batch by batch, then write the derived files."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from rich.console import Console

from motab_jax.config import Config, UserError
from motab_jax.data.records import Prompt
from motab_jax.rollout import Prompts, Trajectory, rollout
from motab_jax.rollout.off_policy import generate_with_teacher
from motab_jax.rollout.row_groups import run_per_group
from motab_jax.rollout.sampling import Stream, stream_key
from motab_jax.runtime.cli import STOPPED, Signals
from motab_jax.runtime.clocks import now
from motab_jax.runtime.compilation import enable_compilation_cache, set_numerics
from motab_jax.runtime.distributed import initialize, is_main
from motab_jax.runtime.hosts import any_process, fetch, from_main
from motab_jax.runtime.metrics import as_json
from motab_jax.runtime.progress import Progress
from motab_jax.runtime.staging import shown
from motab_jax.session.prompts import EncodedPrompts, read_prompts, training_prompts
from motab_jax.session.session import Session, open_session
from motab_jax.synthesis import derived_files
from motab_jax.synthesis.output_files import OutputFiles, write_derived
from motab_jax.synthesis.record_log import RecordLog, check_tokens, open_existing
from motab_jax.synthesis.records import make_record


def synthesize(config: Config, files: OutputFiles) -> int:
    """Complete the record log and write the files derived from it.

    Args:
      config: the resolved configuration.
      files: where to write.

    Returns:
      The exit status: 0 where all is written, 75 where a signal stopped it between two batches.

    Raises:
      UserError: something is wrong with the configuration, the models, the prompts or the files.
    """
    _check_generator(config)
    prompts = read_prompts(config)
    if files.parquet:
        derived_files.prompt_type(prompts)
    set_numerics(config.run.matmul_precision, deterministic=config.run.deterministic)
    initialize(patience=config.run.start_seconds, heartbeat=config.run.heartbeat_seconds)
    with contextlib.ExitStack() as opened:
        for staged in files.staged:
            opened.enter_context(staged.pushing(config.run.upload_every))
        return _complete(config, files, prompts)


def _complete(config: Config, files: OutputFiles, prompts: list[Prompt]) -> int:
    """Complete the record log and write what is derived from it; the exit status."""
    log = open_existing(files.log, files.sidecar, config, prompts)
    log = dataclasses.replace(log, done=from_main(log.done))
    console = Console(quiet=not is_main())
    if log.done < log.total:
        if _roll_out(log, config, prompts):
            console.out("stopped by a signal; the same command goes on from there")
            return STOPPED
    else:
        console.out(f"{shown(str(log.path))} holds all {log.total} records already")
    if is_main():
        write_derived(files, log, prompts)
    return 0


def _check_generator(config: Config) -> None:
    """UserError for a configuration in which neither model generates."""
    if config.rollout.on_policy == 0 and config.rollout.off_policy == "data":
        raise UserError(
            "rollout.on_policy=0 with rollout.off_policy=data (as method: sft sets them) trains on the data's own "
            "completions: there is nothing to generate; use rollout.off_policy=teacher (method: seqkd) or a method "
            "whose student generates"
        )


def _roll_out(log: RecordLog, config: Config, prompts: list[Prompt]) -> bool:
    """Roll out the trajectories that the log lacks, batch by batch; returns whether a signal stopped it."""
    enable_compilation_cache()
    session = open_session(config, teacher=True)
    encoded = training_prompts(session, prompts)
    if log.done:
        check_tokens(log, encoded.tokens)
    with log.opened() as file, Signals() as signals, Progress(log.total, "synthesize", done=log.done) as progress:
        if log.done:
            progress.print(f"resuming at record {log.done + 1} of {log.total}")
        began = now()
        for jobs, host in _batches(session, encoded, log.done):
            records = _records(session, encoded, host, jobs)
            if is_main():  # decoding and grading are the writer's
                file.write(b"".join(derived_files.to_line(record) for job, record in records if job >= log.done))
            file.flush()
            count, tokens, rewinds = len(jobs), host.length[: len(jobs)].sum(), host.num_rewinds[: len(jobs)].sum()
            speed = float(tokens) / (now() - began)
            progress.update(jobs.stop, {"tokens_per_second": speed, "rewinds": float(rewinds) / count})
            if any_process(signals.received) and jobs.stop < log.total:
                return True
            began = now()
    return False


def _batches(session: Session, encoded: EncodedPrompts, done: int) -> Iterator[tuple[range, Trajectory]]:
    """(trajectory numbers, trajectories on the host) of each batch, from the one that holds number `done` on.

    Batches have the same rows wherever the work begins: one that was written in part is rolled out again as a whole,
    because the last bits of its numbers may depend on the other rows.
    """
    config = session.config
    samples, size = config.rollout.samples_per_prompt, config.rollout.batch_size
    total, key = len(encoded.prompts) * samples, stream_key(config.run.seed, Stream.SYNTHESIS)
    generate = _make_generator(session)
    for start in range(done // size * size, total, size):
        jobs = range(start, min(start + size, total))
        batch = encoded.batch([job // samples for job in jobs], jobs, session.mesh, rows=size)
        yield jobs, fetch(generate(batch, key).slim(), session.mesh)


def _make_generator(session: Session) -> Callable[[Prompts, jax.Array], Trajectory]:
    """The monitored student's rollout, or the teacher's alone where no step is on-policy (`seqkd`)."""
    # Records hold the teacher's step values and none of its distributions.
    rollout_config = session.rollout_config.replace(
        targets=dataclasses.replace(session.rollout_config.targets, kind="sampled"), score_after=False
    )
    if session.config.rollout.on_policy == 0:
        teacher_alone = functools.partial(generate_with_teacher, score=False)
        program = jax.jit(run_per_group(teacher_alone, session.mesh, (False, True, False)))
        return lambda batch, key: program(session.teacher, batch, key, rollout_config)
    program = jax.jit(run_per_group(rollout, session.mesh, (False, False, True, False)))
    student = session.serve(session.student.params)
    return lambda batch, key: program(student, session.teacher, batch, key, rollout_config)


def _records(session: Session, encoded: EncodedPrompts, host: Trajectory, jobs: range) -> Iterator[tuple[int, Any]]:
    """(trajectory number, record) of a batch's rows."""
    for row, job in enumerate(jobs):
        index, sample = divmod(job, session.config.rollout.samples_per_prompt)
        prompt, tokens = encoded.prompts[index], encoded.tokens[index]
        yield job, as_json(make_record(session, prompt, tokens, sample, host, row))
