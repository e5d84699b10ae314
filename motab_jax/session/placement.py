"""Relayout: from the form and shardings in which weights are loaded or trained to those in which a model decodes.

The student's relayout is one program, run once an update. The teacher's runs once, as one program for each weight:
where the teacher fills the devices, there is no room for all of its weights in both forms.
Left out: the serving form itself (models/serving.py) and the table of mesh axes (runtime/mesh.py).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from motab_jax.models.architecture import ModelConfig
from motab_jax.models.hf.weight_names import load_shardings
from motab_jax.models.serving import serve_params, serve_specs, with_copied_heads
from motab_jax.models.transformer import Model, Params, WeightSpec, weight_specs
from motab_jax.runtime.mesh import LAYOUTS, layout_shardings, platform_of


def layout(mesh: Mesh, config: ModelConfig, name: str, specs: Any = None) -> Any:
    """Shardings of a model's parameters, or of the weights that `specs` describe, in a layout.

    Args:
      mesh: the devices.
      config: the architecture.
      name: of the layout, `update` or `serve`.
      specs: a tree of `WeightSpec`s; None: those of the parameters.
    """
    specs = weight_specs(config) if specs is None else specs
    return jax.tree.map(lambda spec: layout_shardings(mesh, spec.axes, name, spec.shape), specs)


def undivided(mesh: Mesh, config: ModelConfig) -> list[str]:
    """The weights with a dimension that its mesh axis does not divide: it is replicated, and they take more memory.

    >>> from motab_jax.runtime.mesh import make_mesh
    >>> config = ModelConfig("qwen3", 50257, 32, 48, 3, 8, 2, 8, 4096)
    >>> undivided(make_mesh(1, 1, 1, devices=jax.devices()[:1]), config)
    []
    """
    found = {}
    for path, spec in jax.tree.leaves_with_path(weight_specs(config)):
        for size, axis in zip(spec.shape, spec.axes, strict=True):
            mesh_axis = LAYOUTS["update"][axis]
            if isinstance(mesh_axis, str) and size % mesh.shape[mesh_axis]:
                text = f"{size} of {path[-1].key} over mesh.{mesh_axis}={mesh.shape[mesh_axis]}"
                found[axis, size] = text
    return sorted(found.values())


def serving(
    mesh: Mesh, config: ModelConfig, *, scan_layers: bool | None = None, dtype: str | None = None
) -> Callable[[Params], Model]:
    """The student's relayout: a jitted function from params to a `Model` in serving form and layout.

    Args:
      mesh: the devices.
      config: the architecture of the params.
      scan_layers: whether the layers stay stacked; None: everywhere but on CPUs.
      dtype: of the weights in serving form; None keeps that of the params.
    """
    relayout, shardings = make_relayout(mesh, config, scan_layers=scan_layers, dtype=dtype)
    return jax.jit(relayout, out_shardings=shardings)


@dataclasses.dataclass(frozen=True)
class PerWeightRelayout:
    """A relayout by one jitted program for each weight of the serving form, from all params to that weight's arrays."""

    programs: dict[str, Callable[[Params], list[Any]]]
    leaves: dict[str, list[int]]  # the indices of the arrays among the model's leaves
    structure: Any  # the model's tree structure

    def __call__(self, params: Params) -> Model:
        """The model. The programs run one after the other, so that each frees its temporaries before the next."""
        return self.assemble({name: jax.block_until_ready(run(params)) for name, run in self.programs.items()})

    def assemble(self, arrays: dict[str, list[Any]]) -> Model:
        """The model of the arrays (or their shapes) that each program returns."""
        by_index = {n: x for name, leaves in arrays.items() for n, x in zip(self.leaves[name], leaves, strict=True)}
        return jax.tree.unflatten(self.structure, [by_index[n] for n in range(len(by_index))])


def teacher_serving(
    mesh: Mesh, config: ModelConfig, *, scan_layers: bool | None = None, int8: bool = False
) -> PerWeightRelayout:
    """The teacher's relayout, from params in the shardings of `load_shardings`.

    Args:
      mesh: the devices.
      config: the architecture of the params.
      scan_layers: whether the layers stay stacked; None: everywhere but on CPUs.
      int8: whether matrices are quantized to 8 bits.
    """
    relayout, shardings = make_relayout(mesh, config, scan_layers=scan_layers, int8=int8)
    leaf_shardings, structure = jax.tree.flatten_with_path(shardings)
    leaves: dict[str, list[int]] = {}
    for index, (path, _) in enumerate(leaf_shardings):
        leaves.setdefault([key.key for key in path if isinstance(key, jax.tree_util.DictKey)][-1], []).append(index)

    intermediate = jax.tree.map(intermediate_sharding, load_shardings(mesh, config), layout(mesh, config, "serve"))

    def program(name: str, indices: list[int]) -> Callable[[Params], list[Any]]:
        # The compiled program neither computes nor takes as arguments what these arrays do not depend on.
        def one_weight(params: Params) -> list[Any]:
            arrays = jax.tree.leaves(relayout(jax.lax.with_sharding_constraint(params, intermediate)))
            return [arrays[n] for n in indices]

        one_weight.__name__ = f"relayout_{name}"
        return jax.jit(one_weight, out_shardings=[leaf_shardings[n][1] for n in indices])

    return PerWeightRelayout({name: program(name, indices) for name, indices in leaves.items()}, leaves, structure)


def make_relayout(
    mesh: Mesh, config: ModelConfig, *, scan_layers: bool | None, dtype: str | None = None, int8: bool = False
) -> tuple[Callable[[Params], Model], Any]:
    """A relayout that is not jitted yet.

    Args:
      mesh: the devices.
      config: the architecture of the params.
      scan_layers: whether the layers stay stacked; None: everywhere but on CPUs.
      dtype: of the weights in serving form; None keeps that of the params.
      int8: whether matrices are quantized to 8 bits.

    Returns:
      The function from params to a `Model` in serving form, and a `Model` of its shardings.
    """
    scan = platform_of(mesh) != "cpu" if scan_layers is None else scan_layers
    served_config = with_copied_heads(config, mesh.shape["tensor"])
    specs = serve_specs(served_config, scan_layers=scan, int8=int8)

    def relayout(params: Params) -> Model:
        return Model(serve_params(params, served_config, scan_layers=scan, int8=int8, dtype=dtype), served_config)

    shardings = layout(mesh, served_config, "serve", specs)
    if platform_of(mesh) == "tpu":
        shardings = jax.tree.map(row_major, specs, shardings)
    return relayout, Model(shardings, served_config)


def intermediate_sharding(load: NamedSharding, serve: NamedSharding) -> NamedSharding:
    """A weight's sharding between loading and serving: over `tensor` as in serving, over the other axes as loaded.

    Without it the compiler may gather the full weight on every device; with it the relayout is one all-to-all and one
    all-gather.
    """

    def entry(before: Any, after: Any) -> tuple[str, ...]:
        axes = (before,) if isinstance(before, str) else before or ()
        others = tuple(axis for axis in axes if axis != "tensor")
        return ("tensor", *others) if after == "tensor" else others

    entries = (entry(*pair) or None for pair in zip(load.spec, serve.spec, strict=True))
    return NamedSharding(load.mesh, PartitionSpec(*entries))


def row_major(spec: WeightSpec, sharding: NamedSharding) -> Format:
    """The sharding, with the weight in memory in the order of its dimensions, as the rollout's products take it.

    A TPU's default layout, the one with the least padding, may differ, and every rollout would hold a second copy.
    """
    return Format(Layout(tuple(range(len(spec.shape)))), sharding)
