"""The optimizer: optax AdamW behind a global-norm clip, with warm-up and a named schedule.

Its state is float32 whatever the parameters' dtype. Left out: other optimizers; any optax chain fits `make_update`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree


def make_schedule(kind: str, *, peak: float, floor: float, steps: int, warmup_ratio: float) -> optax.Schedule:
    """The learning rate by update: linear warm-up, then a decay from peak to floor.

    >>> schedule = make_schedule("linear", peak=1.0, floor=0.0, steps=12, warmup_ratio=1 / 6)
    >>> [float(schedule(update)) for update in (0, 1, 2, 7, 12)]
    [0.5, 1.0, 1.0, 0.5, 0.0]

    Args:
      kind: `cosine` or `linear` decay, or `constant` at the peak.
      peak: the learning rate after the warm-up.
      floor: the learning rate of the last update.
      steps: the number of updates.
      warmup_ratio: the share of the updates that are warm-up.

    Returns:
      The schedule.
    """
    warmup_steps = round(warmup_ratio * steps)
    decay_steps = max(steps - warmup_steps, 1)
    decay = {
        "cosine": optax.cosine_decay_schedule(peak, decay_steps, alpha=floor / peak),
        "linear": optax.linear_schedule(peak, floor, decay_steps),
        "constant": optax.constant_schedule(peak),
    }[kind]
    if warmup_steps == 0:
        return decay
    # The first update has the learning rate peak / warmup_steps, not 0.
    warmup = optax.linear_schedule(peak / warmup_steps, peak, max(warmup_steps - 1, 1))
    return optax.join_schedules([warmup, decay], [warmup_steps])


def make_optimizer(
    schedule: optax.Schedule, *, weight_decay: float, clip: float, beta1: float, beta2: float
) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) behind a clip of the gradient's global norm.

    Args:
      schedule: the learning rate by update.
      weight_decay: of all weights but norms and biases.
      clip: the largest global norm; 0: no clipping.
      beta1: decay of the first moment.
      beta2: decay of the second moment.

    Returns:
      The transformation.
    """
    adamw = optax.adamw(schedule, b1=beta1, b2=beta2, weight_decay=weight_decay, mask=decay_mask)
    return optax.chain(optax.clip_by_global_norm(clip), adamw) if clip > 0 else adamw


def decay_mask(params: PyTree) -> dict:
    """True for weights that decay: all but norms and biases, which are recognised by their names."""

    def decays(path, _) -> bool:
        return not path[-1].key.endswith(("norm", "bias"))

    return jax.tree_util.tree_map_with_path(decays, params)


def to_float32(tree: PyTree[Array]) -> Any:
    """The tree in float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)
