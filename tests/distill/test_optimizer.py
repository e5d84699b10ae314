"""Learning rates by hand, what decays, and the clip."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from motab_jax.distill import make_optimizer, make_schedule
from motab_jax.distill.optimizer import decay_mask, to_float32
from tests.distill.batches import STUDENT, TEACHER, params_of, teacher

PEAK, FLOOR = 1e-3, 1e-4


def rates(kind: str, steps: list[int], *, total: int = 110, warmup: int = 10) -> list[float]:
    """Learning rates at some steps."""
    schedule = make_schedule(kind, peak=PEAK, floor=FLOOR, steps=total, warmup_ratio=warmup / total)
    return [float(np.asarray(schedule(jnp.int32(step)))) for step in steps]


def moved_by(params: dict[str, Any], updates: optax.Updates) -> dict[str, Any]:
    """The parameters after an update."""
    return cast("dict[str, Any]", optax.apply_updates(params, updates))


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_warm_up_is_linear_and_moves_at_once(kind):
    assert rates(kind, [0, 1, 4, 9, 10]) == pytest.approx([1e-4, 2e-4, 5e-4, 1e-3, 1e-3])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cosine", [PEAK, FLOOR + (PEAK - FLOOR) * (1 + np.cos(np.pi / 4)) / 2, (PEAK + FLOOR) / 2, FLOOR, FLOOR]),
        ("linear", [PEAK, PEAK - (PEAK - FLOOR) / 4, (PEAK + FLOOR) / 2, FLOOR, FLOOR]),
        ("constant", [PEAK] * 5),
    ],
)
def test_after_the_warm_up(kind, expected):
    assert rates(kind, [10, 35, 60, 110, 500]) == pytest.approx(expected)
    assert rates(kind, [0, 25, 50, 100, 500], total=100, warmup=0) == pytest.approx(expected)


def test_norms_and_biases_do_not_decay():
    for params, config in ((params_of(), STUDENT), (teacher().params, TEACHER)):
        flat = dict(jax.tree_util.tree_flatten_with_path(decay_mask(params))[0])
        names = {path[-1].key: decays for path, decays in flat.items()}
        for name, decays in names.items():
            assert decays == (name in {"embed", "head", "q", "k", "v", "o", "gate", "up", "down"}), name
        assert {"q_norm", "k_norm"} <= names.keys() if config.qk_norm else {"q_bias", "v_bias"} <= names.keys()


def test_decay_is_decoupled_and_masked():
    params = params_of()
    optimizer = make_optimizer(optax.constant_schedule(0.1), weight_decay=0.5, clip=1.0, beta1=0.9, beta2=0.95)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(optimizer.update)(zero, jax.jit(optimizer.init)(params), params)
    moved = moved_by(params, updates)
    np.testing.assert_allclose(moved["layers"]["q"], 0.95 * params["layers"]["q"], rtol=1e-6)
    np.testing.assert_allclose(moved["embed"], 0.95 * params["embed"], rtol=1e-6)
    for name in ("attn_norm", "mlp_norm", "q_norm", "k_norm"):
        np.testing.assert_array_equal(moved["layers"][name], params["layers"][name])
    np.testing.assert_array_equal(moved["final_norm"], params["final_norm"])


def test_adamw_by_hand_with_clipping():
    """Two steps on one number: the gradients 3 and 0.5, clipped to 1."""
    params = {"q": jnp.array([2.0])}
    optimizer = make_optimizer(optax.constant_schedule(0.1), weight_decay=0.0, clip=1.0, beta1=0.9, beta2=0.99)
    state = optimizer.init(params)
    first, second, value = 0.0, 0.0, 2.0
    for step, grad in enumerate([3.0, 0.5], start=1):
        updates, state = optimizer.update({"q": jnp.array([grad])}, state, params)
        params = moved_by(params, updates)
        clipped = min(grad, 1.0)
        first, second = 0.9 * first + 0.1 * clipped, 0.99 * second + 0.01 * clipped**2
        value -= 0.1 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.99**step)) + 1e-8)
        assert float(params["q"][0]) == pytest.approx(value, rel=1e-5)


def test_a_clip_of_zero_is_none():
    schedule = optax.constant_schedule(0.1)
    with_clip, without = (
        make_optimizer(schedule, weight_decay=0.0, clip=clip, beta1=0.9, beta2=0.99) for clip in (1e9, 0.0)
    )
    params = {"q": jnp.array([2.0, 1.0])}
    grads = {"q": jnp.array([300.0, 1e-3])}
    one, other = (moved_by(params, o.update(grads, o.init(params), params)[0]) for o in (with_clip, without))
    np.testing.assert_allclose(one["q"], other["q"], rtol=1e-6)


def test_widen():
    assert {x.dtype for x in jax.tree.leaves(to_float32(params_of(dtype=jnp.bfloat16)))} == {jnp.dtype("float32")}
