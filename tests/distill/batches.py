"""Tiny models, random target batches and the naive full-logits loss: what the distillation tests share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from motab_jax.distill import Objective, TargetBatch, TokenLoss
from motab_jax.distill.targets import KINDS, NONE
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.transformer import Model, encode, forward, init

# Compiling is what takes these tests' time, and the least optimised program compiles twice as fast.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
VOCAB = 40
ROWS, PROMPT, COLUMNS = 8, 4, 15
STUDENT = ModelConfig("qwen3", 48, 32, 64, 2, 4, 2, 8, 512, qk_norm=True, tied=True)
TEACHER = ModelConfig("qwen2", 44, 24, 48, 2, 2, 2, 8, 512, qkv_bias=True)
LOSSES = {
    "cross_entropy": TokenLoss("cross_entropy"),
    "forward_kl": TokenLoss("forward_kl"),
    "reverse_kl": TokenLoss("reverse_kl"),
    "jsd": TokenLoss("jsd", reverse_weight=0.3),
    "masked": TokenLoss("masked"),
}


def params_of(seed: int = 0, dtype=jnp.float32):
    """The student's weights, fresh: a donated state may eat them."""
    return init(STUDENT, jax.random.key(seed), dtype, std=0.2)


@functools.cache
def teacher() -> Model:
    """A teacher of another family, width and padding, with a head of its own."""
    with jax.ensure_compile_time_eval():  # cached, so it must be real also where a trace asks for it first
        return Model(init(TEACHER, jax.random.key(7), std=0.4), TEACHER)


def uniform(name: str, **numbers) -> Objective:
    """The same loss for every kind of token."""
    return Objective(**dict.fromkeys(KINDS[1:], LOSSES[name]), vocab_size=VOCAB, **numbers)


@functools.cache
def random_batch(seed: int = 0, rows: int = ROWS) -> TargetBatch:
    """Left-padded prompts, then tokens of all kinds, then padding; with the teacher's own states."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, VOCAB, (rows, COLUMNS))
    column = np.arange(COLUMNS)
    before, length = rng.integers(0, PROMPT, rows)[:, None], rng.integers(PROMPT + 2, COLUMNS + 1, rows)[:, None]
    positions = np.where((column >= before) & (column < length), column - before, -1)
    kinds = np.where((column >= PROMPT) & (column < length), rng.integers(1, len(KINDS), (rows, COLUMNS)), NONE)
    tokens, positions, kinds = (jnp.asarray(x, jnp.int32) for x in (tokens, positions, kinds))
    hidden, _ = encode(teacher().params, TEACHER, tokens, positions)
    shifted = jnp.pad(hidden[:, :-1], ((0, 0), (1, 0), (0, 0)))
    return TargetBatch(tokens, positions, kinds, jnp.where((kinds > 0)[..., None], shifted, 0.0))


def per_token(name: str, student, theirs, label: int, reverse_weight: float):
    """One token's loss from two distributions [V] (logits), straight from the definition."""
    p, q = jax.nn.softmax(theirs), jax.nn.softmax(student)
    if name == "cross_entropy":
        return -jnp.log(q[label])
    if name == "forward_kl":
        return jnp.sum(p * jnp.log(p / q))
    if name == "reverse_kl":
        return jnp.sum(q * jnp.log(q / p))
    m = reverse_weight * p + (1 - reverse_weight) * q
    return reverse_weight * jnp.sum(p * jnp.log(p / m)) + (1 - reverse_weight) * jnp.sum(q * jnp.log(q / m))


def naive_loss(params, batch: TargetBatch, objective: Objective):
    """The whole loss f32[] over full logits [B,N,V], looping over the kinds of tokens."""
    ours = forward(params, STUDENT, batch.tokens, batch.positions)[:, :-1, :VOCAB]
    theirs = (batch.teacher_hidden[:, 1:] @ teacher().params["head"])[..., :VOCAB]
    labels, kinds = batch.tokens[:, 1:], batch.kinds[:, 1:]
    total, trained = jnp.zeros(labels.shape), jnp.zeros(labels.shape, bool)
    for code, kind in enumerate(KINDS):
        loss = getattr(objective, kind, None)
        if loss is None or loss.name == "masked" or loss.weight == 0:
            continue
        heat = 1.0 if loss.name == "cross_entropy" else objective.temperature
        one = functools.partial(per_token, loss.name, reverse_weight=loss.reverse_weight)
        each = jax.vmap(jax.vmap(one))(ours / heat, theirs / heat, labels)
        total = total + jnp.where(kinds == code, loss.weight * each, 0.0)
        trained = trained | (kinds == code)
    if objective.normalize == "token":
        return jnp.sum(total) / jnp.sum(trained)
    counts = jnp.sum(trained, axis=1)
    return jnp.sum(jnp.sum(total, axis=1) / jnp.maximum(counts, 1)) / jnp.sum(counts > 0)


def assert_trees_close(one, other, atol: float = 1e-5) -> None:
    """Leaf by leaf, by name."""

    def compare(path, a, b):
        np.testing.assert_allclose(a, b, atol=atol, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(compare, one, other)


def assert_trees_equal(one, other) -> None:
    """Bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, one, other)
