"""The training run, step by step: roll out, monitor, backtrack, distil, evaluate, save."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from motab_jax.config import Config, UserError
from motab_jax.distill import TrainState
from motab_jax.evaluation.evaluator import Evaluator, make_evaluator
from motab_jax.evaluation.show import choose, show
from motab_jax.rollout import RolloutConfig, Trajectory
from motab_jax.rollout.counters import Counters
from motab_jax.rollout.state import cache_bytes
from motab_jax.runtime.checkpoint import Checkpointer
from motab_jax.runtime.cli import STOPPED, Signals
from motab_jax.runtime.clocks import StepClock, now
from motab_jax.runtime.compilation import CompileClock, enable_compilation_cache
from motab_jax.runtime.distributed import initialize, is_main
from motab_jax.runtime.hosts import any_process, fetch
from motab_jax.runtime.mesh import check_batch
from motab_jax.runtime.metrics import MetricsLog, read_log
from motab_jax.runtime.progress import Progress
from motab_jax.session.export import export_student
from motab_jax.session.prompts import held_out_prompts, training_prompts
from motab_jax.session.session import Session, open_session
from motab_jax.synthesis.records import make_record
from motab_jax.training.batches import Batch, Batches, open_batches, with_steps
from motab_jax.training.phase_times import Costs, measure_phase_costs, split_off_policy
from motab_jax.training.programs import SAMPLES, Programs, make_programs
from motab_jax.training.run_folder import Logs, open_logs, open_run_folder, write_config, write_summary


@dataclasses.dataclass
class Progressed:
    """What a run carries from step to step besides the training state; saved as JSON with each checkpoint."""

    before: dict[str, Any] | None = None
    tokens: int = 0
    seconds: float = 0.0
    eps0: float | None = None  # of the next step, where the boundary follows the values


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run works with from its first step to its last."""

    session: Session
    batches: Batches
    evaluator: Evaluator | None
    programs: Programs
    rates: np.ndarray  # f32[run.steps]; learning rates, so that a log line asks nothing of a busy device
    folder: Path
    console: Console
    clock: CompileClock
    costs: Costs | None = None  # of the rollout's turns


@dataclasses.dataclass
class Asked:
    """A step that the device was asked for, and what the host will write of it once it is done."""

    step: int
    batch: Batch
    described: Any  # on the device, as the counters and figures: see `Programs.describe`
    counters: Counters
    figures: dict[str, jax.Array]
    target_bytes: int  # that the teacher's targets take for each token
    cache_bytes: int  # of both models' caches
    evaluation: dict[str, Any] | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    elapsed: float = 0.0


def train(config: Config, *, profile: bool = False) -> int:
    """The whole run; returns the exit status."""
    initialize()
    enable_compilation_cache()
    with CompileClock() as clock:
        run = _prepare(config, clock)
        config = run.session.config
        with contextlib.ExitStack() as opened:
            signals = opened.enter_context(Signals())
            checkpoints = opened.enter_context(Checkpointer(run.folder / "checkpoints", config.run.keep))
            state, done = _begin(run, checkpoints)
            logs = open_logs(opened, config, run.folder, int(state.step))
            write_config(run.folder, config)
            if done.before is None:
                done.before = _evaluate(run, state, "before")
            state, stopped = _loop(run, state, done, checkpoints, logs, signals, profile)
        if stopped:
            at = int(state.step)
            run.console.out(f"stopped by a signal at step {at}, saved; the same command goes on from there")
            return STOPPED

        after = _evaluate(run, state, "after")
        export_student(run.session, state.params, run.folder / "export")
        _finish(run, _summary(run, state, done, after))
    return 0


