"""motab_jax: reasoning distillation with monitored trajectories and backtracking, in JAX (MOTAB, arXiv 2605.19433).

The student generates, the teacher scores each step, and where the student strays the trajectory goes back to the last
safe state and the teacher generates from there; then the student is trained on the result. The verbs run as
`python -m motab_jax.train` and so on. The main calls are here by name, loaded when first used:

    import motab_jax

    config = motab_jax.load_config("my.yaml", ["run.steps=100"])
    motab_jax.train(config)
    params, model_config = motab_jax.load_pretrained("runs/my/export")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from motab_jax.config import Config, UserError, load_config
    from motab_jax.distill import forward_kl, jsd, reverse_kl
    from motab_jax.evaluation.evaluator import open_evaluators
    from motab_jax.models import Model, ModelConfig, forward, load_pretrained, save_pretrained
    from motab_jax.rollout import Prompts, RolloutConfig, Trajectory, rollout
    from motab_jax.session.session import Session, open_session
    from motab_jax.training.loop import train

__version__ = "0.1.0"

__all__ = [
    "Config",
    "Model",
    "ModelConfig",
    "Prompts",
    "RolloutConfig",
    "Session",
    "Trajectory",
    "UserError",
    "forward",
    "forward_kl",
    "jsd",
    "load_config",
    "load_pretrained",
    "open_evaluators",
    "open_session",
    "reverse_kl",
    "rollout",
    "save_pretrained",
    "train",
]

_MODULES = {
    "motab_jax.config": ("Config", "UserError", "load_config"),
    "motab_jax.distill": ("forward_kl", "jsd", "reverse_kl"),
    "motab_jax.evaluation.evaluator": ("open_evaluators",),
    "motab_jax.models": ("Model", "ModelConfig", "forward", "load_pretrained", "save_pretrained"),
    "motab_jax.rollout": ("Prompts", "RolloutConfig", "Trajectory"),
    "motab_jax.session.session": ("Session", "open_session"),
}


def __getattr__(name: str) -> Any:
    """Import one of the main calls when it is first used, so that `import motab_jax` and `--help` stay fast."""
    import importlib

    if name in ("train", "rollout"):  # modules that can be called: see runtime/callable_module.py
        return importlib.import_module(f"motab_jax.{name}")
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'motab_jax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
