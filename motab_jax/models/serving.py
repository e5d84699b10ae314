"""The serving form: the weights as they decode fastest, with fused projections, and layers stacked or one by one.

`serve_params` is pure; jitted, it makes the student's serving weights once an update. The model computes the same in
every form but for rounding. Left out: the shardings of the weights (session/placement.py).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from motab_jax.models.architecture import ModelConfig
from motab_jax.models.quantize import TransposedWeight, Weight, quantize
from motab_jax.models.transformer import Params, WeightSpec, weight_specs

FUSED = ("q", "k", "v", "o")
# The dimension of one layer's weight that its matmul sums over.
SUMMED = {"qkv": 0, "o": 0, "gate": 0, "up": 0, "gate_up": 0, "down": 0, "head": 0, "embed": 1}
# Logical axes of the weights that only this form has, without the layer's.
AXES = {
    "qkv": ("embed", "kv_heads"),
    "o": ("heads", "embed"),
    "gate_up": ("embed", None, "mlp"),
    "head": ("embed", "vocab"),
}


def serve_params(
    params: Params,
    config: ModelConfig,
    *,
    scan_layers: bool,
    dtype: DTypeLike | None = None,
    int8: bool = False,
    head: bool = False,
) -> Params:
    """Params in serving form.

    Args:
      params: trained or loaded parameters.
      config: their architecture, or that `with_copied_heads`.
      scan_layers: whether the layers stay stacked; else one dict a layer, with transposed matrices (for CPUs).
      dtype: of the result; None keeps that of `params`.
      int8: whether matrices are quantized.
      head: whether a tied embedding also gets a transposed copy as the head, which saves a CPU a little at one row
          and takes twice the time at more.
    """
    params = jax.tree.map(lambda x: x.astype(dtype or x.dtype), params)
    layers = _fuse(_copy_heads(params["layers"], config), config, mlp=not scan_layers)
    others = {"embed": params["embed"], "final_norm": params["final_norm"]}
    if "head" in params or head:
        others["head"] = params["head"] if "head" in params else params["embed"].T
    if int8:
        layers = {name: _quantize(name, weight, stacked=True) for name, weight in layers.items()}
        others = {name: _quantize(name, weight, stacked=False) for name, weight in others.items()}
    elif not scan_layers:
        layers = {name: _transpose(name, weight, stacked=True) for name, weight in layers.items()}
        if "head" in others:
            others["head"] = _transpose("head", others["head"], stacked=False)
    if not scan_layers:
        layers = tuple(jax.tree.map(lambda x, n=n: x[n], layers) for n in range(config.num_layers))
    return {**others, "layers": layers}


def with_copied_heads(config: ModelConfig, ways: int) -> ModelConfig:
    """The config with each key-value head copied for as many of `ways` devices as share it.

    Each device then has a head and its cache to itself; the model computes the same. Unchanged unless `ways` is a
    multiple of the heads, and more.

    >>> config = ModelConfig("qwen3", 50, 32, 48, 3, 8, 2, 8, 4096)
    >>> [with_copied_heads(config, ways).num_kv_heads for ways in (1, 2, 3, 4, 8)]
    [2, 2, 2, 4, 8]
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


def _quantize(name: str, weight: Float[Array, "..."], *, stacked: bool) -> Weight:
    return quantize(weight, (SUMMED[name] + stacked,)) if name in SUMMED else weight


def _transpose(name: str, weight: Float[Array, "..."], *, stacked: bool) -> Weight:
    return TransposedWeight(jnp.moveaxis(weight, stacked, -1)) if name in SUMMED else weight


def serve_specs(config: ModelConfig, *, scan_layers: bool, int8: bool = False, head: bool = False) -> dict[str, Any]:
    """Every weight of the serving form as a `WeightSpec`, in the structure that `serve_params` gives.

    Args:
      config: the architecture, or that `with_copied_heads`.
      scan_layers: as in `serve_params`.
      int8: likewise.
      head: likewise.
    """
    specs = weight_specs(config)
    params = jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32), specs)
    form = functools.partial(serve_params, config=config, scan_layers=scan_layers, int8=int8, head=head)
    known = {**specs, **specs["layers"]}

    def spec(path: tuple, array: jax.ShapeDtypeStruct) -> WeightSpec:
        name = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)][-1]
        field = path[-1].name if isinstance(path[-1], jax.tree_util.GetAttrKey) else None
        axes = AXES[name] if name in AXES else known[name].axes[name in specs["layers"] :]
        if field == "scale":
            axes = tuple(None if axis == SUMMED[name] else label for axis, label in enumerate(axes))
        elif field == "values" and not int8:  # a TransposedWeight
            axes = (*axes[: SUMMED[name]], *axes[SUMMED[name] + 1 :], axes[SUMMED[name]])
        stacked = ("layer",) * (array.ndim - len(axes))
        return WeightSpec(array.shape, stacked + axes, known[name].init if name in known else "normal")

    return jax.tree_util.tree_map_with_path(spec, jax.eval_shape(form, params))
