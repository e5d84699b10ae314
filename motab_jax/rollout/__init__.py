"""Rollout with monitoring and backtracking: the student generates, the teacher scores and intervenes."""

from motab_jax.models.transformer import Model
from motab_jax.rollout.config import BacktrackSpec, MonitorSpec, Prompts, RolloutConfig, SamplingSpec, TargetSpec
from motab_jax.rollout.engine import rollout
from motab_jax.rollout.trajectory import StepTable, Trajectory
from motab_jax.runtime.callable_module import make_callable

__all__ = [
    "BacktrackSpec",
    "Model",
    "MonitorSpec",
    "Prompts",
    "RolloutConfig",
    "SamplingSpec",
    "StepTable",
    "TargetSpec",
    "Trajectory",
    "rollout",
]

make_callable(__name__)  # motab_jax.rollout(student, teacher, ...)
