"""The run's jitted programs: rollouts, update, evaluation and digest; and the training state's layout.

Runs, plans and tests take them from here. The relayouts are in the session (session/placement.py).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from motab_jax.config import Config, LossSection
from motab_jax.distill import (
    Objective,
    TokenLoss,
    TrainState,
    build_targets,
    check_targets,
    init_state,
    make_optimizer,
    make_schedule,
    make_update,
    select_teacher_head,
)
from motab_jax.evaluation.programs import EvaluationPrograms, make_evaluation_programs
from motab_jax.rollout import Trajectory, rollout
from motab_jax.rollout.monitor import next_boundary
from motab_jax.rollout.off_policy import from_completions, generate_with_teacher
from motab_jax.rollout.row_groups import run_per_group
from motab_jax.rollout.summary import samples, statistics
from motab_jax.runtime.digest import weighted_sums
from motab_jax.runtime.mesh import batch_shard_count, batch_sharding, platform_of, replicated
from motab_jax.session.placement import layout
from motab_jax.session.session import Session, transition_ids

SAMPLES = 3  # rows of a step that can be logged as sample trajectories


@dataclasses.dataclass(frozen=True)
class Programs:
    """A run's jitted programs, each compiled once, and the arguments that all steps share."""

    on_policy: Any  # (student, teacher, prompts, key, config) -> trajectories; None: no step is on-policy
    off_policy: Any  # (teacher, prompts, completions, key, config) -> trajectories; None: every step is
    boundary: Callable | None  # (eps0, step table) -> the next eps0; None: eps0 stays
    init: Callable  # the student's parameters, donated -> the training state of a fresh run
    state: TrainState  # shapes, dtypes and shardings of the training state (the layout `update`)
    update: Callable  # (state, donated; teacher head; trajectories) -> (state, metrics)
    rollout_summary: Callable  # slim trajectories -> (statistics, indices of some rows, those rows), replicated
    evaluation: EvaluationPrograms | None  # of the benchmark that the run is measured by; None: several are named
    digest: Callable  # a list of arrays -> their digests; each checkpoint has those of the training state
    schedule: Callable  # step, from 0 -> learning rate
    teacher_head: Any  # what the loss needs of the teacher's weights; None: nothing


def make_objective(config: Config, vocab_size: int, *, sharded_vocab: bool = False) -> Objective:
    """The objective of the configuration, for a vocabulary of the tokenizer's size."""
    section = config.objective

    def loss(section: LossSection) -> TokenLoss:
        return TokenLoss(section.name, section.weight, section.reverse_weight, section.gate)

    return Objective(
        student=loss(section.student_loss),
        teacher=loss(section.teacher_loss),
        flawed=loss(section.flawed_loss),
        transition=loss(section.transition_loss),
        temperature=section.temperature,
        normalize=section.normalize,
        vocab_size=vocab_size,
        sharded_vocab=sharded_vocab,
    )


def make_programs(session: Session, *, memory: float | None = None) -> Programs:
    """Make the programs; nothing is compiled yet, and the models' weights may be ShapeDtypeStructs.

    Args:
      session: the models and the mesh.
      memory: bytes of a device, on which the evaluation's batch depends; None: as the device says.

    Raises:
      UserError: the losses need what rollout.targets does not keep, or the tokenizer can't encode the transition text.
    """
    section = session.config.optimizer
    schedule = make_schedule(
        section.schedule, peak=section.learning_rate, floor=section.min_learning_rate,
        steps=session.config.run.steps, warmup_ratio=section.warmup_ratio,
    )  # fmt: skip
    optimizer = make_optimizer(
        schedule, weight_decay=section.weight_decay, clip=section.clip, beta1=section.beta1, beta2=section.beta2
    )
    objective = make_objective(session.config, session.vocab_size, sharded_vocab=session.mesh.shape["tensor"] > 1)
    check_targets(objective, session.config.rollout.targets)

    def begin(params) -> TrainState:
        return init_state(params, optimizer)

    state = _with_shardings(session, jax.eval_shape(begin, session.student.params))
    shardings = jax.tree.map(lambda x: x.sharding, state)
    head = select_teacher_head(session.teacher, objective)
    on_policy, off_policy = _rollout_programs(session, score=head is not None)
    train_step = _train_step(session, optimizer, objective)
    return Programs(
        on_policy=on_policy,
        off_policy=off_policy,
        boundary=_boundary(session),
        init=jax.jit(begin, donate_argnums=0, out_shardings=shardings),
        state=state,
        update=jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None)),
        rollout_summary=jax.jit(_rollout_summary, out_shardings=replicated(session.mesh)),
        evaluation=None
        if isinstance(session.config.eval.preset, tuple)
        else make_evaluation_programs(session, session.config.eval, memory=memory),
        digest=weighted_sums,
        schedule=schedule,
        teacher_head=head,
    )


