"""`python -m motab_jax.train [CONFIG.yaml] [key=value ...]`: distil the student, step by step.

Without a file it runs the quickstart recipe on the shipped pair. The run folder (run.dir/run.name) gets config.yaml,
metrics.jsonl, trajectories.jsonl, checkpoints/, export/ and summary.json. The same command again resumes. A signal
(SIGTERM, SIGINT) saves and leaves with status 75.
"""

import dataclasses
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from motab_jax.cli import STOPPED, enable_compilation_cache, read_config, run_verb, split_words
from motab_jax.config import Config, LossConfig, UserError
from motab_jax.data.prompts import PromptStream
from motab_jax.distill import (
    Objective,
    TokenLoss,
    TrainState,
    build_targets,
    head_of,
    init_state,
    make_optimizer,
    make_schedule,
    make_update,
)
from motab_jax.evaluate import make_evaluator
from motab_jax.export import export_student
from motab_jax.report import choose, show
from motab_jax.rollout import rollout
from motab_jax.rollout.record import statistics
from motab_jax.run_folder import open_run_folder, write_summary
from motab_jax.runtime.checkpoint import Checkpointer
from motab_jax.runtime.distributed import initialize, is_main
from motab_jax.runtime.mesh import check_batch
from motab_jax.runtime.metrics import MetricsLog, open_trackers, read_log
from motab_jax.runtime.progress import Progress
from motab_jax.session import EncodedPrompts, Session, held_out_prompts, layout, open_session, training_prompts
from motab_jax.synthesize import make_record

SAMPLES = 3


@dataclasses.dataclass(frozen=True)
class Programs:
    """The run's jitted programs, each compiled once, and the schedule for the log."""

    rollout: Callable
    update: Callable
    schedule: Callable
    teacher_head: Any


def make_objective(config: Config, vocab_size: int) -> Objective:
    """The objective section as the loss's static numbers."""
    section = config.objective

    def loss(found: LossConfig) -> TokenLoss:
        return TokenLoss(found.name, found.weight, found.reverse_weight)

    return Objective(
        student=loss(section.student_loss),
        teacher=loss(section.teacher_loss),
        flawed=loss(section.flawed_loss),
        transition=loss(section.transition_loss),
        temperature=section.temperature,
        normalize=section.normalize,
        vocab_size=vocab_size,
    )


def make_programs(session: Session) -> tuple[Programs, TrainState]:
    """The programs, and the state they start from (in the update layout)."""
    config, section = session.config, session.config.optimizer
    schedule = make_schedule(
        section.schedule, peak=section.learning_rate, floor=section.min_learning_rate,
        steps=config.run.steps, warmup_ratio=section.warmup_ratio,
    )  # fmt: skip
    optimizer = make_optimizer(
        schedule, weight_decay=section.weight_decay, clip=section.clip, beta1=section.beta1, beta2=section.beta2
    )
    objective = make_objective(config, session.vocab_size)
    transition = jnp.asarray(session.transition, jnp.int32)
    update = make_update(session.student.config, optimizer, objective, accumulate=section.accumulate)

    def train_step(state: TrainState, teacher_head, trajectory):
        batch = build_targets(trajectory, target=config.objective.target, transition=transition)
        return update(state, teacher_head, batch)

    state = jax.jit(lambda params: init_state(params, optimizer))(session.student.params)
    state = _lay_out(session, state)
    places = jax.tree.map(lambda x: x.sharding, state)
    program = jax.jit(train_step, donate_argnums=0, out_shardings=(places, None))
    return Programs(jax.jit(rollout), program, schedule, head_of(session.teacher, objective)), state


def _lay_out(session: Session, state: TrainState) -> TrainState:
    """Parameters and moments in the update layout; every other number on all devices."""
    from motab_jax.runtime.mesh import replicated

    places = layout(session.mesh, session.student.config, "update")
    structure = jax.tree.structure(places)

    def is_params(node) -> bool:
        return jax.tree.structure(node) == structure

    def put(node):
        return jax.device_put(node, places if is_params(node) else replicated(session.mesh))

    return jax.tree.map(put, state, is_leaf=is_params)


class Signals:
    """Remembers that SIGTERM or SIGINT came, so that the loop can stop between two steps."""

    def __init__(self):
        self.came = False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._note)

    def _note(self, *_: object) -> None:
        self.came = True


@dataclasses.dataclass
class Progressed:
    """What a run carries from step to step besides the training state; saved as JSON with each checkpoint."""

    before: dict[str, Any] | None = None
    tokens: int = 0
    seconds: float = 0.0


def train_one(session: Session, programs: Programs, state: TrainState, prompts: EncodedPrompts, indices: list[int]):
    """One step: rollout, then update. Returns (state, metrics, host trajectory)."""
    config, step = session.config, int(state.step)
    samples = config.rollout.samples_per_prompt
    rows = [index for index in indices for _ in range(samples)]
    key = jax.random.fold_in(jax.random.key(config.run.seed), step)
    started = time.perf_counter()
    batch = prompts.batch(rows, range(len(rows)), session.mesh)
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


