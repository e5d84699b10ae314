"""Statistics of a batch of trajectories, and a few of its rows to show.

Both functions run on the devices, so that only their results are fetched to the host.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from motab_jax.data.sources import Source
from motab_jax.rollout.monitor import NO_BOUNDARY
from motab_jax.rollout.trajectory import FinishReason, Trajectory


def statistics(trajectory: Trajectory) -> dict[str, Num[Array, ""]]:
    """The metrics of a batch: tokens by source, strays, rewinds, step values, lengths, truncation.

    Rows that were left out of the rollout count nowhere.

    Args:
      trajectory: N rows, with the counters of their rollout.

    Returns:
      Numbers by the names of docs/records.md; NaN is the mean of nothing.
    """
    rows, used, kept, steps = trajectory.in_use, trajectory.used, trajectory.kept, trajectory.steps
    entered = jnp.arange(steps.start.shape[1])[None] < steps.count[:, None]
    student_steps, lengths = entered & (steps.source == Source.STUDENT), jnp.sum(kept, axis=1)
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
        "strayed": _mean(jnp.any(student_steps & steps.stray, axis=1).astype(jnp.float32), rows),
        "rewinds": _mean(trajectory.num_rewinds.astype(jnp.float32), rows),
        "value": _mean(steps.value, student_steps),
        "boundary": _mean(steps.boundary, student_steps & (jnp.abs(steps.boundary) < NO_BOUNDARY)),
        "length_mean": _mean(lengths.astype(jnp.float32), rows),
        "length_max": jnp.max(lengths),
        "truncated": _mean((trajectory.finish == FinishReason.LENGTH).astype(jnp.float32), rows),
    }


def samples(trajectory: Trajectory, count: int) -> tuple[Int[Array, "C"], Trajectory]:
    """Some rows to show: the first ones that were rewound, then others, then those that were left out.

    Args:
      trajectory: N rows.
      count: the number of rows to take; all, where there are fewer.

    Returns:
      The rows' indices, and the rows without the teacher's distributions, with the counters of all.
    """
    order = jnp.argsort(jnp.where(trajectory.in_use, trajectory.num_rewinds == 0, 2), stable=True)[:count]
    return order, jax.tree.map(lambda x: x[order] if x.ndim else x, trajectory.slim())


def _mean(values: Float[Array, "*N"], where: Bool[Array, "*N"]) -> Float[Array, ""]:
    return _ratio(jnp.sum(jnp.where(where, values, 0.0)), jnp.sum(where))


def _ratio(numerator: Num[Array, ""], denominator: Num[Array, ""]) -> Float[Array, ""]:
    """The quotient; NaN where the denominator is 0."""
    return jnp.where(denominator > 0, numerator / jnp.maximum(denominator, 1), jnp.nan)
