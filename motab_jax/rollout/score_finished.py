"""The teacher scores finished trajectories in one forward pass.

Where no monitor is on, this is all that the teacher does. Left out: scoring during the rollout (engine.py).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from motab_jax.models.transformer import Model, encode
from motab_jax.rollout.config import MonitorSpec, RolloutConfig
from motab_jax.rollout.counters import count
from motab_jax.rollout.teacher_scores import score_hidden
from motab_jax.rollout.trajectory import Trajectory
from motab_jax.runtime.mesh import replicate_in_group

# Tokens of one forward pass: the activations of all rows would not fit a chip's memory, nor a CPU's caches.
PASS_TOKENS, PASS_TOKENS_ON_CPU = 1 << 16, 1 << 10


def score_trajectories(teacher: Model, log: Trajectory, config: RolloutConfig) -> Trajectory:
    """The trajectories with the teacher's targets.

    Args:
      teacher: the model that scores.
      log: trajectories in which nothing was discarded.
      config: `config.targets` says what is kept of the teacher's distributions.

    Returns:
      The trajectories. Log-probabilities are NaN where the targets are hidden states, for the teacher's head is not
      computed then; step values, entropies and boundaries are always NaN.
    """
    width, entries = log.prompt_tokens.shape[1], log.tokens.shape[1]
    index = jnp.arange(config.max_new_tokens, dtype=jnp.int32)[None]
    position = jnp.max(log.prompt_positions, axis=1, keepdims=True) + 1 + index
    position = jnp.where(log.used[:, : config.max_new_tokens], position, -1)
    tokens = jnp.concatenate([log.prompt_tokens, log.tokens[:, : config.max_new_tokens]], axis=1)
    positions = jnp.concatenate([log.prompt_positions, position], axis=1)
    # A hidden state predicts the next token, so that of the last token is not needed.
    hidden = _encode_in_groups(teacher, tokens[:, :-1], positions[:, :-1])[:, width - 1 :]
    hidden = jnp.pad(hidden, ((0, 0), (0, entries - config.max_new_tokens), (0, 0)))
    log = log.replace(counters=count(log.counters, teacher_scored=jnp.sum(log.used)))
    nan = jnp.full_like(log.steps.value, jnp.nan)
    steps = log.steps.replace(value=nan, entropy=nan, boundary=nan)
    log = log.replace(steps=steps, teacher_logprob=jnp.full_like(log.teacher_logprob, jnp.nan))
    if config.targets.kind == "hidden":
        assert log.teacher_hidden is not None
        return log.replace(teacher_hidden=replicate_in_group(hidden).astype(log.teacher_hidden.dtype))
    scores = score_hidden(
        teacher, hidden, log.tokens, MonitorSpec(), vocab_size=config.vocab_size, targets_k=config.targets_k
    )
    topk = scores.topk
    if topk is not None and log.teacher_topk is not None:
        topk = topk.replace(logprobs=topk.logprobs.astype(log.teacher_topk.logprobs.dtype))
    return log.replace(teacher_logprob=scores.logprob, teacher_topk=topk)


def _encode_in_groups(teacher: Model, tokens: Int[Array, "N T"], positions: Int[Array, "N T"]) -> Float[Array, "N T D"]:
    """The final hidden states, a group of rows at a time.

    A group takes every n-th row, so that rows sharded over devices stay on their devices.
    """
    rows, width = tokens.shape
    max_rows = max(1, (PASS_TOKENS_ON_CPU if teacher.unrolled else PASS_TOKENS) // width)
    size = next(size for size in range(min(rows, max_rows), 0, -1) if rows % size == 0)

    def grouped(x: Int[Array, "N T"]) -> Int[Array, "G n T"]:
        return jnp.swapaxes(x.reshape(size, rows // size, width), 0, 1)

    def encode_group(group) -> Float[Array, "n T D"]:
        return encode(teacher.params, teacher.config, *group, max_sequence_columns=width if teacher.unrolled else None)[
            0
        ]

    if size == rows:
        return encode_group((tokens, positions))
    hidden = jax.lax.map(encode_group, (grouped(tokens), grouped(positions)))
    return jnp.swapaxes(hidden, 0, 1).reshape(rows, width, -1)
