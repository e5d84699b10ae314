"""`python -m motab_jax.train [CONFIG.yaml] [key=value ...]`: distil the student, step by step.

Without a file it runs the quickstart recipe on the shipped pair. The run folder (run.dir/run.name) gets config.yaml,
metrics.jsonl, trajectories.jsonl, checkpoints/, export/ and summary.json. The same command again resumes. A signal
(SIGTERM, SIGINT) saves and leaves with status 75.
"""

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from motab_jax.cli import STOPPED, Signals, enable_compilation_cache, read_config, run_verb, split_words
from motab_jax.config import Config, UserError
from motab_jax.data.prompts import PromptStream
from motab_jax.distill import TrainState
from motab_jax.evaluate import Evaluator, make_evaluator
from motab_jax.export import export_student
from motab_jax.programs import Programs, make_programs
from motab_jax.report import choose, show
from motab_jax.rollout.record import statistics
from motab_jax.run_folder import open_run_folder, write_config, write_summary
from motab_jax.runtime.checkpoint import Checkpointer
from motab_jax.runtime.distributed import initialize, is_main
from motab_jax.runtime.mesh import check_batch
from motab_jax.runtime.metrics import MetricsLog, open_trackers, read_log
from motab_jax.runtime.progress import Progress
from motab_jax.session import (
    EncodedPrompts,
    Session,
    held_out_prompts,
    open_session,
    training_prompts,
)
from motab_jax.synthesize import make_record

SAMPLES = 3


@dataclasses.dataclass
class Progressed:
    """What a run carries from step to step besides the training state; saved as JSON with each checkpoint."""

    before: dict[str, Any] | None = None
    tokens: int = 0
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Logs:
    """The two files that grow with the run."""

    metrics: MetricsLog
    trajectories: MetricsLog


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run works with from its first step to its last."""

    session: Session
    prompts: EncodedPrompts
    stream: PromptStream
    evaluator: Evaluator | None
    programs: Programs
    console: Console


def train(config: Config) -> int:
    """The whole run; returns the exit status."""
    initialize()
    enable_compilation_cache()
    console = Console(quiet=not is_main())

    # The run folder, the models, the prompts: whatever is wrong with them is said now.
    folder = open_run_folder(config)
    session = open_session(config)
    check_batch(session.mesh, config.rollout.batch_size // config.optimizer.accumulate, "rollout.batch_size")
    prompts, held_out = training_prompts(session), held_out_prompts(session)
    fresh = config.rollout.batch_size // config.rollout.samples_per_prompt
    stream = PromptStream(len(prompts.prompts), fresh, config.data.shuffle_seed)
    evaluator = None if held_out is None else make_evaluator(session, held_out)
    programs, state = make_programs(session)
    run = Run(session, prompts, stream, evaluator, programs, console)

    with contextlib.ExitStack() as opened:
        signals = opened.enter_context(Signals())
        checkpoints = opened.enter_context(Checkpointer(folder / "checkpoints", config.run.keep))
        state, done = _resume(checkpoints, state, stream, console)
        logs = _open_logs(opened, config, folder, int(state.step))
        write_config(folder, config)
        if done.before is None:
            done.before = _evaluate(run, state, "before")
        state, stopped = _loop(run, state, done, checkpoints, logs, signals)
    if stopped:
        console.out(f"stopped by a signal at step {int(state.step)}, saved; the same command goes on from there")
        return STOPPED

    after = _evaluate(run, state, "after")
    export_student(session, state.params, folder / "export")
    _finish(run, folder, _summary(run, state, done, after))
    return 0


def _loop(run: Run, state: TrainState, done: Progressed, checkpoints: Checkpointer, logs: Logs, signals: Signals):
    """Steps until run.steps or a signal; returns (state, whether a signal stopped it)."""
    config, stopped = run.session.config, False
    with Progress(config.run.steps, "train", console=run.console) as progress:
        while (step := int(state.step) + 1) <= config.run.steps and not stopped:
            started = time.perf_counter()
            indices = next(run.stream)
            state, metrics, host = train_one(run, state, indices)
            if config.run.sample_every and (step % config.run.sample_every == 0 or step == 1):
                _write_samples(run, logs.trajectories, step, indices, host)
            if config.run.eval_every and step % config.run.eval_every == 0:
                metrics["eval"] = _evaluate(run, state, f"step {step}")
            elapsed = time.perf_counter() - started
            metrics["seconds"]["host"] = elapsed - sum(metrics["seconds"].values())
            done.tokens += metrics["tokens_student"] + metrics["tokens_teacher"]
            done.seconds += elapsed
            logs.metrics.append(step, {**metrics, "epoch": run.stream.epoch})
            progress.update(step, {k: metrics[k] for k in ("loss", "strayed", "length_mean", "tokens_per_second")})
            _check_finite(config, metrics, step)
            stopped = signals.came
            if step % config.run.save_every == 0 or step == config.run.steps or stopped:
                checkpoints.save(step, state, {"stream": run.stream.get_state(), **dataclasses.asdict(done)})
    return state, stopped


def train_one(run: Run, state: TrainState, indices: list[int]):
    """One step: rollout, then update. Returns (state, metrics, host trajectory)."""
    session, programs, step = run.session, run.programs, int(state.step)
    rows = [index for index in indices for _ in range(session.config.rollout.samples_per_prompt)]
    key = jax.random.fold_in(jax.random.key(session.config.run.seed), step)
    started = time.perf_counter()
    batch = run.prompts.batch(rows, range(len(rows)), session.mesh)
    trajectory = programs.rollout(session.serve(state.params), session.teacher, batch, key, session.rollout)
    jax.block_until_ready(trajectory.length)
    rolled = time.perf_counter()
    state, figures = programs.update(state, programs.teacher_head, trajectory)
    host, figures = jax.device_get((trajectory.replace(teacher_hidden=None), figures))
    updated = time.perf_counter()
    stats = statistics(host)
    written = stats["tokens_student"] + stats["tokens_teacher"]
    metrics = {
        **{name: value.item() for name, value in figures.items()},
        **stats,
        "learning_rate": float(programs.schedule(step)),
        "tokens_per_second": written / (updated - started),
        "seconds": {"rollout": rolled - started, "update": updated - rolled},
    }
    return state, metrics, host


def _check_finite(config: Config, metrics: dict, step: int) -> None:
    """Stop once run.max_skipped updates in a row were not finite."""
    if metrics["skipped_in_a_row"] >= config.run.max_skipped:
        raise UserError(
            f"{metrics['skipped_in_a_row']} updates in a row up to step {step} had a loss or gradient that isn't "
            "finite; lower optimizer.learning_rate, or raise run.max_skipped; the last checkpoint is intact"
        )


def _resume(checkpoints: Checkpointer, state: TrainState, stream: PromptStream, console: Console):
    """The newest checkpoint's state, or the fresh one."""
    latest = checkpoints.latest()
    if latest is None:
        return state, Progressed()
    state, extra = checkpoints.restore(latest, state)
    stream.set_state(extra.pop("stream"))
    console.out(f"resuming at step {latest}")
    return state, Progressed(**extra)


