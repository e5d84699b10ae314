"""What a rollout did, counted on the device: behind occupancy, dead columns and the split of the seconds."""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Counters:
    """All f32[]. A column is one slot's part of a decoding step: B slots decode B columns at a time."""

    student_iterations: jax.Array  # segments that the student wrote
    teacher_iterations: jax.Array  # segments that the teacher wrote
    prefill_iterations: jax.Array  # segments of known text read in one pass
    packings: jax.Array  # times the tape was packed
    student_columns: jax.Array  # columns decoded by the student, idle slots included
    teacher_columns: jax.Array  # columns decoded by the teacher, idle slots included
    busy_columns: jax.Array  # decoded columns that hold a token
    tape_columns: jax.Array  # columns behind the cursor, over slots, summed over turns
    live_columns: jax.Array  # those of them that are alive
    teacher_scored: jax.Array  # written tokens that the teacher read or wrote
    teacher_reread: jax.Array  # tokens the teacher read again to intervene


def zero_counts() -> Counters:
    """Nothing has happened yet."""
    return Counters(*[jnp.float32(0.0)] * len(Counters.__dataclass_fields__))


def count(counters: Counters, **more) -> Counters:
    """The counters with these numbers added (any integer, bool or real scalars)."""
    return counters.replace(**{name: getattr(counters, name) + jnp.float32(value) for name, value in more.items()})
