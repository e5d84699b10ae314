"""The decoder, for student and teacher alike: every weight's shape in one table, and one pure forward pass.

`forward` gives logits. `encode` gives hidden states and is what the engine calls: with a cache it is a prefill (T known
tokens) or a decode step (T = 1), without one it computes full sequences, to score or train. `unembed` is the head.

Llama, Qwen2 and Qwen3 differ only in biases, qk-norm and rope, which `ModelConfig` names. Attention is masked by
positions (attention.py). Layers are scanned with the cache in the scan's carry, or unrolled, as the params come:
stacked, or one dict a layer (serving.py makes that form, with projections fused).
Einsum letters: b batch, t query time, s key time, d width, n query heads, k kv heads, g queries a kv head,
h head dim, f mlp, v vocabulary. Shapes have the same letters in capitals, F for the mlp's width.
Left out: dropout, sliding windows, mixtures of experts.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int, PRNGKeyArray

from motab_jax.models.architecture import ModelConfig
from motab_jax.models.attention import (
    BLOCK,
    QUERY_BLOCK,
    SMALL_BLOCK,
    MaskSpec,
    attend_cache,
    attend_sequence,
    sequence_mask,
)
from motab_jax.models.cache import Index, KVCache, init_cache, row_major
from motab_jax.models.quantize import lookup, transposed_matmul, weight_einsum
from motab_jax.models.rope import apply_rope, rope_cos_sin

Params = dict[str, Any]
CosSin = tuple[Float32[Array, "B T 1 half"], Float32[Array, "B T 1 half"]]
REMAT = {"dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims, "full": None}


@dataclasses.dataclass(frozen=True)
class WeightSpec:
    """A weight: its shape, a logical axis name for each dimension, and its initialiser (normal, ones, zeros)."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: str


