"""The form of the weights that decodes fastest: fused projections, a head of its own, layers stacked or one by one.

`serve_params` is pure: jitted, it lays the student out for serving once a step. What the forms compute is the same.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from motab_jax.models.architecture import ModelConfig
from motab_jax.models.quantize import Int8, TransposedWeight, quantize
from motab_jax.models.transformer import Params, WeightSpec, is_spec, weight_specs

FUSED = ("q", "k", "v", "o")
SUMMED = {"qkv": 0, "o": 0, "gate": 0, "up": 0, "gate_up": 0, "down": 0, "head": 0, "embed": 1}  # of one layer


def serve_params(
    params: Params, config: ModelConfig, *, scan_layers: bool, dtype=None, int8: bool = False, head: bool = False
) -> Params:
    """Params in serving form. config: theirs, or theirs `with_copied_heads`. dtype: None keeps theirs; head: a tied
    table also gets a transposed copy, which saves a CPU a little at one row and costs it twice the time at more."""
    params = jax.tree.map(lambda x: x.astype(dtype or x.dtype), params)
    layers = _fuse(_copy_heads(params["layers"], config), config, mlp=not scan_layers)
    found = {"embed": params["embed"], "final_norm": params["final_norm"]}
    if "head" in params or head:
        found["head"] = params["head"] if "head" in params else params["embed"].T
    if int8:
        layers = {name: _shrink(name, weight, stacked=True) for name, weight in layers.items()}
        found = {name: _shrink(name, weight, stacked=False) for name, weight in found.items()}
    elif not scan_layers:
        layers = {name: _turn(name, weight, stacked=True) for name, weight in layers.items()}
        if "head" in found:
            found["head"] = _turn("head", found["head"], stacked=False)
    if not scan_layers:
        layers = tuple(jax.tree.map(lambda x, n=n: x[n], layers) for n in range(config.num_layers))
    return {**found, "layers": layers}


def with_copied_heads(config: ModelConfig, ways: int) -> ModelConfig:
    """The shape with enough copies of each key-value head for `ways` devices, where those are a multiple of the heads.

    Each device then has a head and its cache to itself; the model computes the same.
    """
    copies, rest = divmod(ways, config.num_kv_heads)
    return config if copies < 2 or rest else dataclasses.replace(config, num_kv_heads=ways)


def _copy_heads(layers: Params, config: ModelConfig) -> Params:
    """The layers with their key-value heads repeated to as many as the config has."""
    copies = config.num_kv_heads // layers["k"].shape[-2]
    names = [name for name in ("k", "v", "k_bias", "v_bias") if name in layers and copies > 1]
    return {**layers, **{name: jnp.repeat(layers[name], copies, axis=-2) for name in names}}


def _fuse(layers: Params, config: ModelConfig, *, mlp: bool) -> Params:
    """Queries, keys and values of a kv head side by side, [L,D,K*(G+2)*H], and the output projection [L,N*H,D].

    Two dimensions a weight, as chips store and multiply them. mlp: also gate and up, [L,D,2,F], which suits a CPU; on
    a TPU the dimension of size 2 would be padded.
    """
    count, width = layers["q"].shape[:2]
    parts = [layers[name].reshape(count, width, config.num_kv_heads, -1, config.head_dim) for name in "qkv"]
    fused = {name: weight for name, weight in layers.items() if name not in FUSED}
    fused["qkv"] = jnp.concatenate(parts, axis=3).reshape(count, width, -1)
    fused["o"] = layers["o"].reshape(count, -1, width)
    if mlp:
        fused["gate_up"] = jnp.stack([fused.pop("gate"), fused.pop("up")], axis=2)
    return fused


def _shrink(name: str, weight: jax.Array, *, stacked: bool) -> Any:
    return quantize(weight, (SUMMED[name] + stacked,)) if name in SUMMED else weight


def _turn(name: str, weight: jax.Array, *, stacked: bool) -> Any:
    return TransposedWeight(jnp.moveaxis(weight, stacked, -1)) if name in SUMMED else weight


def serve_specs(config: ModelConfig, *, scan_layers: bool, int8: bool = False, head: bool = False) -> dict[str, Any]:
    """Every weight of the serving form as a `WeightSpec`, in the structure that `serve_params` gives."""
    specs = weight_specs(config)
    layers, d, f = config.num_layers, config.width, config.mlp_width
    heads = config.num_heads * config.head_dim
    fused = heads + 2 * config.num_kv_heads * config.head_dim
    block = {name: spec for name, spec in specs["layers"].items() if name not in FUSED}
    block["qkv"] = WeightSpec((layers, d, fused), ("layer", "embed", "kv_heads"), "normal")
    block["o"] = WeightSpec((layers, heads, d), ("layer", "heads", "embed"), "normal")
    if not scan_layers:
        del block["gate"], block["up"]
        block["gate_up"] = WeightSpec((layers, d, 2, f), ("layer", "embed", None, "mlp"), "normal")
    found = {name: spec for name, spec in specs.items() if name != "layers"}
    if head:
        found["head"] = WeightSpec((d, config.vocab_size), ("embed", "vocab"), "normal")
    if int8:
        block = {name: _shrink_spec(name, spec, stacked=True) for name, spec in block.items()}
        found = {name: _shrink_spec(name, spec, stacked=False) for name, spec in found.items()}
    elif not scan_layers:
        block = {name: _turn_spec(name, spec, stacked=True) for name, spec in block.items()}
        if "head" in found:
            found["head"] = _turn_spec("head", found["head"], stacked=False)
    if not scan_layers:
        one = jax.tree.map(lambda spec: WeightSpec(spec.shape[1:], spec.axes[1:], spec.init), block, is_leaf=is_spec)
        return {**found, "layers": (one,) * layers}
    return {**found, "layers": block}


def _turn_spec(name: str, spec: WeightSpec, *, stacked: bool) -> Any:
    def last(x: tuple) -> tuple:
        return (*x[:stacked], *x[stacked + 1 :], x[stacked])

    return TransposedWeight(WeightSpec(last(spec.shape), last(spec.axes), spec.init)) if name in SUMMED else spec


def _shrink_spec(name: str, spec: WeightSpec, *, stacked: bool) -> Any:
    if name not in SUMMED:
        return spec
    summed = SUMMED[name] + stacked
    shape = tuple(1 if axis == summed else size for axis, size in enumerate(spec.shape))
    axes = tuple(None if axis == summed else label for axis, label in enumerate(spec.axes))
    return Int8(spec, WeightSpec(shape, axes, spec.init))
