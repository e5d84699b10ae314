"""The table of weight names: layouts by hand, inverses, and completeness."""

import numpy as np
import pytest

from motab_jax.models.hf import weight_names
from tests.models.tiny import CONFIGS

each = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def test_layouts_by_hand():
    """q [width 2, heads 2, head 3] is stored as q_proj [heads * head, width]; o the other way round."""
    q = np.arange(12).reshape(2, 2, 3)
    assert weight_names.to_hf(("layers", "q"), q).tolist() == [[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]
    o = np.arange(12).reshape(2, 3, 2)
    assert weight_names.to_hf(("layers", "o"), o).tolist() == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]
    assert weight_names.to_hf(("layers", "q_bias"), np.arange(6).reshape(2, 3)).tolist() == [0, 1, 2, 3, 4, 5]
    assert weight_names.to_hf(("embed",), q[0]).tolist() == q[0].tolist()


@each
def test_from_hf_undoes_to_hf(config):
    rng = np.random.default_rng(0)
    for tensor in weight_names.tensors(config):
        spec = weight_names.flat_specs(config)[tensor.path]
        weight = rng.normal(size=spec.shape if tensor.layer is None else spec.shape[1:])
        stored = weight_names.to_hf(tensor.path, weight)
        assert stored.shape == tensor.shape
        np.testing.assert_array_equal(weight_names.from_hf(tensor.path, stored, weight.shape), weight)


@each
def test_every_weight_has_a_name(config):
    found = weight_names.tensors(config)
    assert {tensor.path for tensor in found} == set(weight_names.flat_specs(config))
    assert len({tensor.name for tensor in found}) == len(found)
    assert found[0].name == weight_names.EMBED_NAME
