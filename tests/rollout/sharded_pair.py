"""The pair on a mesh: weights sharded inside each group of devices, prompts over the groups."""

from typing import Any

import jax
import jax.numpy as jnp

from motab_jax.models.transformer import Model
from motab_jax.rollout import rollout
from motab_jax.rollout.row_groups import run_per_group
from motab_jax.runtime.mesh import batch_sharding, replicated
from motab_jax.session.placement import layout
from tests.rollout.pair import model, random_prompts, settings

GREEDY: dict[str, Any] = {"temperature": 0.0, "eps0": 0.9, "theta": 0.1}
PAIR = (3, 4)


def arguments(mesh, **changes):
    """The rollout's arguments: the pair in the layout `serve`, prompts over rows, all else replicated."""
    models = [
        Model(jax.device_put(model(n).params, layout(mesh, model(n).config, "serve")), model(n).config) for n in PAIR
    ]
    numbers = jax.tree.map(jnp.asarray, settings(**GREEDY, **changes))
    key, config = jax.device_put((jax.random.key(0), numbers), replicated(mesh))
    return *models, jax.device_put(random_prompts(), batch_sharding(mesh)), key, config


def compile_rollout(mesh, given):
    """The rollout, compiled for these arguments."""
    program = jax.jit(run_per_group(rollout, mesh, (False, False, True, False)))
    return program.lower(*given).compile()