class Model(flax.struct.PyTreeNode):
    """A model to run: its weights, and its architecture as static metadata."""

    params: Params
    config: ModelConfig = flax.struct.field(pytree_node=False)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of activations and cache."""
        return self.params["final_norm"].dtype

    @property
    def unrolled(self) -> bool:
        """Whether each layer has weights of its own, which is the form for CPUs."""
        return not isinstance(self.params["layers"], dict)

    @property
    def fused(self) -> Any:
        """A weight that exists only in serving form; its readiness tells when the relayout has ended."""
        layers = self.params["layers"]
        return (layers[-1] if self.unrolled else layers)["qkv"]

    def cache(self, rows: int, columns: int) -> KVCache:
        """An empty cache in the form that the layers need."""
        return init_cache(self.config, rows, columns, self.dtype, stacked=not self.unrolled)


def weight_specs(config: ModelConfig) -> dict[str, Any]:
    """Every weight of the architecture, as a nested dict of `WeightSpec`; params have the same structure."""
    layers, d, f, h = config.num_layers, config.width, config.mlp_width, config.head_dim
    n, k = config.num_heads, config.num_kv_heads

    def layer(shape: tuple[int, ...], axes: tuple[str | None, ...], init: str = "normal") -> WeightSpec:
        return WeightSpec((layers, *shape), ("layer", *axes), init)

    block = {
        "attn_norm": layer((d,), (None,), "ones"),
        "q": layer((d, n, h), ("embed", "heads", "head")),
        "k": layer((d, k, h), ("embed", "kv_heads", "head")),
        "v": layer((d, k, h), ("embed", "kv_heads", "head")),
        "o": layer((n, h, d), ("heads", "head", "embed")),
        "mlp_norm": layer((d,), (None,), "ones"),
        "gate": layer((d, f), ("embed", "mlp")),
        "up": layer((d, f), ("embed", "mlp")),
        "down": layer((f, d), ("mlp", "embed")),
    }
    if config.qkv_bias:
        block["q_bias"] = layer((n, h), ("heads", "head"), "zeros")
        block |= {name: layer((k, h), ("kv_heads", "head"), "zeros") for name in ("k_bias", "v_bias")}
    if config.o_bias:
        block["o_bias"] = layer((d,), (None,), "zeros")
    if config.qk_norm:
        block |= {name: layer((h,), (None,), "ones") for name in ("q_norm", "k_norm")}
    specs: dict[str, Any] = {
        "embed": WeightSpec((config.vocab_size, d), ("vocab", "embed"), "normal"),
        "final_norm": WeightSpec((d,), (None,), "ones"),
        "layers": block,
    }
    if not config.tied:
        specs["head"] = WeightSpec((d, config.vocab_size), ("embed", "vocab"), "normal")
    return specs


def init(config: ModelConfig, key: PRNGKeyArray, dtype: DTypeLike = jnp.float32, *, std: float = 0.02) -> Params:
    """Random parameters: normal(0, std), ones for norms, zeros for biases.

    Args:
      config: the architecture.
      key: folded with each weight's number.
      dtype: of all weights.
      std: standard deviation of the normal weights.
    """
    flat = flax.traverse_util.flatten_dict(weight_specs(config))
    values = {}
    for index, (path, spec) in enumerate(sorted(flat.items())):
        if spec.init == "normal":
            values[path] = std * jax.random.normal(jax.random.fold_in(key, index), spec.shape, dtype)
        else:
            values[path] = jnp.full(spec.shape, 1.0 if spec.init == "ones" else 0.0, dtype)
    return flax.traverse_util.unflatten_dict(values)


def default_positions(shape: tuple[int, ...]) -> Int[Array, "B T"]:
    """Positions 0..T-1 in each row of a batch of this shape: no padding.

    >>> default_positions((2, 3)).tolist()
    [[0, 1, 2], [0, 1, 2]]
    """
    return jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)


def forward(
    params: Params,
    config: ModelConfig,
    tokens: Int[Array | np.ndarray, "B T"],
    positions: Int[Array | np.ndarray, "B T"] | None = None,
) -> Float32[Array, "B T V"]:
    """Logits of the next token after each token.

    Args:
      params: parameters, in training or serving form.
      config: their architecture.
      tokens: ids.
      positions: of the tokens, -1 for padding; None: 0..T-1 in each row.

    Returns:
      The logits, in float32.
    """
    hidden, _ = encode(params, config, tokens, default_positions(tokens.shape) if positions is None else positions)
    return unembed(params, config, hidden)


def encode(
    params: Params,
    config: ModelConfig,
    tokens: Int[Array | np.ndarray, "B T"],
    positions: Int[Array | np.ndarray, "B T"],
    *,
    cache: KVCache | None = None,
    key_positions: Int[Array | np.ndarray, "B S"] | None = None,
    cursor: Index = 0,
    segments: Int[Array | np.ndarray, "B T"] | None = None,
    max_sequence_columns: int | None = None,
    query_block: int = QUERY_BLOCK,
    remat: str = "none",
    constrain: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[Float[Array, "B T D"], KVCache | None]:
    """Final hidden states, after the last norm and before the head, and the updated cache.

    With a cache this is a prefill, or for T = 1 a decode step: keys and values of the tokens are written to columns
    cursor..cursor+T-1 of all rows, and the tokens attend to the whole cache. Without one the tokens attend to each
    other.

    Args:
      params: parameters, in training or serving form.
      config: their architecture.
      tokens: ids.
      positions: of the tokens; -1: no token attends to this one (padding, dead columns).
      cache: the cache to write to and to attend to.
      key_positions: with a cache, the positions of all its columns, those that are written included.
      cursor: with a cache, the first column to write.
      segments: without a cache, the sequence of its packed row that a token belongs to; none attends to another.
      max_sequence_columns: without a cache, see `attend_sequence`.
      query_block: without a cache, queries at a time in sequences of more than twice as many columns.
      remat: what of each layer the backward pass recomputes: none, dots (all but matmuls) or full.
      constrain: a sharding constraint for the activations [B,T,D] between layers; None: the compiler chooses.

    Returns:
      The hidden states, and the cache with the new columns (None without a cache).
    """
    layers = params["layers"]
    x = lookup(params["embed"], jnp.maximum(tokens, 0)).astype(params["final_norm"].dtype)
    cos_sin = _rope_once(config, positions)
    if cache is None:
        spec = MaskSpec(positions, segments)
        context = PassContext(cos_sin, spec, sequence_mask(spec, query_block), max_sequence_columns, query_block)
    else:
        context = PassContext(cos_sin, MaskSpec(positions), key_positions=key_positions, cursor=cursor)

    x, cache = _layers(layers, config, x, context, cache, remat, constrain or (lambda x: x))
    return rms_norm(x, params["final_norm"], config.rms_eps), cache


def _rope_once(config: ModelConfig, positions: Int[Array | np.ndarray, "B T"]) -> CosSin:
    """`rope_cos_sin`, computed once for all layers.

    The compiler for CPUs drops an optimization barrier before it fuses, and would compute the cosines anew in every
    use, for each head; the result of a branch it keeps.
    """

    def compute(positions: jax.Array) -> CosSin:
        return rope_cos_sin(positions, config.rope, config.head_dim)

    def blank(positions: jax.Array) -> CosSin:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compute, positions))

    return jax.lax.platform_dependent(
        positions,
        cpu=lambda positions: jax.lax.cond(jnp.any(positions >= 0), compute, blank, positions),
        default=lambda positions: jax.lax.optimization_barrier(compute(positions)),
    )


@dataclasses.dataclass(frozen=True)
class PassContext:
    """The arguments that all layers of one forward pass share."""

    cos_sin: CosSin
    spec: MaskSpec  # of the T columns of this pass
    mask: Bool[Array | np.ndarray, "B T T"] | None = None  # without a cache, for sequences that are not long
    max_sequence_columns: int | None = None  # without a cache
    query_block: int = QUERY_BLOCK  # without a cache
    key_positions: Int[Array | np.ndarray, "B S"] | None = None  # with a cache
    cursor: Index = 0  # with a cache


def _layers(layers: Any, config: ModelConfig, x, context: PassContext, cache: KVCache | None, remat: str, constrain):
    """All layers, one after the other: scanned with the cache in the carry where they are stacked, else unrolled."""

    def block(carry, layer):
        x, cache, index = carry
        attended, cache = _attention(layer, config, x, context, cache, index)
        x = constrain(x + attended)
        x = constrain(x + _mlp(layer, rms_norm(x, layer["mlp_norm"], config.rms_eps)))
        return (x, cache, index + 1), None

    if remat != "none":
        block = jax.checkpoint(block, policy=REMAT[remat], prevent_cse=False)
    if isinstance(layers, dict):
        (x, cache, _), _ = jax.lax.scan(block, (x, cache, jnp.int32(0)), layers)
    else:
        for index, layer in enumerate(layers):
            (x, cache, _), _ = block((x, cache, index), layer)
    return x, cache


def unembed(
    params: Params, config: ModelConfig, hidden: Float[Array, "*N D"], vocab_size: int | None = None
) -> Float32[Array, "*N V"]:
    """Logits: one matmul of hidden states with the head, or with the tied embedding.

    Args:
      params: parameters, in training or serving form; only the head or the embedding is read.
      config: their architecture.
      hidden: what `encode` gives.
      vocab_size: the tokenizer's; None: all V rows of the head are tokens. The logits of padded rows are -inf: they
          have no probability and no gradient. They are not dropped: V is a multiple of the devices that the vocabulary
          is sharded over where the tokenizer's size is not.
    """
    if "head" in params:
        logits = weight_einsum("...d,dv->...v", hidden, params["head"], jnp.float32)
    elif isinstance(params.get("layers", {}), dict) or not isinstance(params["embed"], jax.Array):
        logits = weight_einsum("...d,vd->...v", hidden, params["embed"], jnp.float32)
    else:  # unrolled layers: a CPU, for which the embedding [V,D] is a head in transposed form
        logits = transposed_matmul(params["embed"], hidden, jnp.float32)
    return mask_padding(logits, vocab_size)


def mask_padding(logits: Float32[Array, "*N V"], vocab_size: int | None) -> Float32[Array, "*N V"]:
    """The logits, -inf beyond the tokenizer's vocabulary; unchanged where that is None."""
    if vocab_size is None:
        return logits
    is_token = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) < vocab_size
    return jnp.where(is_token, logits, -jnp.inf)


