"""The teacher's relayout, a weight at a time: the same as all at once, and no program takes more than its weight."""

import inspect
import types

import jax
import numpy as np
import pytest

from motab_jax.models.architecture import ModelConfig
from motab_jax.models.hf.weight_names import load_shardings
from motab_jax.models.transformer import Model, init
from motab_jax.runtime.mesh import make_mesh
from motab_jax.session.placement import serving, teacher_serving
from motab_jax.training.run import begin

CONFIG = ModelConfig("qwen3", 48, 16, 32, 2, 4, 2, 4, 64, qk_norm=True)
MESHES = [(1, 1, 1), (2, 1, 4)]  # the second copies each key-value head


def on(sizes):
    """A mesh, and parameters as they are read on it."""
    mesh = make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
    return mesh, jax.jit(lambda: init(CONFIG, jax.random.key(0)), out_shardings=load_shardings(mesh, CONFIG))()


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("sizes", MESHES)
def test_it_gives_what_one_program_gives(sizes, scan):
    mesh, params = on(sizes)
    alone = teacher_serving(mesh, CONFIG, scan_layers=scan)(params)
    together = serving(mesh, CONFIG, scan_layers=scan)(params)
    assert isinstance(alone, Model) and jax.tree.structure(alone) == jax.tree.structure(together)
    for x, y in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        assert x.sharding == y.sharding
        np.testing.assert_array_equal(x, y)


def test_a_session_holds_no_deleted_weights_once_the_run_has_begun():
    """A fresh run: the state takes the student's weights, and the session keeps their shapes."""
    _, params = on(MESHES[0])
    session = types.SimpleNamespace(student=Model(params, CONFIG))
    programs = types.SimpleNamespace(init=jax.jit(lambda params: params, donate_argnums=0))
    run = types.SimpleNamespace(session=session, programs=programs)
    state, _ = inspect.unwrap(begin)(run, types.SimpleNamespace(latest=lambda: None))
    shapes = jax.tree.leaves(session.student.params)
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in shapes) and len(shapes) == len(jax.tree.leaves(state))
    assert not any(x.is_deleted() for x in jax.tree.leaves(state))
