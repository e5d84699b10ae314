"""Distillation: divergences, targets, the chunked loss and the sharded update."""

from motab_jax.distill.divergence import adaptive_kl, cross_entropy, entropy_gated_kl, forward_kl, jsd, reverse_kl
from motab_jax.distill.objective import Objective, TokenLoss, check_targets
from motab_jax.distill.optimizer import make_optimizer, make_schedule
from motab_jax.distill.sampled import policy_gradient
from motab_jax.distill.targets import TargetBatch, build_targets
from motab_jax.distill.update import TrainState, init_state, make_update, select_teacher_head

__all__ = [
    "Objective",
    "TargetBatch",
    "TokenLoss",
    "TrainState",
    "adaptive_kl",
    "build_targets",
    "check_targets",
    "cross_entropy",
    "entropy_gated_kl",
    "forward_kl",
    "init_state",
    "jsd",
    "make_optimizer",
    "make_schedule",
    "make_update",
    "policy_gradient",
    "reverse_kl",
    "select_teacher_head",
]  # fmt: skip
