"""The training run, in order: open, begin, roll out, update, log, evaluate, save, export.

Left out: opening a run (run.py), its batches (batches.py) and programs (programs.py), and its log (step_log.py).
"""

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from motab_jax.config import Config
from motab_jax.rollout.state import cache_bytes
from motab_jax.runtime.checkpoint import Checkpointer
from motab_jax.runtime.cli import STOPPED, Signals
from motab_jax.runtime.clocks import StepClock, now
from motab_jax.runtime.compilation import CompileClock, enable_compilation_cache, set_numerics
from motab_jax.runtime.distributed import initialize
from motab_jax.runtime.hosts import any_process
from motab_jax.runtime.progress import Progress
from motab_jax.session.export import export_student
from motab_jax.training.phase_times import measure_phase_costs
from motab_jax.training.run import Interrupted, begin, evaluate_student, open_run
from motab_jax.training.run_folder import open_logs, open_run_folder, write_config
from motab_jax.training.step_log import PendingStep, finish, log_evaluation, log_step


def train(config: Config, *, profile: bool = False) -> int:
    """Distil the student: the whole run, from the configuration to the exported folder.

    The run folder (run.dir/run.name) holds what is written. A run whose folder holds a checkpoint resumes there.

    Args:
      config: the resolved configuration, such as `load_config` gives.
      profile: write a JAX profiler trace of one step (this process's third, or its last one) to the run folder.

    Returns:
      The exit status: 0 where the run is done, 75 where a signal stopped it after saving.

    Raises:
      UserError: something is wrong with the configuration, the models, the prompts or the folder.
    """
    # Join the other processes of the run. Keep compiled programs from one run to the next.
    set_numerics(config.run.matmul_precision, deterministic=config.run.deterministic)
    initialize(patience=config.run.start_seconds, heartbeat=config.run.heartbeat_seconds)
    enable_compilation_cache()
    with CompileClock() as compile_clock, open_run_folder(config) as storage:
        # Open everything that the run works with. What is wrong with the input raises a UserError here.
        run = open_run(config, storage, compile_clock)
        session, programs, config = run.session, run.programs, run.session.config
        with contextlib.ExitStack() as opened:
            signals = opened.enter_context(Signals())
            checkpoints = opened.enter_context(Checkpointer(run.storage.target / "checkpoints", config.run.keep))

            # Begin at the newest checkpoint, or fresh.
            state, progress = begin(run, checkpoints)
            opened.enter_context(run.storage.pushing(config.run.upload_every))
            logs = open_logs(opened, config, run.folder, int(state.step))
            write_config(run.folder, config)

            def stop() -> bool:
                return any_process(signals.received)

            def saved(stream: dict[str, int]) -> dict[str, Any]:
                return {"stream": stream, "inputs": run.inputs, **dataclasses.asdict(progress)}

            def stopped_at(step: int) -> int:
                run.console.out(f"stopped by a signal at step {step}, saved; the same command goes on from there")
                return STOPPED

            # Evaluate the student that the run begins with, or finish the evaluation that a signal stopped.
            step = int(state.step)
            try:
                if progress.before is None:
                    progress.before = evaluate_student(run, state, "before", stop)
                if progress.unlogged is not None and logs.last_step() < step:
                    began = now()
                    evaluation = evaluate_student(run, state, f"step {step}", stop)
                    log_evaluation(logs, progress, step, evaluation, now() - began)
            except Interrupted:
                if checkpoints.latest() is None:
                    checkpoints.save(step, state, saved(run.batches.stream.get_state()))
                return stopped_at(step)
            progress.unlogged = None

            # Draw the first batch; time short rollouts, so that a step's seconds can be split into phases.
            first, pending, costs = step + 1, None, None
            batch = run.batches.draw(first)
            if config.rollout.on_policy > 0 and first <= config.run.steps:
                costs = measure_phase_costs(
                    programs.on_policy,
                    session.serve(state.params),
                    session.teacher,
                    batch.prompts,
                    session.rollout_config,
                )
            profiled = min(first + 2, config.run.steps) if profile else None
            bar = opened.enter_context(Progress(config.run.steps, "train", done=first - 1, console=run.console))
            clock = opened.enter_context(StepClock(compile_clock))

            for step in range(first, config.run.steps + 1):
                with contextlib.ExitStack() as profiling:
                    if step == profiled:
                        trace = run.folder / "profile"
                        run.console.out(f"profiling step {step}: the trace goes to {trace}")
                        profiling.enter_context(jax.profiler.trace(trace))

                    # Roll out: the student generates, the teacher monitors; in off-policy steps the data gives the
                    # completions, or the teacher generates them. Nothing here waits for the device.
                    rollout_config, dispatched = session.rollout_config, now()
                    if progress.eps0 is not None:
                        rollout_config = rollout_config.replace(eps0=jnp.float32(progress.eps0))
                    if batch.on_policy:
                        student = session.serve(state.params)
                        clock.record("relayout", student.fused, dispatched=dispatched)
                        trajectory = programs.on_policy(
                            student, session.teacher, batch.prompts, batch.key, rollout_config
                        )
                        caches = cache_bytes(student, session.teacher, batch.prompts, rollout_config)
                        del student  # its serving weights are freed before the update needs memory
                    else:
                        clock.record("relayout", dispatched=dispatched)
                        trajectory = programs.off_policy(
                            session.teacher, batch.prompts, batch.completions, batch.key, rollout_config
                        )
                        generator = session.teacher if batch.completions is None else None
                        caches = cache_bytes(generator, None, batch.prompts, rollout_config)
                    clock.record("rollout", trajectory.length)

                    # Update: targets, loss, gradient, optimizer, in one program.
                    if jax.default_backend() == "cpu" and compile_clock.compilations(programs.update) == 0:
                        jax.block_until_ready(trajectory.length)  # the compiler and the rollout would share the cores
                    rollout_summary = programs.rollout_summary(trajectory.slim())
                    state, update_metrics = programs.update(state, programs.teacher_head, trajectory)
                    clock.record("update", update_metrics)
                    if programs.boundary is not None and batch.on_policy:
                        update_metrics["eps0"] = programs.boundary(rollout_config.eps0, trajectory.steps)
                    dispatched_step = PendingStep(
                        step,
                        batch,
                        rollout_summary,
                        trajectory.counters,
                        update_metrics,
                        trajectory.target_bytes,
                        caches,
                    )
                    del trajectory  # its targets are freed as soon as the update has used them

                    # While the device computes: log the step before, draw the next batch.
                    if pending is not None:
                        log_step(run, logs, progress, bar, costs, pending)
                    pending, batch = dispatched_step, run.batches.draw(step + 1)
                    jax.block_until_ready(update_metrics)
                    if "eps0" in update_metrics:
                        progress.eps0 = float(update_metrics["eps0"])

                pending.seconds, pending.elapsed = clock.read()
                if step == first:
                    run.console.out(str(compile_clock.read()))

                # Save, also where any process received a signal. Before a checkpoint the log is complete, but for the
                # line of a step whose evaluation comes next: the checkpoint holds it.
                evaluates = bool(config.run.eval_every) and step % config.run.eval_every == 0
                stopped, stream = stop(), pending.batch.stream
                saves = step % config.run.save_every == 0 or step == config.run.steps or stopped
                if saves or evaluates:
                    log_step(run, logs, progress, bar, costs, pending, hold=evaluates)
                    pending = None
                if saves:
                    run.storage.push()
                    checkpoints.save(step, state, saved(stream))
                if stopped:
                    return stopped_at(step)

                # Evaluate. A signal stops it between two batches.
                if evaluates:
                    dispatched = now()
                    try:
                        evaluation = evaluate_student(run, state, f"step {step}", stop)
                    except Interrupted:
                        if not saves:
                            checkpoints.save(step, state, saved(stream))
                        return stopped_at(step)
                    clock.record("evaluation", dispatched=dispatched)
                    seconds, elapsed = clock.read()
                    progress.seconds += elapsed
                    log_evaluation(logs, progress, step, evaluation, seconds["evaluation"])

            # Evaluate the trained student. The last step is saved already.
            try:
                after = evaluate_student(run, state, "after", stop)
            except Interrupted:
                return stopped_at(int(state.step))

        # Export the student, summarise the run.
        export_student(session, state.params, run.storage.target / "export")
        finish(run, state, progress, after)
        run.storage.push()
    return 0
