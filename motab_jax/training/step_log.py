"""A run's log: metrics and sample trajectories of each step, and the summary at its end."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from motab_jax.config import Config, UserError
from motab_jax.distill import TrainState
from motab_jax.evaluation.show import choose, show
from motab_jax.rollout import Trajectory
from motab_jax.rollout.counters import Counters
from motab_jax.runtime.clocks import now
from motab_jax.runtime.distributed import is_main
from motab_jax.runtime.hosts import fetch
from motab_jax.runtime.metrics import MetricsLog, as_json, read_log
from motab_jax.runtime.progress import Progress
from motab_jax.synthesis.records import make_record
from motab_jax.training.batches import Batch
from motab_jax.training.phase_times import PhaseCosts, split_off_policy
from motab_jax.training.programs import SAMPLES
from motab_jax.training.run import Run, RunProgress
from motab_jax.training.run_folder import Logs, write_summary


@dataclasses.dataclass
class PendingStep:
    """A dispatched step that is not logged yet."""

    step: int
    batch: Batch
    rollout_summary: Any  # on the device: what `Programs.rollout_summary` gave of the trajectories
    counters: Counters  # on the device
    update_metrics: dict[str, jax.Array]  # on the device: what the update gave
    target_bytes: int  # of the teacher's targets, for each token
    cache_bytes: int  # of both models' caches, on all devices together
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # of each of the device's tasks
    elapsed: float = 0.0  # seconds of wall time


def log_step(
    run: Run,
    logs: Logs,
    progress: RunProgress,
    bar: Progress,
    costs: PhaseCosts | None,
    pending: PendingStep,
    *,
    hold: bool = False,
) -> None:
    """Append a step's metrics and sample trajectories to the logs, with one fetch from the device.

    Args:
      run: the run.
      logs: its files.
      progress: its totals; the step's tokens and seconds are added.
      bar: the progress bar.
      costs: seconds of a rollout's phases; None only where no step is on-policy.
      pending: the step.
      hold: keep the metrics in `progress`, for `log_evaluation` to write them.

    Raises:
      UserError: `run.max_skipped` updates in a row were not finite.
    """
    config, began, step = run.session.config.run, now(), pending.step
    on_device = pending.rollout_summary, pending.counters, pending.update_metrics
    (statistics, rows, trajectory), counters, update_metrics = fetch(on_device, run.session.mesh)
    statistics, seconds = {name: value.item() for name, value in statistics.items()}, pending.seconds
    generated = statistics["tokens_student"] + statistics["tokens_teacher"]
    split = costs.split if costs is not None and pending.batch.on_policy else split_off_policy
    if is_main() and config.sample_every and (step % config.sample_every == 0 or step == 1):
        _log_samples(run, logs.trajectories, pending, rows, trajectory)
    metrics = {
        **{name: value.item() for name, value in update_metrics.items()},
        **statistics,
        "on_policy": pending.batch.on_policy,
        "learning_rate": float(run.learning_rates[updates_before(step, update_metrics)]),
        "tokens_per_second": generated / (seconds["relayout"] + seconds["rollout"] + seconds["update"]),
        "seconds": {**seconds, **split(seconds["rollout"], counters), "host": now() - began},
        "target_bytes_per_token": pending.target_bytes,
        "cache_bytes": pending.cache_bytes,
        "epoch": pending.batch.epoch,
    }
    progress.tokens += generated
    progress.seconds += pending.elapsed
    if hold:
        progress.unlogged = as_json(metrics)
    else:
        logs.metrics.append(step, metrics)
    bar.update(step, {name: metrics[name] for name in ("loss", "strayed", "length_mean", "tokens_per_second")})
    _check_finite(run.session.config, metrics, step)


def updates_before(step: int, update_metrics: dict[str, Any]) -> int:
    """The number of updates before this step's that were not skipped: what the learning rate's schedule counts."""
    is_skipped = int(update_metrics["skipped_in_a_row"]) > 0
    return step - 1 - (int(update_metrics["skipped"]) - is_skipped)


def log_evaluation(
    logs: Logs, progress: RunProgress, step: int, evaluation: dict[str, Any] | None, seconds: float
) -> None:
    """Append the metrics that `log_step` held, with the step's evaluation and its seconds."""
    assert progress.unlogged is not None
    metrics, progress.unlogged = progress.unlogged, None
    metrics["seconds"]["evaluation"] = seconds
    logs.metrics.append(step, metrics if evaluation is None else {**metrics, "eval": evaluation})


def _check_finite(config: Config, metrics: dict[str, Any], step: int) -> None:
    """UserError once run.max_skipped updates in a row were not finite; the device may have begun the next step."""
    if metrics["skipped_in_a_row"] >= config.run.max_skipped:
        raise UserError(
            f"{metrics['skipped_in_a_row']} updates in a row up to step {step} had a loss or gradient that isn't "
            "finite; lower optimizer.learning_rate, or raise run.max_skipped; the last checkpoint is intact"
        )


def _log_samples(
    run: Run, log: MetricsLog, pending: PendingStep, rows: Int[np.ndarray, "R"], trajectory: Trajectory
) -> None:
    """Append the records of R trajectories, which are these rows of the batch."""
    for index, row in enumerate(rows.tolist()):
        if not trajectory.in_use[index]:
            continue
        number, sample = divmod(row, run.session.config.rollout.samples_per_prompt)
        prompt = pending.batch.indices[number]
        encoded = run.batches.prompts
        record = make_record(run.session, encoded.prompts[prompt], encoded.tokens[prompt], sample, trajectory, index)
        log.append(pending.step, record)


def finish(run: Run, state: TrainState, progress: RunProgress, after: dict[str, Any] | None) -> None:
    """Write summary.json; print trajectories, the held-out metrics before and after, and where the student is."""
    if not is_main():
        return
    summary = _summary(run, state, progress, after)
    write_summary(run.folder, summary)
    show(run.console, summary, choose(read_log(run.folder / "trajectories.jsonl"), SAMPLES), run.session.decode)
    totals = f"{summary['steps']} steps, {summary['tokens']:,} tokens, {summary['seconds']:.0f} s"
    run.console.out(f"{totals}; the student is in {run.storage.target / 'export'}")


def _summary(run: Run, state: TrainState, progress: RunProgress, after: dict[str, Any] | None) -> dict[str, Any]:
    before, compiled = progress.before, run.compile_clock.read()
    programs = {name: getattr(run.programs, name) for name in ("off_policy", "update")}
    programs["rollout"] = run.programs.on_policy
    programs["generate"] = None if run.evaluator is None else run.evaluator.programs.generate
    return {
        "name": run.session.config.run.name,
        "accuracy_before": None if before is None else before["accuracy"],
        "accuracy_after": None if after is None else after["accuracy"],
        "held_out_prompts": None if after is None else after["prompts"],
        "steps": int(state.step),
        "skipped": int(state.skipped),
        "seconds": progress.seconds,
        "tokens": progress.tokens,
        "compile_seconds": compiled.seconds,
        "compile_cached": compiled.cached,
        "compiles": {
            name: run.compile_clock.compilations(program) for name, program in programs.items() if program is not None
        },
        "before": before,
        "after": after,
    }
