"""What a rollout did, counted on the device: occupancy, dead columns, and where its seconds go are derived from it."""

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Num

Count = Float32[Array, ""] | float  # a float on the host


class Counters(flax.struct.PyTreeNode):
    """A column is one slot's part of a decoding step: B slots decode B columns at a time."""

    student_iterations: Count  # segments that the student generated
    teacher_iterations: Count  # segments that the teacher generated
    prefill_iterations: Count  # segments of known tokens, read in one pass
    packings: Count  # times the tape was packed
    student_columns: Count  # columns decoded by the student, idle slots included
    teacher_columns: Count  # columns decoded by the teacher, idle slots included
    busy_columns: Count  # decoded columns that hold a token
    tape_columns: Count  # columns before the cursor, over slots, summed over iterations
    live_columns: Count  # those of them that are live
    teacher_scored: Count  # generated tokens that the teacher scored or generated
    teacher_reread: Count  # tokens that the teacher prefilled again to intervene


def zero_counts() -> Counters:
    """Nothing has happened yet."""
    return Counters(*[jnp.float32(0.0)] * len(Counters.__dataclass_fields__))


def count(counters: Counters, **more: Num[Array, ""] | Bool[Array, ""] | int | bool) -> Counters:
    """The counters with these numbers added."""
    return counters.replace(**{name: getattr(counters, name) + jnp.float32(value) for name, value in more.items()})
