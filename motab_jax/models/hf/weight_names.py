"""Weight names: what each of our weights is called in a Hugging Face file, and how it is laid out there.

Llama, Qwen2 and Qwen3 use the same names; which of them a model has is said by `weight_specs`. Files store a linear
map as [out, in] and one tensor a layer; here it is [in, out] with the heads split, and the layers are stacked in front.
Left out: reading and writing files (pretrained.py).
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from motab_jax.config import UserError
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.transformer import WeightSpec, weight_specs

Path = tuple[str, ...]


Spans = tuple[tuple[int, int], ...]  # (first, one past the last) of every dimension


class Layout(NamedTuple):
    """Pure functions: `to_hf` takes one layer's weight to the file's layout, `from_hf` (with our shape) takes it back.

    `part` says which part of the stored tensor holds a part of ours, given its spans and our full shape; `outer` is
    the dimension of ours along which each part is contiguous in the file.
    """

    to_hf: Callable[[Any], Any]
    from_hf: Callable[[Any, tuple[int, ...]], Any]
    part: Callable[[Spans, tuple[int, ...]], Spans]
    outer: int = 0


def _untranspose(x: Any, shape: tuple[int, ...]) -> Any:
    return x.T.reshape(shape)


def _merged(spans: Spans, shape: tuple[int, ...]) -> tuple[int, int]:
    """The span of dimensions that the file merges into one; only the first may be split."""
    (first, last), *others = spans
    if any(span != (0, size) for span, size in zip(others, shape[1:], strict=True)):
        raise ValueError(f"{spans} of {shape} are not contiguous in the file: only the first dimension may be split")
    size = math.prod(shape[1:])
    return first * size, last * size


SAME = Layout(lambda x: x, lambda x, shape: x.reshape(shape), lambda spans, shape: spans)
FLAT = Layout(  # [heads, head] <-> [out]
    lambda x: x.reshape(-1), lambda x, shape: x.reshape(shape), lambda spans, shape: (_merged(spans, shape),)
)
FROM_WIDTH = Layout(  # [in, ...] <-> [out, in]
    lambda x: x.reshape(x.shape[0], -1).T,
    _untranspose,
    lambda spans, shape: (_merged(spans[1:], shape[1:]), spans[0]),
    outer=1,
)
TO_WIDTH = Layout(  # [..., out] <-> [out, in]
    lambda x: x.reshape(-1, x.shape[-1]).T,
    _untranspose,
    lambda spans, shape: (spans[-1], _merged(spans[:-1], shape[:-1])),
    outer=-1,
)

TABLE: dict[Path, tuple[str, Layout]] = {
    ("embed",): ("model.embed_tokens.weight", SAME),
    ("layers", "attn_norm"): ("model.layers.{layer}.input_layernorm.weight", SAME),
    ("layers", "q"): ("model.layers.{layer}.self_attn.q_proj.weight", FROM_WIDTH),
    ("layers", "k"): ("model.layers.{layer}.self_attn.k_proj.weight", FROM_WIDTH),
    ("layers", "v"): ("model.layers.{layer}.self_attn.v_proj.weight", FROM_WIDTH),
    ("layers", "o"): ("model.layers.{layer}.self_attn.o_proj.weight", TO_WIDTH),
    ("layers", "q_bias"): ("model.layers.{layer}.self_attn.q_proj.bias", FLAT),
    ("layers", "k_bias"): ("model.layers.{layer}.self_attn.k_proj.bias", FLAT),
    ("layers", "v_bias"): ("model.layers.{layer}.self_attn.v_proj.bias", FLAT),
    ("layers", "o_bias"): ("model.layers.{layer}.self_attn.o_proj.bias", SAME),
    ("layers", "q_norm"): ("model.layers.{layer}.self_attn.q_norm.weight", SAME),
    ("layers", "k_norm"): ("model.layers.{layer}.self_attn.k_norm.weight", SAME),
    ("layers", "mlp_norm"): ("model.layers.{layer}.post_attention_layernorm.weight", SAME),
    ("layers", "gate"): ("model.layers.{layer}.mlp.gate_proj.weight", FROM_WIDTH),
    ("layers", "up"): ("model.layers.{layer}.mlp.up_proj.weight", FROM_WIDTH),
    ("layers", "down"): ("model.layers.{layer}.mlp.down_proj.weight", FROM_WIDTH),
    ("final_norm",): ("model.norm.weight", SAME),
    ("head",): ("lm_head.weight", FROM_WIDTH),
}
EMBED_NAME = TABLE["embed",][0]
HEAD_NAME = TABLE["head",][0]


# What wrappers put before the names: data parallelism, adapters after they were merged.
WRAPPERS = ("module.", "base_model.model.")
# Extra heads, vision towers and constants, which transformers leaves out of these families too.
IGNORED = re.compile(r"(model\.)?(mtp|visual)\.|.*rotary_emb\.inv_freq$")


def plain_names(stored: set[str]) -> dict[str, str]:
    """{the name as transformers writes it: the name in the file} of the tensors that count.

    Files of wrapped models say `module.`, `base_model.model.` or `_orig_mod.`, those of a model without its head
    leave out `model.`.

    Raises:
      UserError: there are adapters beside the weights, or two tensors have the same name.
    """
    if adapters := sorted(name for name in stored if ".lora_" in name):
        raise UserError(
            f"holds adapter weights ({adapters[0]}, ...); merge them into the model (peft: merge_and_unload) and save"
        )
    plain = {name: name.replace("_orig_mod.", "") for name in stored}
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in plain.values()):
            plain = {held: name.removeprefix(prefix) for held, name in plain.items()}
    plain = {held: name for held, name in plain.items() if not IGNORED.match(name)}
    if EMBED_NAME.removeprefix("model.") in plain.values():
        plain = {held: name if name == HEAD_NAME else f"model.{name}" for held, name in plain.items()}
    by_name = {name: held for held, name in plain.items()}
    if len(by_name) < len(plain):
        twice = sorted(held for held, name in plain.items() if by_name[name] != held)
        raise UserError(f"two tensors have one name: {twice[0]} and {by_name[plain[twice[0]]]}")
    return by_name


def layers_in(names: set[str]) -> int:
    """How many layers these tensors are of."""
    layers = [int(found[1]) for name in names if (found := re.match(r"model\.layers\.(\d{1,9})\.", name))]
    return max(layers, default=-1) + 1


class Tensor(NamedTuple):
    """One tensor of a file: its name and shape there, and where it belongs: a weight, and a layer of it (or None)."""

    name: str
    shape: tuple[int, ...]
    path: Path
    layer: int | None


def flat_specs(config: ModelConfig) -> dict[Path, WeightSpec]:
    """`weight_specs`, flattened: path -> spec."""
    flat: Any = flax.traverse_util.flatten_dict(weight_specs(config))
    return flat


def tensors(config: ModelConfig) -> list[Tensor]:
    """Every tensor that a file of this architecture holds, in the order of the network: embedding, layers, head."""
    specs = flat_specs(config)
    tensors_of_file = []
    for path, (pattern, layout) in TABLE.items():
        if path not in specs:
            continue
        stacked = path[0] == "layers"
        weight_shape = specs[path].shape[1:] if stacked else specs[path].shape
        shape = layout.to_hf(np.broadcast_to(np.int8(0), weight_shape)).shape
        for layer in range(config.num_layers) if stacked else [None]:
            tensors_of_file.append(Tensor(pattern.format(layer=layer), shape, path, layer))
    order: dict[Path, int] = {("embed",): -1, ("final_norm",): config.num_layers, ("head",): config.num_layers}
    return sorted(tensors_of_file, key=lambda tensor: order.get(tensor.path, tensor.layer or 0))


def load_shardings(mesh: Mesh, config: ModelConfig) -> Any:
    """Shardings of the parameters while they are read: no two devices have the same part, as far as sizes divide.

    A shard is contiguous in the file where it can be: a layer's full tensor, or rows of it. Strided reads would touch
    every page of the file on every host. What is sharded over `tensor` stays so in the other layouts.
    """

    def sharding_of(path: Path, spec: WeightSpec) -> NamedSharding:
        stacked = path[0] == "layers"
        dimensions = len(spec.shape) - stacked  # of one layer
        outer = stacked + TABLE[path][1].outer % dimensions
        free = [axis for axis in ("tensor", "data", "fsdp") if mesh.shape[axis] > 1]
        axes_of: list[tuple[str, ...]] = [()] * len(spec.shape)  # mesh axes of each dimension
        for dimension in (outer, 0, *(n for n, name in enumerate(spec.axes) if name == "embed")):
            for axis in tuple(free):
                ways = math.prod(mesh.shape[name] for name in (*axes_of[dimension], axis))
                if spec.shape[dimension] % ways == 0:
                    axes_of[dimension] = (*axes_of[dimension], axis)
                    free.remove(axis)
        # `tensor` is the innermost axis where it moves to another dimension later: that takes one all-to-all.
        for dimension, name in enumerate(spec.axes):
            if name == "embed":
                axes_of[dimension] = tuple(sorted(axes_of[dimension], key=lambda axis: axis == "tensor"))
        return NamedSharding(mesh, PartitionSpec(*(axes or None for axes in axes_of)))

    return flax.traverse_util.unflatten_dict(
        {path: sharding_of(path, spec) for path, spec in flat_specs(config).items()}
    )


def to_hf(path: Path, weight: Any) -> Any:
    """One layer of the weight at `path` (all of an unstacked weight) as the file stores it."""
    return TABLE[path][1].to_hf(weight)


def from_hf(path: Path, stored: Any, shape: tuple[int, ...]) -> Any:
    """A stored tensor, or the part of it that `part_of` names, as one layer of the weight at `path`, of our `shape`."""
    return TABLE[path][1].from_hf(stored, shape)


def part_of(path: Path, spans: Spans, shape: tuple[int, ...]) -> Spans:
    """The spans of the stored tensor that hold these spans of one layer of the weight at `path`, whose shape is given.

    ValueError where they are not contiguous: of several dimensions that the file merges, only the first may be split.
    """
    return TABLE[path][1].part(spans, shape)
