"""From the form in which parameters are read or trained to the form in which they serve: where each weight lies.

The student is laid out anew every step, in one program. The teacher is laid out once, a weight at a time: where it
fills the devices, there is no room for all weights in both forms.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding, PartitionSpec

from motab_jax.config import Config
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.hf.weight_names import load_shardings
from motab_jax.models.serving import serve_params, serve_specs, with_copied_heads
from motab_jax.models.transformer import Model, Params, is_spec, weight_specs
from motab_jax.runtime.mesh import layout_shardings, platform_of


def layout(mesh, config, name: str, specs=None):
    """Shardings of a model's parameters, or of what `specs` describe, in the layout `update` or `serve`."""
    specs = weight_specs(config) if specs is None else specs
    axes = jax.tree.map(lambda spec: spec.axes, specs, is_leaf=is_spec)
    shapes = jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32), specs, is_leaf=is_spec)
    return layout_shardings(mesh, axes, name, shapes)


def serving(mesh, shape: ModelConfig, config: Config, *, dtype: str | None = None) -> Callable[[Params], Model]:
    """The jitted function from params to a `Model` in serving form and layout."""
    relay, places = _relay(mesh, shape, config, dtype=dtype)
    return jax.jit(relay, out_shardings=places)


@dataclasses.dataclass(frozen=True)
class PerWeightRelayout:
    """A relayout by one jitted program for each weight of the serving form, from all params to that weight's arrays."""

    programs: dict[str, Callable[[Params], list[Any]]]
    leaves: dict[str, list[int]]  # the arrays' numbers among the model's
    structure: Any

    def __call__(self, params: Params) -> Model:
        """The model; each program has ended, and given its memory back, before the next begins."""
        return self.assembled({name: jax.block_until_ready(lay(params)) for name, lay in self.programs.items()})

    def assembled(self, arrays: dict[str, list[Any]]) -> Model:
        """The model of these arrays, or of their shapes, each program's."""
        numbered = {n: x for name, found in arrays.items() for n, x in zip(self.leaves[name], found, strict=True)}
        return jax.tree.unflatten(self.structure, [numbered[n] for n in range(len(numbered))])


def teacher_serving(mesh, shape: ModelConfig, config: Config) -> PerWeightRelayout:
    """The teacher's relayout, to int8 where `teacher.quantize` asks for it."""
    relay, places = _relay(mesh, shape, config, int8=config.teacher.quantize == "int8")
    found, structure = jax.tree.flatten_with_path(places)
    leaves: dict[str, list[int]] = {}
    for number, (path, _) in enumerate(found):
        leaves.setdefault([key.key for key in path if isinstance(key, jax.tree_util.DictKey)][-1], []).append(number)

    between = jax.tree.map(_between, load_shardings(mesh, shape), layout(mesh, shape, "serve"))

    def program(name: str, numbers: list[int]) -> Callable[[Params], list[Any]]:
        # What these arrays do not depend on is neither computed nor an argument of the compiled program.
        def lay(params: Params) -> list[Any]:
            arrays = jax.tree.leaves(relay(jax.lax.with_sharding_constraint(params, between)))
            return [arrays[n] for n in numbers]

        lay.__name__ = f"lay_out_{name}"
        return jax.jit(lay, out_shardings=[found[n][1] for n in numbers])

    return PerWeightRelayout({name: program(name, numbers) for name, numbers in leaves.items()}, leaves, structure)


def _relay(
    mesh, shape: ModelConfig, config: Config, *, dtype: str | None = None, int8: bool = False
) -> tuple[Callable[[Params], Model], Model]:
    """The function from params to a `Model` in serving form, and its places."""
    scan = config.rollout.scan_layers
    scan = platform_of(mesh) != "cpu" if scan is None else scan
    form, shape = {"scan_layers": scan, "int8": int8}, with_copied_heads(shape, mesh.shape["tensor"])
    specs = serve_specs(shape, **form)

    def relay(params: Params) -> Model:
        return Model(serve_params(params, shape, dtype=dtype, **form), shape)

    places = layout(mesh, shape, "serve", specs)
    if platform_of(mesh) == "tpu":
        places = jax.tree.map(_in_order, specs, places, is_leaf=is_spec)
    return relay, Model(places, shape)


def _between(read: NamedSharding, serve: NamedSharding) -> NamedSharding:
    """Where a weight is on its way: cut over `tensor` as it serves, over the other axes as it was read. In one step the
    compiler may bring the whole weight to every chip; these are an exchange and a gathering."""

    def part(before: Any, after: Any) -> tuple[str, ...]:
        axes = (before,) if isinstance(before, str) else before or ()
        others = tuple(axis for axis in axes if axis != "tensor")
        return ("tensor", *others) if after == "tensor" else others

    parts = (part(*pair) or None for pair in zip(read.spec, serve.spec, strict=True))
    return NamedSharding(read.mesh, PartitionSpec(*parts))


def _in_order(spec, place) -> Format:
    """The place, with memory in the order of the dimensions, as the rollout's products take a weight. A TPU's own
    choice, that which needs the least padding, may be another, and every rollout would hold such weights twice."""
    return Format(Layout(tuple(range(len(spec.shape)))), place)
