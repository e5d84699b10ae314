"""The configuration: one frozen, typed tree that every verb reads."""

from motab_jax.config.errors import EnvironmentFailure, PeerMissing, RunError, UserError
from motab_jax.config.loading import describe_keys, dump_config, load_config, valid_keys
from motab_jax.config.methods import METHODS
from motab_jax.config.sections import Config, LossSection

__all__ = [
    "METHODS",
    "Config",
    "EnvironmentFailure",
    "LossSection",
    "PeerMissing",
    "RunError",
    "UserError",
    "describe_keys",
    "dump_config",
    "load_config",
    "valid_keys",
]