def _open_logs(opened: contextlib.ExitStack, config: Config, folder: Path, step: int) -> Logs:
    """The logs, cut back to `step`, where the run goes on."""
    trackers = open_trackers(folder, config.run.name, step=step, **config.log.model_dump())
    logs = Logs(
        opened.enter_context(MetricsLog(folder, trackers=trackers)),
        opened.enter_context(MetricsLog(folder, "trajectories.jsonl")),
    )
    for log in (logs.metrics, logs.trajectories):
        log.truncate_after(step)
    return logs


def _evaluate(run: Run, state: TrainState, when: str) -> dict[str, Any] | None:
    """Held-out figures, the single problems left out; None where there is nothing held out."""
    if run.evaluator is None:
        return None
    found = run.evaluator(run.session.serve(state.params))
    found.pop("problems")
    run.console.out(f"{when}: accuracy {100 * found['accuracy']:.1f}% on {found['prompts']} held-out prompts")
    return found


def _write_samples(run: Run, log: MetricsLog, step: int, indices: list[int], host) -> None:
    samples = run.session.config.rollout.samples_per_prompt
    strayed_first = sorted(range(len(host.length)), key=lambda row: not host.num_rewinds[row])
    for row in strayed_first[:SAMPLES]:
        index = indices[row // samples]
        prompt, tokens = run.prompts.prompts[index], run.prompts.tokens[index]
        log.append(step, make_record(run.session, prompt, tokens, row % samples, host, row))


def _summary(run: Run, state: TrainState, done: Progressed, after: dict[str, Any] | None) -> dict[str, Any]:
    before = done.before
    programs = {"rollout": run.programs.rollout, "update": run.programs.update}
    if run.evaluator is not None:
        programs["generate"] = run.evaluator.generate
    return {
        "name": run.session.config.run.name,
        "accuracy_before": None if before is None else before["accuracy"],
        "accuracy_after": None if after is None else after["accuracy"],
        "held_out_prompts": None if after is None else after["prompts"],
        "steps": int(state.step),
        "skipped": int(state.skipped),
        "seconds": done.seconds,
        "tokens": done.tokens,
        "compiles": {name: compilations(program) for name, program in programs.items()},
        "before": before,
        "after": after,
    }


def compilations(program: Any) -> int:
    """How many programs a jitted function was compiled to, in this process."""
    return program._cache_size()


def _finish(run: Run, folder: Path, summary: dict[str, Any]) -> None:
    """Write the summary; show trajectories and the table."""
    if not is_main():
        return
    write_summary(folder, summary)
    show(run.console, summary, choose(read_log(folder / "trajectories.jsonl"), SAMPLES), run.session.decode)
    figures = f"{summary['steps']} steps, {summary['tokens']:,} tokens, {summary['seconds']:.0f} s"
    run.console.out(f"{figures}; the student is in {folder / 'export'}")


def work(words: list[str]) -> int:
    """The verb."""
    path, overrides, _ = split_words(words)
    return train(read_config(path, overrides))


if __name__ == "__main__":
    run_verb(__doc__, work)
