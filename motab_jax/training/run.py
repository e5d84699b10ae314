"""A run's parts, opened from its configuration, and its beginning: fresh or at its newest checkpoint.

Left out: the steps themselves (loop.py), what is logged of them (step_log.py).
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from rich.console import Console

from motab_jax.config import Config, UserError
from motab_jax.distill import TrainState
from motab_jax.evaluation.evaluator import Evaluator, make_evaluator
from motab_jax.evaluation.partial import PartialFile
from motab_jax.runtime.checkpoint import Checkpointer
from motab_jax.runtime.compilation import CompileClock
from motab_jax.runtime.distributed import is_main
from motab_jax.runtime.notices import notice
from motab_jax.runtime.staging import Staged
from motab_jax.session.prompts import EncodedPrompts, held_out_prompts, training_prompts
from motab_jax.session.session import Session, open_session
from motab_jax.training.batches import Batches, open_batches, with_steps
from motab_jax.training.inputs import check_inputs, describe_inputs
from motab_jax.training.programs import Programs, make_programs


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run that no step changes."""

    session: Session
    batches: Batches
    evaluator: Evaluator | None  # None: nothing is held out
    programs: Programs
    learning_rates: Float[np.ndarray, "steps"]  # of each step, so that logging needs nothing from a busy device
    storage: Staged  # the run folder
    console: Console
    inputs: dict[str, Any]  # digests of prompts and models: see inputs.py
    compile_clock: CompileClock

    @property
    def folder(self) -> Path:
        """The run folder on this machine; checkpoints and the export are in `storage.target`."""
        return self.storage.local


@dataclasses.dataclass
class RunProgress:
    """The run's state besides the training state; saved as JSON with each checkpoint."""

    before: dict[str, Any] | None = None  # the evaluation before the first step
    tokens: int = 0  # generated so far, by both models
    seconds: float = 0.0  # of the steps so far
    unlogged: dict[str, Any] | None = None  # metrics of a step whose evaluation is not done; its line is not written
    eps0: float | None = None  # of the next step, where the boundary follows the step values; None: as configured


class Interrupted(Exception):
    """A signal stopped an evaluation between two batches."""


def open_run(config: Config, storage: Staged, compile_clock: CompileClock) -> Run:
    """Open the models, the prompts and the evaluation, and make the programs.

    Args:
      config: the resolved configuration.
      storage: the run folder.
      compile_clock: counts the run's compilations.

    Returns:
      The run; its session's configuration has `run.steps` as `run.epochs` asks for.

    Raises:
      UserError: for whatever is wrong with folder, models, tokenizer, prompts or mesh.
    """
    console = Console(quiet=not is_main())
    session = open_session(config)
    prompts, held_out = training_prompts(session), _held_out(session)
    session = dataclasses.replace(session, config=with_steps(config, len(prompts.prompts)))
    batches = open_batches(session, prompts)
    if batches.completions is not None and batches.completions.truncated:
        console.out(str(batches.completions))
    if config.rollout.on_policy > 0 and config.objective.student_loss.name == "cross_entropy":
        notice(
            "objective.student_loss=cross_entropy on the student's own samples teaches nothing from them; "
            "reverse_kl or adaptive_kl does"
        )
    inputs, programs = describe_inputs(session, batches), make_programs(session)
    evaluator = None
    if held_out is not None:
        evaluator = make_evaluator(session, session.config.eval, held_out, programs.evaluation)
    learning_rates = np.asarray(jax.jit(jax.vmap(programs.schedule))(jnp.arange(session.config.run.steps)))
    return Run(session, batches, evaluator, programs, learning_rates, storage, console, inputs, compile_clock)


def _held_out(session: Session) -> EncodedPrompts | None:
    """The prompts of the one benchmark that the run is measured by; None where nothing is held out."""
    section = session.config.eval
    if isinstance(section.preset, tuple):
        raise UserError("eval.preset is a list; a run is measured by one benchmark, and `evaluate` takes several")
    return held_out_prompts(session, section)


def begin(run: Run, checkpoints: Checkpointer) -> tuple[TrainState, RunProgress]:
    """The training state and progress of the newest checkpoint, or fresh ones.

    The session's copy of the student's parameters is donated or deleted: from here on they are the state's, and the
    session has their shapes.
    """
    params = dict(run.session.student.params)
    run.session.student.params.update(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
    )
    if checkpoints.latest() is None:
        return run.programs.init(params), RunProgress()
    for weight in jax.tree.leaves(params):
        weight.delete()
    found = checkpoints.restore_newest(run.programs.state, run.console.out)
    assert found is not None
    step, state, saved = found
    check_inputs(saved.pop("inputs", None), run.inputs, run.storage.target)
    run.batches.stream.set_state(saved.pop("stream"))
    run.console.out(f"resuming at step {step}")
    return state, RunProgress(**saved)


def evaluate_student(
    run: Run, state: TrainState, when: str, stopped: Callable[[], bool] = lambda: False
) -> dict[str, Any] | None:
    """Held-out metrics of the student as it is, without the single problems; None where nothing is held out.

    Only the main process has them; the others have the benchmark's name. An evaluation that was stopped goes on from
    the grades that it left in the run folder.

    Args:
      run: the run.
      state: its training state.
      when: how the printed line begins, such as `before`.
      stopped: as the evaluator asks it.

    Raises:
      Interrupted: it was stopped between two batches.
    """
    if run.evaluator is None:
        return None
    partial = PartialFile(run.folder / "evaluation.partial.json", {"when": when, "step": int(state.step)})
    metrics = run.evaluator(run.session.serve(state.params), stopped=stopped, partial=partial)
    if metrics is None:
        raise Interrupted
    metrics.pop("problems")
    if is_main():
        run.console.out(f"{when}: accuracy {100 * metrics['accuracy']:.1f}% on {metrics['prompts']} held-out prompts")
    return metrics
