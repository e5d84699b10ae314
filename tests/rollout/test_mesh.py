"""Rollout on 8 devices, the prompts cut over rows, equals rollout on one."""

import jax
import jax.numpy as jnp

from motab_jax.rollout import Prompts
from motab_jax.runtime.mesh import batch_sharding, make_mesh, replicated
from tests.rollout.pair import ROWS, assert_same_row, model, random_prompts, row_of, run, settings

GREEDY = {"temperature": 0.0, "eps0": 0.9, "theta": 0.1}


def test_eight_devices_equal_one(devices):
    mesh = make_mesh(-1, 1, 1)
    writer, judge = (jax.device_put(model(seed), replicated(mesh)) for seed in (3, 4))
    prompts: Prompts = jax.device_put(random_prompts(), batch_sharding(mesh))
    key, config = jax.device_put((jax.random.key(0), jax.tree.map(jnp.asarray, settings(**GREEDY))), replicated(mesh))
    sharded = run(writer, judge, prompts, key, config)
    assert len(sharded.tokens.sharding.device_set) == len(devices)
    assert not sharded.tokens.sharding.is_fully_replicated
    alone = jax.device_get(run(model(3), model(4), random_prompts(), jax.random.key(0), settings(**GREEDY)))
    sharded = jax.device_get(sharded)
    assert alone.num_rewinds.sum() > ROWS // 2
    for row in range(ROWS):
        assert_same_row(row_of(sharded, row), row_of(alone, row))