def _prepare(config: Config, clock: CompileClock) -> Run:
    """The run folder, the models, the prompts, the programs: whatever is wrong with them is said now."""
    console = Console(quiet=not is_main())
    folder = open_run_folder(config)
    session = open_session(config)
    check_batch(session.mesh, config.rollout.batch_size // config.optimizer.accumulate, "rollout.batch_size")
    prompts, evaluator = training_prompts(session), _evaluator(session)
    session = dataclasses.replace(session, config=with_steps(config, len(prompts.prompts)))
    batches = open_batches(session, prompts)
    if batches.completions is not None and batches.completions.cut:
        console.out(str(batches.completions))
    programs = make_programs(session)
    rates = np.asarray(jax.jit(jax.vmap(programs.schedule))(jnp.arange(session.config.run.steps)))
    return Run(session, batches, evaluator, programs, rates, folder, console, clock)


def _evaluator(session: Session) -> Evaluator | None:
    """What evaluates before, after and every run.eval_every steps, as `evaluate` does; None with nothing held out."""
    section = session.config.eval
    if isinstance(section.preset, tuple):
        raise UserError("eval.preset is a list; a run is measured by one benchmark, and `evaluate` takes several")
    held_out = held_out_prompts(session, section)
    return None if held_out is None else make_evaluator(session, section, held_out)


def _loop(run: Run, state: TrainState, done: Progressed, checkpoints: Checkpointer, logs: Logs, signals, profile: bool):
    """Steps until run.steps or a signal; returns (state, whether a signal stopped it).

    The host writes about a step while the device is at the next one; before a checkpoint it catches up.
    """
    config, first, unwritten = run.session.config.run, int(state.step) + 1, None
    profiled = min(first + 2, config.steps) if profile else None
    batch = run.batches.draw(first)
    run = dataclasses.replace(run, costs=_costs(run, state, batch))
    with (
        Progress(config.steps, "train", done=first - 1, console=run.console) as progress,
        StepClock(run.clock) as clock,
    ):
        for step in range(first, config.steps + 1):
            with _profile(run, step) if step == profiled else contextlib.nullcontext():
                state, asked = _ask(run, state, step, batch, clock, done.eps0)
                if unwritten is not None:
                    _write(run, logs, done, progress, unwritten)
                batch = run.batches.draw(step + 1)
                jax.block_until_ready(asked.figures)
                if "eps0" in asked.figures:
                    done.eps0 = float(asked.figures["eps0"])
            if config.eval_every and step % config.eval_every == 0:
                began = now()
                asked.evaluation = _evaluate(run, state, f"step {step}")
                clock.record("evaluation", dispatched=began)
            asked.seconds, asked.elapsed = clock.read()
            if step == first:
                run.console.out(str(run.clock.read()))
            unwritten, stopped = asked, any_process(signals.came)
            if step % config.save_every == 0 or step == config.steps or stopped:
                _write(run, logs, done, progress, asked)
                unwritten = None
                checkpoints.save(step, state, {"stream": asked.batch.stream, **dataclasses.asdict(done)})
            if stopped:
                return state, True
    return state, False


def _costs(run: Run, state: TrainState, batch: Batch) -> Costs | None:
    """What a turn of each kind costs, for the split of the seconds; None where there is no step to be split."""
    session = run.session
    if run.programs.rollout is None or int(state.step) >= session.config.run.steps:
        return None
    return measure_phase_costs(
        run.programs.rollout, session.serve(state.params), session.teacher, batch.prompts, session.rollout
    )


def _ask(
    run: Run, state: TrainState, step: int, batch: Batch, clock: StepClock, eps0: float | None
) -> tuple[TrainState, Asked]:
    """Ask the device for one step: trajectories, update. Waits for nothing. eps0: None: as configured."""
    programs, numbers = run.programs, run.session.rollout
    numbers = numbers if eps0 is None else numbers.replace(eps0=jnp.float32(eps0))
    trajectory, cached = _obtain(run, state, batch, clock, numbers)
    clock.record("rollout", trajectory.length)
    if jax.default_backend() == "cpu" and run.clock.compilations(programs.update) == 0:
        jax.block_until_ready(trajectory.length)  # here the compiler and the rollout would share the cores
    described = programs.describe(trajectory.slim())
    state, figures = programs.update(state, programs.teacher_head, trajectory)
    clock.record("update", figures)
    if programs.boundary is not None and batch.on_policy:
        figures["eps0"] = programs.boundary(numbers.eps0, trajectory.steps)
    return state, Asked(step, batch, described, trajectory.counters, figures, trajectory.target_bytes, cached)


def _obtain(
    run: Run, state: TrainState, batch: Batch, clock: StepClock, numbers: RolloutConfig
) -> tuple[Trajectory, int]:
    """The step's trajectories, whoever writes them, and the bytes of the caches for it."""
    session, began = run.session, now()
    student = session.serve(state.params) if batch.on_policy else None
    clock.record("relayout", () if student is None else student.fused, dispatched=began)
    if student is not None:
        trajectory = run.programs.rollout(student, session.teacher, batch.prompts, batch.key, numbers)
        return trajectory, cache_bytes(student, session.teacher, batch.prompts, numbers)
    trajectory = run.programs.off_policy(session.teacher, batch.prompts, batch.text, batch.key, numbers)
    writer = session.teacher if batch.text is None else None
    return trajectory, cache_bytes(writer, None, batch.prompts, numbers)


def _write(run: Run, logs: Logs, done: Progressed, progress: Progress, asked: Asked) -> None:
    """What the host has to say of a finished step: figures, samples, progress. One fetch from the device."""
    config, began, step = run.session.config.run, now(), asked.step
    wanted = asked.described, asked.counters, asked.figures
    (stats, rows, trajectory), counters, figures = fetch(wanted, run.session.mesh)
    stats, seconds = {name: value.item() for name, value in stats.items()}, asked.seconds
    written = stats["tokens_student"] + stats["tokens_teacher"]
    split = run.costs.split if asked.batch.on_policy else split_off_policy
    if config.sample_every and (step % config.sample_every == 0 or step == 1):
        _write_samples(run, logs.trajectories, asked, rows, trajectory)
    metrics = {
        **{name: value.item() for name, value in figures.items()},
        **stats,
        "on_policy": asked.batch.on_policy,
        "learning_rate": float(run.rates[step - 1]),
        "tokens_per_second": written / (seconds["relayout"] + seconds["rollout"] + seconds["update"]),
        "seconds": {**seconds, **split(seconds["rollout"], counters), "host": now() - began},
        "target_bytes_per_token": asked.target_bytes,
        "cache_bytes": asked.cache_bytes,
        "epoch": asked.batch.epoch,
    }
    if asked.evaluation is not None:
        metrics["eval"] = asked.evaluation
    done.tokens += written
    done.seconds += asked.elapsed
    logs.metrics.append(step, metrics)
    progress.update(step, {k: metrics[k] for k in ("loss", "strayed", "length_mean", "tokens_per_second")})
    _check_finite(run.session.config, metrics, step)


def _profile(run: Run, step: int):
    """The profiler, for as long as the context lasts."""
    run.console.out(f"profiling step {step}: the trace goes to {run.folder / 'profile'}")
    return jax.profiler.trace(run.folder / "profile")


def _check_finite(config: Config, metrics: dict, step: int) -> None:
    """Stop once run.max_skipped updates in a row were not finite. By then the device is at the step after."""
    if metrics["skipped_in_a_row"] >= config.run.max_skipped:
        raise UserError(
            f"{metrics['skipped_in_a_row']} updates in a row up to step {step} had a loss or gradient that isn't "
            "finite; lower optimizer.learning_rate, or raise run.max_skipped; the last checkpoint is intact"
        )


def _begin(run: Run, checkpoints: Checkpointer) -> tuple[TrainState, Progressed]:
    """The newest checkpoint's state, or a fresh one; the session's copy of the student's weights is given up."""
    latest, params = checkpoints.latest(), run.session.student.params
    if latest is None:
        return run.programs.init(params), Progressed()
    for weight in jax.tree.leaves(params):
        weight.delete()
    state, extra = checkpoints.restore(latest, run.programs.state)
    run.batches.stream.set_state(extra.pop("stream"))
    run.console.out(f"resuming at step {latest}")
    return state, Progressed(**extra)


def _evaluate(run: Run, state: TrainState, when: str) -> dict[str, Any] | None:
    """Held-out figures, the single problems left out; None where there is nothing held out."""
    if run.evaluator is None:
        return None
    found = run.evaluator(run.session.serve(state.params))
    found.pop("problems")
    run.console.out(f"{when}: accuracy {100 * found['accuracy']:.1f}% on {found['prompts']} held-out prompts")
    return found


def _write_samples(run: Run, log: MetricsLog, asked: Asked, rows: np.ndarray, trajectory: Trajectory) -> None:
    """The records of a few trajectories, which are these rows of the batch."""
    for place, row in enumerate(rows.tolist()):
        number, sample = divmod(row, run.session.config.rollout.samples_per_prompt)
        index = asked.batch.indices[number]
        prompt, tokens = run.batches.prompts.prompts[index], run.batches.prompts.tokens[index]
        log.append(asked.step, make_record(run.session, prompt, tokens, sample, trajectory, place))


def _summary(run: Run, state: TrainState, done: Progressed, after: dict[str, Any] | None) -> dict[str, Any]:
    before, compiled = done.before, run.clock.read()
    programs = {name: getattr(run.programs, name) for name in ("rollout", "off_policy", "update")}
    programs["generate"] = None if run.evaluator is None else run.evaluator.generate
    return {
        "name": run.session.config.run.name,
        "accuracy_before": None if before is None else before["accuracy"],
        "accuracy_after": None if after is None else after["accuracy"],
        "held_out_prompts": None if after is None else after["prompts"],
        "steps": int(state.step),
        "skipped": int(state.skipped),
        "seconds": done.seconds,
        "tokens": done.tokens,
        "compile_seconds": compiled.seconds,
        "compile_cached": compiled.cached,
        "compiles": {
            name: run.clock.compilations(program) for name, program in programs.items() if program is not None
        },
        "before": before,
        "after": after,
    }


def _finish(run: Run, summary: dict[str, Any]) -> None:
    """Write the summary; show trajectories and the table."""
    if not is_main():
        return
    write_summary(run.folder, summary)
    show(run.console, summary, choose(read_log(run.folder / "trajectories.jsonl"), SAMPLES), run.session.decode)
    figures = f"{summary['steps']} steps, {summary['tokens']:,} tokens, {summary['seconds']:.0f} s"
    run.console.out(f"{figures}; the student is in {run.folder / 'export'}")
