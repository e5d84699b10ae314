"""Tiny models, random target batches and the naive full-logits loss: what the distillation tests share."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from motab_jax.distill import Objective, TargetBatch, TokenLoss
from motab_jax.distill.targets import LOSS_KINDS, TokenKind
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.transformer import Model, encode, forward, init
from tests.optional import some

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
    "adaptive_kl": TokenLoss("adaptive_kl"),
    "entropy_gated_kl": TokenLoss("entropy_gated_kl", gate=2.6),  # about half of the teacher's tokens are above
    "policy_gradient": TokenLoss("policy_gradient"),
    "minillm": TokenLoss("minillm"),
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
    losses: dict[str, Any] = dict.fromkeys((kind.word for kind in LOSS_KINDS), LOSSES[name])
    return Objective(**losses, vocab_size=VOCAB, **numbers)


def rivals(**numbers) -> Objective:
    """The losses of other methods, each for one kind of token."""
    names = ("minillm", "adaptive_kl", "policy_gradient", "entropy_gated_kl")
    losses: dict[str, Any] = {kind.word: LOSSES[name] for kind, name in zip(LOSS_KINDS, names, strict=True)}
    return Objective(**losses, vocab_size=VOCAB, **numbers)


@functools.cache
def random_batch(seed: int = 0, rows: int = ROWS) -> TargetBatch:
    """Left-padded prompts, then tokens of all kinds, then padding; with the teacher's own states."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, VOCAB, (rows, COLUMNS))
    column = np.arange(COLUMNS)
    before, length = rng.integers(0, PROMPT, rows)[:, None], rng.integers(PROMPT + 2, COLUMNS + 1, rows)[:, None]
    positions = np.where((column >= before) & (column < length), column - before, -1)
    kinds = np.where(
        (column >= PROMPT) & (column < length), rng.integers(1, len(TokenKind), (rows, COLUMNS)), TokenKind.NONE
    )
    tokens, positions, kinds = (jnp.asarray(x, jnp.int32) for x in (tokens, positions, kinds))
    hidden, _ = encode(teacher().params, TEACHER, tokens, positions)
    shifted = jnp.pad(hidden[:, :-1], ((0, 0), (1, 0), (0, 0)))
    return TargetBatch(tokens, positions, kinds, jnp.where((kinds > 0)[..., None], shifted, 0.0))


def per_token(loss: TokenLoss, student, teacher, label: jax.Array, later):
    """One token's loss from two distributions [V] (logits), straight from the definition; later: minillm's reward."""
    name, w = loss.name, loss.reverse_weight
    p, q = jax.nn.softmax(teacher), jax.nn.softmax(student)
    if name == "cross_entropy":
        return -jnp.log(q[label])
    if name == "jsd":
        m = w * p + (1 - w) * q
        return w * jnp.sum(p * jnp.log(p / m)) + (1 - w) * jnp.sum(q * jnp.log(q / m))
    forward, reverse = jnp.sum(p * jnp.log(p / q)), jnp.sum(q * jnp.log(q / p))
    if name in ("forward_kl", "reverse_kl"):
        return forward if name == "forward_kl" else reverse
    if name == "adaptive_kl":
        order = jnp.argsort(-p)
        gap = jax.lax.stop_gradient(jnp.abs(p - q))[order]
        head = (jnp.cumsum(p[order]) <= 0.5).at[0].set(True)
        share = jnp.sum(jnp.where(head, gap, 0.0)) / jnp.sum(gap)
        return share * forward + (1 - share) * reverse
    if name == "entropy_gated_kl":
        return reverse + jnp.where(-jnp.sum(p * jnp.log(p)) > loss.gate, forward, 0.0)
    ratio = jax.lax.stop_gradient(p[label] / q[label])
    # A number times the gradient of log q is the gradient of that number times q, divided by q.
    lift = q[label] / jax.lax.stop_gradient(q[label])
    return -jnp.log(ratio) * lift if name == "policy_gradient" else reverse - later * lift


def later_rewards(student_logits, teacher_logits, labels, counted):
    """Mean of log p_T - log p_S over the counted tokens of a row [T] behind each, from logits [T,V]; 0 if none."""
    gain = jax.nn.log_softmax(teacher_logits) - jax.nn.log_softmax(student_logits)
    reward = jax.lax.stop_gradient(jnp.take_along_axis(gain, labels[:, None], axis=1)[:, 0])
    number = jnp.arange(len(labels))
    behind = (number[None] > number[:, None]) & counted[None]
    return jnp.sum(jnp.where(behind, reward[None], 0.0), axis=1) / jnp.maximum(jnp.sum(behind, axis=1), 1)


def naive_loss(params, batch: TargetBatch, objective: Objective):
    """The whole loss f32[] over full logits [B,N,V], looping over the kinds of tokens."""
    student_logits = forward(params, STUDENT, batch.tokens, batch.positions)[:, :-1, :VOCAB]
    teacher_logits = (some(batch.teacher_hidden)[:, 1:] @ teacher().params["head"])[..., :VOCAB]
    labels, kinds = batch.tokens[:, 1:], batch.kinds[:, 1:]
    total, trained = jnp.zeros(labels.shape), jnp.zeros(labels.shape, bool)
    rewarded = sum((kinds == code for code in objective.rewarded_kinds), start=jnp.zeros(labels.shape, bool))
    for kind in LOSS_KINDS:
        loss = getattr(objective, kind.word)
        if loss.name == "masked" or loss.weight == 0:
            continue
        temperature = 1.0 if loss.name == "cross_entropy" else objective.temperature
        scaled = student_logits / temperature, teacher_logits / temperature
        later = jnp.zeros(labels.shape)
        if loss.name == "minillm":
            later = jax.vmap(later_rewards)(*scaled, labels, rewarded)
        each = jax.vmap(jax.vmap(functools.partial(per_token, loss)))(*scaled, labels, later)
        total = total + jnp.where(kinds == kind, loss.weight * each, 0.0)
        trained = trained | (kinds == kind)
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
