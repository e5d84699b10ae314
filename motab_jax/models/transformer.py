"""The decoder, teacher and student alike: weights said once, and one pure forward pass.

Llama, Qwen2 and Qwen3 differ only in biases, qk-norm and rope, which `ModelConfig` names. Attention is masked by
positions: a query at position p sees the columns whose position is in 0..p, so left padding, the rewind tape and
plain causal attention are one rule. Layers are scanned with the cache in the scan's carry, or unrolled, as the
params come: stacked, or one dict a layer (serving.py makes that form, with projections fused).
Einsum letters: b batch, t query time, s key time, d width, n query heads, k kv heads, g queries a kv head,
h head dim, f mlp, v vocabulary.
Left out: dropout, sliding windows, mixtures of experts.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp

from motab_jax.models.architecture import ModelConfig
from motab_jax.models.attention import BLOCK, SMALL_BLOCK, Sight, attend_live, attend_text, mask_of
from motab_jax.models.cache import KVCache, init_cache, pinned
from motab_jax.models.quantize import TransposedWeight, lookup, weight_einsum
from motab_jax.models.rope import angles, turn

Params = dict[str, Any]
REMAT = {"dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims, "full": None}


class WeightSpec(NamedTuple):
    """A weight: its shape, a logical axis name for each dimension, and its initialiser (normal, ones, zeros)."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: str


@flax.struct.dataclass
class Model:
    """A model to run: its weights, and its architecture as static metadata."""

    params: Params
    config: ModelConfig = flax.struct.field(pytree_node=False)

    @property
    def dtype(self):
        """The dtype of activations and cache."""
        return self.params["final_norm"].dtype

    @property
    def unrolled(self) -> bool:
        """Whether each layer has weights of its own, which is a CPU's form."""
        return not isinstance(self.params["layers"], dict)

    @property
    def fused(self) -> jax.Array:
        """A weight that only the serving form has: new with every relayout, where norms may be the training form's."""
        layers = self.params["layers"]
        return (layers[-1] if self.unrolled else layers)["qkv"]

    def cache(self, rows: int, columns: int) -> KVCache:
        """An empty cache of the form that the layers want."""
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


def is_spec(x: Any) -> bool:
    """Whether `x` is a leaf of `weight_specs`."""
    return isinstance(x, WeightSpec)


def init(config: ModelConfig, key: jax.Array, dtype=jnp.float32, *, std: float = 0.02) -> Params:
    """Random parameters: normal(0, std), ones for norms, zeros for biases; one key a weight."""
    flat = flax.traverse_util.flatten_dict(weight_specs(config))
    values = {}
    for place, (path, spec) in enumerate(sorted(flat.items())):
        if spec.init == "normal":
            values[path] = std * jax.random.normal(jax.random.fold_in(key, place), spec.shape, dtype)
        else:
            values[path] = jnp.full(spec.shape, 1.0 if spec.init == "ones" else 0.0, dtype)
    return flax.traverse_util.unflatten_dict(values)


def default_positions(shape: tuple[int, int]) -> jax.Array:
    """Positions 0..T-1 in each row, i32[B,T]: unpadded text."""
    return jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)


def forward(params: Params, config: ModelConfig, tokens: jax.Array, positions: jax.Array | None = None) -> jax.Array:
    """Next-token logits f32[B,T,V] of tokens i32[B,T]; positions i32[B,T] (-1: padding) default to 0..T-1."""
    hidden, _ = encode(params, config, tokens, default_positions(tokens.shape) if positions is None else positions)
    return unembed(params, config, hidden)


def encode(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    *,
    cache: KVCache | None = None,
    key_positions: jax.Array | None = None,
    cursor: jax.Array | int = 0,
    segments: jax.Array | None = None,
    max_text_columns: int | None = None,
    remat: str = "none",
    constrain: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, KVCache | None]:
    """Final hidden states [B,T,D] (after the last norm, before the head) and the updated cache.

    tokens, positions i32[B,T]; position -1 marks a token that nobody may see (padding, dead columns).
    segments i32[B,T] (without a cache): texts packed into one row attend only to themselves.
    max_text_columns (without a cache): see `attend_text`.
    remat: what the backward pass recomputes of each layer: none, dots (all but matrix products) or full.
    constrain: a sharding constraint for the activations [B,T,D] between two layers (None: the compiler's choice).
    With a cache, the T tokens are written to columns cursor..cursor+T-1 of all rows and attend to the whole cache;
    key_positions i32[B,S] gives every column's position, those T columns included. Without one, plain self-attention.
    """
    layers = params["layers"]
    x = lookup(params["embed"], jnp.maximum(tokens, 0)).astype(params["final_norm"].dtype)
    turns = _angles_once(config, positions)
    if cache is None:
        sight = Sight(positions, segments)
        place = Place(turns, sight, mask_of(sight), max_text_columns)
    else:
        place = Place(turns, Sight(positions, None), seen=key_positions, cursor=cursor)

    x, cache = _layers(layers, config, x, place, cache, remat, constrain or (lambda x: x))
    return rms_norm(x, params["final_norm"], config.rms_eps), cache


