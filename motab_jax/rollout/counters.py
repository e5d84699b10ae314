"""Counters of a rollout, on the device: occupancy, dead columns and the phases' seconds are derived from them."""

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Num


class Counters(flax.struct.PyTreeNode):
    """Counts of a rollout. A column is one slot's token of a decode step: B slots decode B columns at a time."""

    student_iterations: Float32[Array, ""]  # segments that the student generated
    teacher_iterations: Float32[Array, ""]  # segments that the teacher generated
    prefill_iterations: Float32[Array, ""]  # segments of known tokens, prefilled in one pass
    packings: Float32[Array, ""]  # times the tape was packed
    student_columns: Float32[Array, ""]  # columns decoded by the student, idle slots included
    teacher_columns: Float32[Array, ""]  # columns decoded by the teacher, idle slots included
    busy_columns: Float32[Array, ""]  # decoded columns that hold a token
    tape_columns: Float32[Array, ""]  # columns before the cursor, over slots, summed over iterations
    live_columns: Float32[Array, ""]  # those of them that are live
    teacher_scored: Float32[Array, ""]  # generated tokens that the teacher scored or generated
    teacher_reread: Float32[Array, ""]  # tokens that the teacher prefilled again to intervene


def zero_counts() -> Counters:
    """All counters at zero."""
    return Counters(*[jnp.float32(0.0)] * len(Counters.__dataclass_fields__))


def count(counters: Counters, **increments: Num[Array, ""] | Bool[Array, ""] | int | bool) -> Counters:
    """The counters with the increments added, by the counter's name."""
    return counters.replace(
        **{name: getattr(counters, name) + jnp.float32(value) for name, value in increments.items()}
    )
