"""A distribution by its likeliest tokens: a trajectory keeps it where the teacher's states would be too large."""

import flax.struct
import jax
from jaxtyping import Array, Float, Int


class TopK(flax.struct.PyTreeNode):
    """The K likeliest tokens of each distribution; the tail's mass is 1 - sum(exp(logprobs))."""

    ids: Int[Array, "*N K"]
    logprobs: Float[Array, "*N K"]  # normalised over the whole vocabulary, in nats


def top_k_of(logits: Float[Array, "*N V"], k: int) -> TopK:
    """The k likeliest tokens of each distribution, likeliest first, or all V where k is more.

    >>> import jax.numpy as jnp
    >>> top_k_of(jnp.array([0.0, 3.0, 1.0]), 2).ids.tolist()
    [1, 2]
    """
    logprobs, ids = jax.lax.top_k(jax.nn.log_softmax(logits, axis=-1), min(k, logits.shape[-1]))
    return TopK(ids, logprobs)