def _angles_once(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin of `angles`, which no layer computes anew.

    A CPU's compiler drops a barrier before it fuses, and the cosines would be fused into every use, for each head; what
    a branch gives, it keeps.
    """

    def compute(positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        return angles(positions, config.rope, config.head_dim)

    def blank(positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compute, positions))

    return jax.lax.platform_dependent(
        positions,
        cpu=lambda positions: jax.lax.cond(jnp.any(positions >= 0), compute, blank, positions),
        default=lambda positions: jax.lax.optimization_barrier(compute(positions)),
    )


class Place(NamedTuple):
    """Where a pass stands: what all layers share."""

    turns: tuple[jax.Array, jax.Array]  # cos and sin
    sight: Sight  # of the T columns that pass
    mask: jax.Array | None = None  # bool[B,T,T]; without a cache, where the text is short
    max_text_columns: int | None = None  # columns; without a cache
    seen: jax.Array | None = None  # i32[B,S]; with one: its columns' positions
    cursor: jax.Array | int = 0


def _layers(layers, config: ModelConfig, x, place: Place, cache: KVCache | None, remat: str, constrain):
    """All layers in turn: scanned with the cache in the carry where they are stacked, else unrolled."""

    def block(carry, layer):
        x, cache, index = carry
        attended, cache = _attention(layer, config, x, place, cache, index)
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


def unembed(params: Params, config: ModelConfig, hidden: jax.Array, vocab_size: int | None = None) -> jax.Array:
    """Logits f32[..., vocab_size] of hidden [..., D]; a padded vocabulary's rows beyond vocab_size are cut off."""
    if "head" in params:
        logits = weight_einsum("...d,dv->...v", hidden, params["head"], jnp.float32)
    else:
        table = params["embed"]
        if not isinstance(params.get("layers", {}), dict) and isinstance(table, jax.Array):
            table = TransposedWeight(table)  # unrolled layers: a CPU
        logits = weight_einsum("...d,vd->...v", hidden, table, jnp.float32)
    return logits if vocab_size is None else logits[..., :vocab_size]


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm over the last axis, computed in float32 (arXiv 1910.07467)."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype) * jnp.broadcast_to(weight, x.shape)


def _mlp(layer: Params, x: jax.Array) -> jax.Array:
    if "gate_up" in layer:
        both = weight_einsum("btd,dcf->btcf", x, layer["gate_up"])
        gate, up = both[:, :, 0], both[:, :, 1]
    else:
        weights = layer["gate"], layer["up"]
        if "qkv" in layer:  # Unpinned, a TPU that reads a segment would hold them in a second layout.
            weights = jax.tree.map(lambda weight: pinned(weight, 1), weights)
        gate, up = (weight_einsum("btd,df->btf", x, weight) for weight in weights)
    return weight_einsum("btf,fd->btd", jax.nn.silu(gate) * up, layer["down"])


def _project(layer: Params, config: ModelConfig, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries [B,T,N,H], keys and values [B,T,K,H], before rotation."""
    if "qkv" in layer:
        # Unpinned, the heads' own layout would reach back to the weights, and a TPU would hold them twice.
        fused = pinned(weight_einsum("btd,dx->btx", x, layer["qkv"]), 2)
        fused = fused.reshape(*x.shape[:2], config.num_kv_heads, -1, config.head_dim)
        queries = fused[..., :-2, :].reshape(*x.shape[:2], config.num_heads, config.head_dim)
        found = {"q": queries, "k": fused[..., -2, :], "v": fused[..., -1, :]}
    else:
        found = {name: weight_einsum("btd,dnh->btnh", x, layer[name]) for name in "qkv"}
    for name, y in found.items():
        if config.qkv_bias:
            y = y + jnp.broadcast_to(layer[f"{name}_bias"], y.shape)
        if config.qk_norm and name != "v":
            y = rms_norm(y, layer[f"{name}_norm"], config.rms_eps)
        found[name] = y
    return found["q"], found["k"], found["v"]


def _attention(layer, config: ModelConfig, x, place: Place, cache: KVCache | None, index):
    """Grouped-query attention of one layer: output [B,T,D] and the cache with this layer's new columns."""
    q, k, v = _project(layer, config, rms_norm(x, layer["attn_norm"], config.rms_eps))
    q, k = turn(q, *place.turns), turn(k, *place.turns)
    batch, time = q.shape[:2]
    grouped = q.reshape(batch, time, config.num_kv_heads, -1, config.head_dim)
    if cache is None:
        k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
        mixed = attend_text(grouped, k, v, place.sight, place.mask, place.max_text_columns)
    else:
        cache = cache.write(k, v, index, place.cursor)
        columns = functools.partial(cache.read, index)
        size = BLOCK if cache.stacked else SMALL_BLOCK
        mixed = attend_live(
            grouped,
            columns,
            place.sight.positions,
            place.seen,
            place.cursor + time,
            size,
            columns_last=not cache.stacked,
        )
    mixed = mixed.astype(x.dtype)
    if "qkv" in layer:
        out = weight_einsum("btx,xd->btd", mixed.reshape(batch, time, -1), layer["o"])
    else:
        out = weight_einsum("btnh,nhd->btd", mixed.reshape(q.shape), layer["o"])
    return (out + jnp.broadcast_to(layer["o_bias"], out.shape) if config.o_bias else out), cache
