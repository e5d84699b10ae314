"""Distillation: divergences, targets, the chunked loss and the sharded update."""

from motab_jax.distill.divergence import cross_entropy, forward_kl, jsd, reverse_kl
from motab_jax.distill.objective import Objective, TokenLoss, check_targets
from motab_jax.distill.optimizer import make_optimizer, make_schedule
from motab_jax.distill.targets import TargetBatch, build_targets
from motab_jax.distill.update import TrainState, head_of, init_state, make_update

__all__ = [
    "Objective", "TargetBatch", "TokenLoss", "TrainState", "build_targets", "check_targets", "cross_entropy",
    "forward_kl", "head_of", "init_state", "jsd", "make_optimizer", "make_schedule", "make_update", "reverse_kl",
]  # fmt: skip
