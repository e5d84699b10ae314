"""The run's jitted programs: rollout, its like for text of others, update; and the training state they work on."""

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
from motab_jax.rollout import Trajectory, rollout
from motab_jax.rollout.monitor import next_boundary
from motab_jax.rollout.off_policy import from_completions, generate_with_teacher
from motab_jax.rollout.row_groups import run_per_group
from motab_jax.rollout.summary import samples, statistics
from motab_jax.runtime.mesh import batch_shard_count, batch_sharding, platform_of, replicated
from motab_jax.session.placement import layout
from motab_jax.session.session import Session, transition_ids

SAMPLES = 3  # rows of a step that are described in full


@dataclasses.dataclass(frozen=True)
class Programs:
    """The run's jitted programs, each compiled once, and the schedule for the log."""

    rollout: Callable | None  # None: no step is on-policy
    off_policy: Callable | None  # None: every step is
    boundary: Callable | None  # (eps0, step table) -> the next eps0; None: it stays
    init: Callable  # the student's parameters, which it uses up -> the state a run begins with
    state: TrainState  # its shapes, dtypes and shardings (the layout `update`)
    update: Callable
    describe: Callable  # slim trajectories -> (figures, numbers of some rows, those rows), on every host
    schedule: Callable
    teacher_head: Any


def make_objective(config: Config, vocab_size: int) -> Objective:
    """The objective section as the loss's static numbers."""
    section = config.objective

    def loss(found: LossSection) -> TokenLoss:
        return TokenLoss(found.name, found.weight, found.reverse_weight, found.gate)

    return Objective(
        student=loss(section.student_loss),
        teacher=loss(section.teacher_loss),
        flawed=loss(section.flawed_loss),
        transition=loss(section.transition_loss),
        temperature=section.temperature,
        normalize=section.normalize,
        vocab_size=vocab_size,
    )


def make_programs(session: Session) -> Programs:
    """The programs. Nothing is compiled yet; the models' weights may be shapes alone."""
    section = session.config.optimizer
    schedule = make_schedule(
        section.schedule, peak=section.learning_rate, floor=section.min_learning_rate,
        steps=session.config.run.steps, warmup_ratio=section.warmup_ratio,
    )  # fmt: skip
    optimizer = make_optimizer(
        schedule, weight_decay=section.weight_decay, clip=section.clip, beta1=section.beta1, beta2=section.beta2
    )
    objective = make_objective(session.config, session.vocab_size)
    check_targets(objective, session.config.rollout.targets)

    def begin(params) -> TrainState:
        return init_state(params, optimizer)

    state = _lay_out(session, jax.eval_shape(begin, session.student.params))
    places = jax.tree.map(lambda x: x.sharding, state)
    head = select_teacher_head(session.teacher, objective)
    on_policy, off_policy = _writers(session, score=head is not None)
    train_step = _train_step(session, optimizer, objective)
    return Programs(
        rollout=on_policy,
        off_policy=off_policy,
        boundary=_boundary(session),
        init=jax.jit(begin, donate_argnums=0, out_shardings=places),
        state=state,
        update=jax.jit(train_step, donate_argnums=0, out_shardings=(places, None)),
        describe=jax.jit(_describe, out_shardings=replicated(session.mesh)),
        schedule=schedule,
        teacher_head=head,
    )


def _train_step(session: Session, optimizer, objective: Objective) -> Callable:
    """The function (state, teacher's head, trajectory) -> (state, figures)."""
    config, section = session.config, session.config.optimizer
    transition = jnp.asarray(transition_ids(session), jnp.int32)
    # On a CPU writing activations to memory and back costs more than computing them again.
    remat = section.remat or ("full" if platform_of(session.mesh) == "cpu" else "none")
    update = make_update(
        session.student.config, optimizer, objective, accumulate=section.accumulate, remat=remat,
        dtype=section.compute_dtype,
        groups=batch_shard_count(session.mesh), mesh=session.mesh,
    )  # fmt: skip
    target = config.objective.target
    room = config.rollout.max_new_tokens if target == "spliced" else None
    logprobs = objective.needs_logprob and config.rollout.targets != "hidden"

    def train_step(state: TrainState, teacher_head, trajectory):
        batch = build_targets(trajectory, target=target, transition=transition, max_tokens=room, logprobs=logprobs)
        return update(state, teacher_head, batch)

    return train_step


def _describe(trajectory: Trajectory):
    return statistics(trajectory), *samples(trajectory, SAMPLES)


def _boundary(session: Session) -> Callable | None:
    """The program that lets the boundary follow the steps' values, if it is to."""
    section = session.config.monitor
    if not section.enabled or section.boundary != "quantile":
        return None
    high = session.rollout.monitor.alarm_is_high
    return jax.jit(functools.partial(next_boundary, rate=section.rate, pace=section.pace, alarm_is_high=high))


def _writers(session: Session, *, score: bool) -> tuple[Callable | None, Callable | None]:
    """The programs of on-policy and of other steps, each None where there is no such step.

    The second is called with (teacher, prompts, the data's completions or None, key, numbers); score: whether the loss
    compares with the teacher's distributions, for which it must score completions not its own.
    """
    places = _places(session)
    on_policy = run_per_group(rollout, session.mesh, (False, False, True, False))

    def generate(*arguments):  # compilations are counted by the function's name, whatever the mesh
        return on_policy(*arguments)

    def score_or_generate(teacher, prompts, text, key, numbers):
        if text is None:
            return generate_with_teacher(teacher, prompts, key, numbers, score=score)
        return from_completions(teacher, prompts, text, numbers, score=score)

    off_policy = run_per_group(score_or_generate, session.mesh, (False, True, True, False))

    def complete(*arguments):
        return off_policy(*arguments)

    share = session.config.rollout.on_policy
    on, off = jax.jit(generate, out_shardings=places), jax.jit(complete, out_shardings=places)
    return on if share > 0 else None, off if share < 1 else None


def _places(session: Session) -> Trajectory:
    """Where trajectories lie, of whatever program, or the update would be compiled for each: rows with their group.

    The teacher's states, much the largest, are also cut over `tensor`.
    """
    rows, teacher = batch_sharding(session.mesh), session.teacher
    by_field: dict[str, Any] = dict.fromkeys(Trajectory.__dataclass_fields__, rows)
    places = Trajectory(**by_field)
    if teacher is not None and teacher.config.width % session.mesh.shape["tensor"] == 0:
        hidden = NamedSharding(session.mesh, PartitionSpec(*rows.spec, None, "tensor"))
        places = dataclasses.replace(places, teacher_hidden=hidden)
    return dataclasses.replace(places, counters=replicated(session.mesh))


def _lay_out(session: Session, state: TrainState) -> TrainState:
    """The state's shapes with their places: parameters and moments in the update layout, all else on all devices."""
    places = layout(session.mesh, session.student.config, "update")
    structure = jax.tree.structure(places)

    def is_params(node) -> bool:
        return jax.tree.structure(node) == structure

    def put(node):
        if is_params(node):
            return jax.tree.map(lambda x, place: x.update(sharding=place), node, places)
        return node.update(sharding=replicated(session.mesh))

    return jax.tree.map(put, state, is_leaf=is_params)
