"""Students cut out of their teachers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motab_jax.config import UserError
from motab_jax.models import forward
from motab_jax.models.prune import init_from_teacher
from tests.models.tiny import CONFIGS, random_params


def test_takes_the_named_layers():
    config = CONFIGS["qwen3"]
    params = random_params(config)
    student, smaller = init_from_teacher(params, config, [0, 2])
    assert smaller.num_layers == 2
    np.testing.assert_array_equal(student["layers"]["q"], params["layers"]["q"][np.array([0, 2])])
    np.testing.assert_array_equal(student["embed"], params["embed"])
    assert forward(student, smaller, jnp.array([[1, 2, 3]])).shape == (1, 3, config.vocab_size)


def test_all_layers_are_the_teacher():
    config = CONFIGS["llama"]
    params = random_params(config)
    student, same = init_from_teacher(params, config, range(3))
    assert same == config
    jax.tree.map(np.testing.assert_array_equal, student, params)


def test_a_donated_student_leaves_the_teacher_alone():
    config = CONFIGS["qwen2"]
    params = random_params(config)
    student, _ = init_from_teacher(params, config, [0, 1, 2])
    jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(student)
    assert np.isfinite(np.asarray(params["embed"])).all()
    assert not any(x.is_deleted() for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([0, 3, 7], r"layers 3, 7: the teacher's are 0\.\.2"),
        ([-1], "layers -1"),
        ([], "empty"),
        ([1, 1], "layers 1 .*once"),
    ],
)
def test_refusals(layers, message):
    config = CONFIGS["qwen3"]
    with pytest.raises(UserError, match=message):
        init_from_teacher(random_params(config), config, layers)
