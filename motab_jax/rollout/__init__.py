"""Rollout with monitoring and backtracking: generation by the student under the teacher's eye."""

from motab_jax.models.transformer import Model
from motab_jax.rollout.config import Prompts, RolloutConfig
from motab_jax.rollout.engine import rollout
from motab_jax.rollout.trajectory import StepTable, Trajectory

__all__ = ["Model", "Prompts", "RolloutConfig", "StepTable", "Trajectory", "rollout"]