def _train_step(session: Session, optimizer, objective: Objective) -> Callable:
    """The update: (state, teacher head, trajectories) -> (state, metrics)."""
    config, section = session.config, session.config.optimizer
    transition = jnp.asarray(transition_ids(session), jnp.int32)
    # On a CPU storing activations costs more time than computing them again.
    remat = section.remat or ("full" if platform_of(session.mesh) == "cpu" else "none")
    update = make_update(
        session.student.config, optimizer, objective, accumulate=section.accumulate, remat=remat,
        dtype=section.compute_dtype,
        groups=batch_shard_count(session.mesh), mesh=session.mesh,
    )  # fmt: skip
    target = config.objective.target
    max_tokens = config.rollout.max_new_tokens if target == "spliced" else None
    logprobs = objective.needs_logprob and config.rollout.targets != "hidden"

    def train_step(state: TrainState, teacher_head: Any, trajectory: Trajectory):
        batch = build_targets(
            trajectory, target=target, transition=transition, max_tokens=max_tokens, logprobs=logprobs
        )
        return update(state, teacher_head, batch)

    return train_step


def _rollout_summary(trajectory: Trajectory) -> tuple[dict[str, jax.Array], jax.Array, Trajectory]:
    return statistics(trajectory), *samples(trajectory, SAMPLES)


def _boundary(session: Session) -> Callable | None:
    """The program that gives the next step's eps0; None unless monitor.boundary is `quantile`."""
    section = session.config.monitor
    if not section.enabled or section.boundary != "quantile":
        return None
    high = session.rollout_config.monitor.alarm_is_high
    return jax.jit(functools.partial(next_boundary, rate=section.rate, pace=section.pace, alarm_is_high=high))


def _rollout_programs(session: Session, *, score: bool) -> tuple[Callable | None, Callable | None]:
    """The programs of on-policy and off-policy steps; None where there is no such step.

    score: whether the teacher scores off-policy completions, because the loss compares with its distributions.
    """
    shardings = _trajectory_shardings(session)
    on_policy = run_per_group(rollout, session.mesh, (False, False, True, False))

    def generate(*arguments):  # compilations are counted by the function's name, whatever the mesh
        return on_policy(*arguments)

    def score_or_generate(teacher, prompts, completions, key, config):
        if completions is None:
            return generate_with_teacher(teacher, prompts, key, config, score=score)
        return from_completions(teacher, prompts, completions, config, score=score)

    off_policy = run_per_group(score_or_generate, session.mesh, (False, True, True, False))

    def complete(*arguments):
        return off_policy(*arguments)

    share = session.config.rollout.on_policy
    on, off = jax.jit(generate, out_shardings=shardings), jax.jit(complete, out_shardings=shardings)
    return on if share > 0 else None, off if share < 1 else None


def _trajectory_shardings(session: Session) -> Trajectory:
    """Output shardings of both rollout programs; they must match, or the update compiles once for each.

    Rows are sharded over the batch axes; the teacher's states, by far the largest array, over `tensor` as well.
    """
    rows, teacher = batch_sharding(session.mesh), session.teacher
    by_field: dict[str, Any] = dict.fromkeys(Trajectory.__dataclass_fields__, rows)
    shardings = Trajectory(**by_field)
    if teacher is not None and teacher.config.width % session.mesh.shape["tensor"] == 0:
        hidden = NamedSharding(session.mesh, PartitionSpec(*rows.spec, None, "tensor"))
        shardings = dataclasses.replace(shardings, teacher_hidden=hidden)
    return dataclasses.replace(shardings, counters=replicated(session.mesh))


def _with_shardings(session: Session, state: TrainState) -> TrainState:
    """The state's shapes with shardings: parameters and moments in the layout `update`, all else replicated."""
    shardings = layout(session.mesh, session.student.config, "update")
    structure = jax.tree.structure(shardings)

    def is_params(node) -> bool:
        return jax.tree.structure(node) == structure

    def with_sharding(node):
        if is_params(node):
            return jax.tree.map(lambda x, sharding: x.update(sharding=sharding), node, shardings)
        return node.update(sharding=replicated(session.mesh))

    return jax.tree.map(with_sharding, state, is_leaf=is_params)
