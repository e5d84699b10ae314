"""A batch of trajectories in a few numbers, and the few of its rows that are worth reading.

Computed where the trajectories lie, so that nothing else of them is fetched. Both functions are pure.
"""

import jax
import jax.numpy as jnp

from motab_jax.data.sources import Source
from motab_jax.rollout.monitor import NO_BOUNDARY
from motab_jax.rollout.trajectory import FinishReason, Trajectory


def statistics(trajectory: Trajectory) -> dict[str, jax.Array]:
    """Figures for the metrics: tokens by writer, strays, rewinds, values, lengths, truncation.

    Numbers i32[] or f32[]; NaN is the mean of nothing.
    """
    used, kept, steps = trajectory.used, trajectory.kept, trajectory.steps
    real = jnp.arange(steps.start.shape[1])[None] < steps.count[:, None]
    student, lengths = real & (steps.source == Source.STUDENT), jnp.sum(kept, axis=1)
    counters = trajectory.counters
    decoded = counters.student_columns + counters.teacher_columns
    emitted = jnp.maximum(jnp.sum(used), 1)
    return {
        "occupancy": _ratio(counters.busy_columns, decoded),
        "dead_columns": 1.0 - _ratio(counters.live_columns, jnp.where(decoded > 0, counters.tape_columns, 0)),
        "teacher_scored_per_token": counters.teacher_scored / emitted,
        "teacher_reread_per_token": counters.teacher_reread / emitted,
        "tokens_student": jnp.sum(used & (trajectory.sources == Source.STUDENT)),
        "tokens_teacher": jnp.sum(used & (trajectory.sources == Source.TEACHER)),
        "tokens_discarded": jnp.sum(used & ~kept),
        "strayed": jnp.mean(jnp.any(student & steps.stray, axis=1).astype(jnp.float32)),
        "rewinds": jnp.mean(trajectory.num_rewinds.astype(jnp.float32)),
        "value": _mean(steps.value, student),
        "boundary": _mean(steps.boundary, student & (jnp.abs(steps.boundary) < NO_BOUNDARY)),
        "length_mean": jnp.mean(lengths.astype(jnp.float32)),
        "length_max": jnp.max(lengths),
        "truncated": jnp.mean((trajectory.finish == FinishReason.LENGTH).astype(jnp.float32)),
    }


def samples(trajectory: Trajectory, count: int) -> tuple[jax.Array, Trajectory]:
    """(numbers i32[count] of some rows, those rows): the first ones that were rewound, then others."""
    order = jnp.argsort(trajectory.num_rewinds == 0, stable=True)[:count]
    rows = trajectory.slim().replace(counters=None)
    return order, jax.tree.map(lambda x: x[order], rows)


def _mean(values: jax.Array, where: jax.Array) -> jax.Array:
    return _ratio(jnp.sum(jnp.where(where, values, 0.0)), jnp.sum(where))


def _ratio(one: jax.Array, other: jax.Array) -> jax.Array:
    """one / other, NaN where other is 0."""
    return jnp.where(other > 0, one / jnp.maximum(other, 1), jnp.nan)
