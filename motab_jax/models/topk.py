"""A distribution by its likeliest tokens: what a trajectory carries where the teacher's states would be too much."""

import flax.struct
import jax


@flax.struct.dataclass
class TopK:
    """The K likeliest tokens of each distribution; the tail's mass is 1 - sum(exp(logprobs))."""

    ids: jax.Array  # i32[...,K]
    logprobs: jax.Array  # float[...,K]; normalised over the whole vocabulary, in nats


def top_k_of(logits: jax.Array, k: int) -> TopK:
    """The k likeliest tokens of logits f32[...,V], likeliest first; k is at most V."""
    logprobs, ids = jax.lax.top_k(jax.nn.log_softmax(logits, axis=-1), min(k, logits.shape[-1]))
    return TopK(ids, logprobs)
