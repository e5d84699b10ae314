"""The teacher reads finished trajectories in one pass: where nothing is monitored, that is all it has to do."""

import jax
import jax.numpy as jnp

from motab_jax.models.transformer import Model, encode
from motab_jax.rollout.config import MonitorSpec, RolloutConfig
from motab_jax.rollout.counters import count
from motab_jax.rollout.teacher_scores import score_hidden
from motab_jax.rollout.trajectory import Trajectory
from motab_jax.runtime.mesh import replicate_in_group

# Tokens that are read at a time: activations of all rows would not fit a chip, nor a CPU's caches.
READ_TOKENS, READ_TOKENS_ON_CPU = 1 << 16, 1 << 10


def score_trajectories(teacher: Model, log: Trajectory, config: RolloutConfig) -> Trajectory:
    """The trajectory, in which nothing was discarded, with the teacher's targets as config.targets wants them.

    Log-probabilities are given only where the targets need the teacher's head, otherwise they are not a number, as step
    values, entropies and boundaries always are.
    """
    width, entries = log.prompt_tokens.shape[1], log.tokens.shape[1]
    place = jnp.arange(config.max_new_tokens, dtype=jnp.int32)[None]
    after = jnp.max(log.prompt_positions, axis=1, keepdims=True) + 1 + place
    after = jnp.where(log.used[:, : config.max_new_tokens], after, -1)
    tokens = jnp.concatenate([log.prompt_tokens, log.tokens[:, : config.max_new_tokens]], axis=1)
    positions = jnp.concatenate([log.prompt_positions, after], axis=1)
    # A state predicts the token behind it: the last token's is nobody's.
    hidden = _read(teacher, tokens[:, :-1], positions[:, :-1])[:, width - 1 :]
    hidden = jnp.pad(hidden, ((0, 0), (0, entries - config.max_new_tokens), (0, 0)))
    log = log.replace(counters=count(log.counters, teacher_scored=jnp.sum(log.used)))
    nobody = jnp.full_like(log.steps.value, jnp.nan)
    steps = log.steps.replace(value=nobody, entropy=nobody, boundary=nobody)
    log = log.replace(steps=steps, teacher_logprob=jnp.full_like(log.teacher_logprob, jnp.nan))
    if config.targets.kind == "hidden":
        return log.replace(teacher_hidden=replicate_in_group(hidden).astype(log.teacher_hidden.dtype))
    scores = score_hidden(
        teacher, hidden, log.tokens, MonitorSpec(), vocab_size=config.vocab_size, targets_k=config.targets_k
    )
    topk = scores.topk
    if topk is not None:
        topk = topk.replace(logprobs=topk.logprobs.astype(log.teacher_topk.logprobs.dtype))
    return log.replace(teacher_logprob=scores.logprob, teacher_topk=topk)


def _read(teacher: Model, tokens: jax.Array, positions: jax.Array) -> jax.Array:
    """Final hidden states [N,T,D] of texts i32[N,T], a group of rows at a time.

    A group takes every n-th row, so that rows cut over devices stay where they are.
    """
    rows, width = tokens.shape
    most = max(1, (READ_TOKENS_ON_CPU if teacher.unrolled else READ_TOKENS) // width)
    size = next(size for size in range(min(rows, most), 0, -1) if rows % size == 0)

    def cut(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(x.reshape(size, rows // size, width), 0, 1)

    def one(group) -> jax.Array:
        return encode(teacher.params, teacher.config, *group, max_text_columns=width if teacher.unrolled else None)[0]

    if size == rows:
        return one((tokens, positions))
    hidden = jax.lax.map(one, (cut(tokens), cut(positions)))
    return jnp.swapaxes(hidden, 0, 1).reshape(rows, width, -1)