def common_columns(
    left: Float[Array, "*N V"], right: Float[Array, "*N W"]
) -> tuple[Float[Array, "*N X"], Float[Array, "*N X"]]:
    """The logits of two models of one tokenizer, without the columns that one of them alone is padded with."""
    size = min(left.shape[-1], right.shape[-1])
    return left[..., :size], right[..., :size]


def rms_norm(x: Float[Array, "*N D"], weight: Float[Array, "D"], eps: float) -> Float[Array, "*N D"]:
    """Root-mean-square norm over the last axis, computed in float32 (arXiv 1910.07467)."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype) * jnp.broadcast_to(weight, x.shape)


def _mlp(layer: Params, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """The gated MLP: down(silu(gate(x)) * up(x))."""
    if "gate_up" in layer:
        both = weight_einsum("btd,dcf->btcf", x, layer["gate_up"])
        gate, up = both[:, :, 0], both[:, :, 1]
    else:
        weights = layer["gate"], layer["up"]
        if "qkv" in layer:  # Without this a TPU would keep a copy of them in a second layout for prefills.
            weights = jax.tree.map(lambda weight: row_major(weight, 1), weights)
        gate, up = (weight_einsum("btd,df->btf", x, weight) for weight in weights)
    return weight_einsum("btf,fd->btd", jax.nn.silu(gate) * up, layer["down"])


def _project(
    layer: Params, config: ModelConfig, x: Float[Array, "B T D"]
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
    """Queries, keys and values, before rotation."""
    if "qkv" in layer:
        # Without this the heads' own layout would reach the weights, and a TPU would hold those twice.
        fused = row_major(weight_einsum("btd,dx->btx", x, layer["qkv"]), 2)
        fused = fused.reshape(*x.shape[:2], config.num_kv_heads, -1, config.head_dim)
        queries = fused[..., :-2, :].reshape(*x.shape[:2], config.num_heads, config.head_dim)
        projected = {"q": queries, "k": fused[..., -2, :], "v": fused[..., -1, :]}
    else:
        projected = {name: weight_einsum("btd,dnh->btnh", x, layer[name]) for name in "qkv"}
    for name, y in projected.items():
        if config.qkv_bias:
            y = y + jnp.broadcast_to(layer[f"{name}_bias"], y.shape)
        if config.qk_norm and name != "v":
            y = rms_norm(y, layer[f"{name}_norm"], config.rms_eps)
        projected[name] = y
    return projected["q"], projected["k"], projected["v"]


def _attention(
    layer: Params,
    config: ModelConfig,
    x: Float[Array, "B T D"],
    context: PassContext,
    cache: KVCache | None,
    index: Index,
) -> tuple[Float[Array, "B T D"], KVCache | None]:
    """Grouped-query attention of one layer, and the cache with this layer's new columns."""
    q, k, v = _project(layer, config, rms_norm(x, layer["attn_norm"], config.rms_eps))
    q, k = apply_rope(q, *context.cos_sin), apply_rope(k, *context.cos_sin)
    batch, time = q.shape[:2]
    grouped = q.reshape(batch, time, config.num_kv_heads, -1, config.head_dim)
    if cache is None:
        k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
        attended_values = attend_sequence(
            grouped, k, v, context.spec, context.mask,
            max_sequence_columns=context.max_sequence_columns, query_block=context.query_block,
        )  # fmt: skip
    else:
        assert context.key_positions is not None
        cache = cache.write(k, v, index, context.cursor)
        attended_values = attend_cache(
            grouped,
            functools.partial(cache.read, index),
            context.spec.positions,
            context.key_positions,
            context.cursor + time,
            size=BLOCK if cache.stacked else SMALL_BLOCK,
            keys_last=not cache.stacked,
        )
    attended_values = attended_values.astype(x.dtype)
    if "qkv" in layer:
        out = weight_einsum("btx,xd->btd", attended_values.reshape(batch, time, -1), layer["o"])
    else:
        out = weight_einsum("btnh,nhd->btd", attended_values.reshape(q.shape), layer["o"])
    return (out + jnp.broadcast_to(layer["o_bias"], out.shape) if config.o_bias else out), cache
