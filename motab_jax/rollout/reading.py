"""The teacher reads finished trajectories, all in one pass: where nothing is monitored, that is all it has to do."""

import jax.numpy as jnp

from motab_jax.models.transformer import Model, encode
from motab_jax.rollout.config import RolloutConfig
from motab_jax.rollout.counters import count
from motab_jax.rollout.opinion import score
from motab_jax.rollout.trajectory import Trajectory


def read_finished(teacher: Model, log: Trajectory, config: RolloutConfig) -> Trajectory:
    """The trajectory, in which nothing was discarded, with the teacher's targets as config.targets wants them.

    Log-probabilities are given only where the targets need the teacher's head, otherwise they are not a number, as step
    values, entropies and boundaries always are.
    """
    entries = log.tokens.shape[1]
    place = jnp.arange(entries, dtype=jnp.int32)[None]
    after = jnp.max(log.prompt_positions, axis=1, keepdims=True) + 1 + place
    tokens = jnp.concatenate([log.prompt_tokens, log.tokens], axis=1)
    positions = jnp.concatenate([log.prompt_positions, jnp.where(log.used, after, -1)], axis=1)
    hidden, _ = encode(teacher.params, teacher.config, tokens, positions)
    hidden = hidden[:, -entries - 1 : -1]
    log = log.replace(counters=count(log.counters, teacher_scored=jnp.sum(log.used)))
    nobody = jnp.full_like(log.steps.value, jnp.nan)
    steps = log.steps.replace(value=nobody, entropy=nobody, boundary=nobody)
    log = log.replace(steps=steps, teacher_logprob=jnp.full_like(log.teacher_logprob, jnp.nan))
    if config.targets == "hidden":
        return log.replace(teacher_hidden=hidden.astype(log.teacher_hidden.dtype))
    opinion = score(
        teacher, hidden, log.tokens, vocab_size=config.vocab_size, entropy_top_k=config.entropy_top_k,
        targets_k=config.kept_k,
    )  # fmt: skip
    topk = opinion.topk
    if topk is not None:
        topk = topk.replace(logprobs=topk.logprobs.astype(log.teacher_topk.logprobs.dtype))
    return log.replace(teacher_logprob=opinion.logprob, teacher_topk=topk)
