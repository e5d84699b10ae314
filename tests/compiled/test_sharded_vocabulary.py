"""What is computed from logits whose vocabulary 8 devices share: few collectives, small ones, and the same results."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from motab_jax.distill import divergence
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.topk import FEW_PASSES, top_k_of
from motab_jax.models.transformer import unembed
from motab_jax.planning.hlo import HloProgram
from motab_jax.rollout.config import MonitorSpec
from motab_jax.rollout.sampling import sample
from motab_jax.rollout.teacher_scores import score_tokens
from motab_jax.runtime.mesh import make_mesh

TOKENS, PADDED, WIDTH, ROWS = 151_669, 151_936, 16, 4  # Qwen3's tokenizer and embedding
CONFIG = ModelConfig("qwen3", PADDED, WIDTH, 48, 1, 2, 2, 8, 64, tied=True)
SAMPLERS = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 1.0},
    "top_p": {"temperature": 1.0, "top_p": 0.9},
    "top_k": {"temperature": 0.7, "top_k": 20, "top_p": 0.95},
}


def arguments() -> tuple[dict, jax.Array, jax.Array, jax.Array]:
    """A head, hidden states, uniform numbers and tokens."""
    rng = np.random.default_rng(0)
    head = {"embed": jnp.asarray(rng.normal(size=(PADDED, WIDTH)), jnp.float32)}
    hidden = jnp.asarray(2 * rng.normal(size=(ROWS, WIDTH)), jnp.float32)
    return head, hidden, jnp.linspace(0.1, 0.9, ROWS), jnp.arange(ROWS, dtype=jnp.int32) * 40_000


def logits_of(head, hidden):
    """The masked logits."""
    return unembed(head, CONFIG, hidden, TOKENS)


def on_one_and_on_eight(function, *given):
    """The results of function(head, ...) on one device, and on 8 that share the vocabulary; and the latter program."""
    mesh, same = make_mesh(1, 1, 8), PartitionSpec()
    in_group = jax.shard_map(
        function, mesh=mesh, in_specs=same, out_specs=same, axis_names={"data", "fsdp"}, check_vma=False
    )
    head, *others = given
    sharded = jax.device_put(head, NamedSharding(mesh, PartitionSpec("tensor")))
    others = jax.device_put(others, NamedSharding(mesh, same))
    program = jax.jit(in_group).lower(sharded, *others).compile()
    return jax.jit(function)(*given), program(sharded, *others), HloProgram.of(program)


def assert_small(program: HloProgram) -> None:
    """No row's logits cross a link, nothing is shifted between devices, and no loop waits for them."""
    assert set(program.collective_counts()) <= {"all-gather", "all-reduce"}
    assert not program.loops.collective_counts()
    assert program.largest_collective("all-gather") <= 4 * ROWS * 256
    assert program.largest_collective("all-reduce") <= 4 * ROWS * PADDED / 64


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling(name):
    settings = SAMPLERS[name]
    head, hidden, uniform, _ = arguments()
    one, eight, program = on_one_and_on_eight(
        lambda head, hidden, uniform: sample(logits_of(head, hidden), uniform, **settings), head, hidden, uniform
    )
    assert one.tolist() == eight.tolist() and int(one.max()) < TOKENS
    assert_small(program)
    # Beside the threshold's: the largest logit, the sum of all weights or the blocks', and the block that was drawn.
    thresholds = len(FEW_PASSES) * ("top_p" in settings)
    assert len(FEW_PASSES) <= 5 and program.count("all-reduce") <= thresholds + 3


@pytest.mark.parametrize("signal", ["likelihood", "reverse_kl", "student_entropy", "top_k"])
def test_scoring(signal):
    head, hidden, _, tokens = arguments()
    spec = MonitorSpec(signal=signal, entropy_top_k=20 if signal == "likelihood" else 0)

    def scores(head, hidden, tokens):
        return score_tokens(logits_of(head, hidden), tokens, spec, 8, logits_of(head, hidden[::-1]))

    one, eight, program = on_one_and_on_eight(scores, head, hidden, tokens)
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), one, eight)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(one))
    assert_small(program)


def test_the_first_k_are_in_order_whatever_is_equal():
    head, hidden, _, _ = arguments()
    even = {"embed": jnp.round(head["embed"])}
    one, eight, program = on_one_and_on_eight(
        lambda head, hidden: top_k_of(logits_of(head, hidden), 30), even, jnp.round(hidden)
    )
    np.testing.assert_array_equal(one.ids, eight.ids)
    assert_small(program)


@pytest.mark.parametrize("name", ["cross_entropy", "forward_kl", "jsd", "adaptive_kl"])
def test_losses(name):
    head, hidden, _, tokens = arguments()
    function = getattr(divergence, name)
    if name == "adaptive_kl":
        function = partial(function, sharded=True)

    def loss(head, hidden, tokens):
        logits = logits_of(head, hidden)
        values, pullback = jax.vjp(
            lambda x: function(x, tokens if name == "cross_entropy" else logits_of(head, hidden[::-1])), logits
        )
        [gradient] = pullback(jnp.ones_like(values))
        is_padding = jnp.arange(PADDED)[None] >= TOKENS
        return values, jnp.max(jnp.abs(jnp.where(is_padding, gradient, 0.0))), gradient @ head["embed"]

    one, eight, program = on_one_and_on_eight(loss, head, hidden, tokens)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), one, eight)
    assert np.isfinite(one[0]).all() and float(one[1]) == 0.0
    assert_small(program)