def train(config: Config) -> int:
    """The whole run; returns the exit status."""
    signals = Signals()
    console = Console()
    initialize()
    enable_compilation_cache()

    # The run folder, the models, the prompts: whatever is wrong with them is said now.
    folder = open_run_folder(config)
    session = open_session(config)
    check_batch(session.mesh, config.rollout.batch_size // config.optimizer.accumulate, "rollout.batch_size")
    prompts, held_out = training_prompts(session), held_out_prompts(session)
    stream = PromptStream(
        len(prompts.prompts), config.rollout.batch_size // config.rollout.samples_per_prompt, config.data.shuffle_seed
    )
    evaluator = None if held_out is None else make_evaluator(session, held_out)
    programs, state = make_programs(session)

    with Checkpointer(folder / "checkpoints", config.run.keep) as checkpoints:
        state, done = _resume(checkpoints, state, stream, console)
        trackers = open_trackers(folder, config.run.name, step=int(state.step), **config.log.model_dump())
        with (
            MetricsLog(folder, trackers=trackers) as metrics_log,
            MetricsLog(folder, "trajectories.jsonl") as samples_log,
        ):
            for log in (metrics_log, samples_log):
                log.truncate_after(int(state.step))
            if done.before is None and evaluator is not None:
                done.before = _evaluate(session, evaluator, state, console, "before")
            state, finished = _loop(
                session,
                programs,
                state,
                prompts,
                stream,
                evaluator,
                checkpoints,
                done,
                (metrics_log, samples_log),
                signals,
            )
    if not finished:
        console.print(f"stopped by a signal at step {int(state.step)}, saved; the same command goes on from there")
        return STOPPED

    after = None if evaluator is None else _evaluate(session, evaluator, state, console, "after")
    export_student(session, state.params, folder / "export")
    summary = _summary(session, state, done, after)
    if is_main():
        write_summary(folder, summary)
        log = folder / "trajectories.jsonl"
        show(console, summary, choose(read_log(log), SAMPLES), session.decode)
        console.print(
            f"{state.step} steps, {done.tokens:,} tokens, {done.seconds:.0f} s; the student is in {folder / 'export'}"
        )
    return 0


def _loop(session, programs, state, prompts, stream, evaluator, checkpoints, done: Progressed, logs, signals):
    """Steps until run.steps or a signal; returns (state, whether the run is finished)."""
    config, (metrics_log, samples_log) = session.config, logs
    with Progress(config.run.steps, "train") as progress:
        while (step := int(state.step)) < config.run.steps:
            started = time.perf_counter()
            indices = next(stream)
            state, metrics, host = train_one(session, programs, state, prompts, indices)
            step += 1
            if config.run.sample_every and (step % config.run.sample_every == 0 or step == 1):
                _write_samples(session, samples_log, step, prompts, indices, host)
            if evaluator is not None and config.run.eval_every and step % config.run.eval_every == 0:
                found = evaluator(session.serve(state.params))
                metrics["eval"] = {k: v for k, v in found.items() if k != "problems"}
            metrics["epoch"] = stream.epoch
            done.tokens += metrics["tokens_student"] + metrics["tokens_teacher"]
            elapsed = time.perf_counter() - started
            done.seconds += elapsed
            metrics["seconds"]["host"] = elapsed - sum(metrics["seconds"].values())
            metrics_log.append(step, metrics)
            progress.update(step, {k: metrics[k] for k in ("loss", "strayed", "length_mean", "tokens_per_second")})
            _check_finite(config, metrics, step)
            if step % config.run.save_every == 0 or step == config.run.steps or signals.came:
                checkpoints.save(step, state, {"stream": stream.get_state(), **dataclasses.asdict(done)})
            if signals.came and step < config.run.steps:
                return state, False
    return state, True


def _check_finite(config: Config, metrics: dict, step: int) -> None:
    """Stop once run.max_skipped updates in a row were not finite."""
    if metrics["skipped_in_a_row"] >= config.run.max_skipped:
        raise UserError(
            f"{metrics['skipped_in_a_row']} updates in a row up to step {step} had a loss or gradient that isn't finite; "
            "lower optimizer.learning_rate, or raise run.max_skipped; the last checkpoint is intact"
        )


def _resume(checkpoints: Checkpointer, state: TrainState, stream: PromptStream, console: Console):
    """The newest checkpoint's state, or the fresh one."""
    latest = checkpoints.latest()
    if latest is None:
        return state, Progressed()
    state, extra = checkpoints.restore(latest, state)
    stream.set_state(extra.pop("stream"))
    console.print(f"resuming at step {latest}")
    return state, Progressed(**extra)


def _evaluate(session: Session, evaluator, state: TrainState, console: Console, when: str) -> dict[str, Any]:
    """Held-out figures, the single problems left out."""
    found = evaluator(session.serve(state.params))
    found.pop("problems")
    if is_main():
        console.print(f"{when}: accuracy {100 * found['accuracy']:.1f}% on {found['prompts']} held-out prompts")
    return found


def _write_samples(session, log: MetricsLog, step: int, prompts: EncodedPrompts, indices, host) -> None:
    samples = session.config.rollout.samples_per_prompt
    strayed_first = sorted(range(len(host.length)), key=lambda row: not host.num_rewinds[row])
    for row in strayed_first[:SAMPLES]:
        index = indices[row // samples]
        record = make_record(session, prompts.prompts[index], prompts.tokens[index], row % samples, host, row)
        log.append(step, record)


def _summary(session: Session, state: TrainState, done: Progressed, after) -> dict[str, Any]:
    before = done.before
    return {
        "name": session.config.run.name,
        "accuracy_before": None if before is None else before["accuracy"],
        "accuracy_after": None if after is None else after["accuracy"],
        "held_out_prompts": None if after is None else after["prompts"],
        "steps": int(state.step),
        "skipped": int(state.skipped),
        "seconds": done.seconds,
        "tokens": done.tokens,
        "before": before,
        "after": after,
    }


def work(words: list[str]) -> int:
    """The verb."""
    path, overrides, _ = split_words(words)
    return train(read_config(path, overrides))


if __name__ == "__main__":
    run_verb(__doc__, work)
