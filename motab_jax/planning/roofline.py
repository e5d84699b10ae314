"""What a step costs at the least, by arithmetic: FLOPs, bytes and link traffic of each phase on one device.

A phase's time is the largest of what its FLOPs, its memory traffic and its links would take alone at the vendor's peak
rates; nothing here was measured. Letters as the configuration has them: rows of a batch are cut over data * fsdp (g
groups), weights over tensor (t devices).
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from motab_jax.config import Config
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.transformer import is_spec, weight_specs
from motab_jax.planning.hlo import Chip

STRAYED = 0.3  # share of the tokens that the teacher writes, unless said otherwise


class Phase(NamedTuple):
    """A part of a step, on one device: what it does, how long at the least, and what binds it."""

    name: str
    flops: float
    bytes: float
    linked: float  # bytes over the links
    seconds: float
    binds: str


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How a step is cut up."""

    data: int
    fsdp: int
    tensor: int
    rows: int  # trajectories a step
    slots: int  # decoded at a time
    prompt: int
    new: int
    segment: int
    strayed: float

    @property
    def groups(self) -> int:
        return self.data * self.fsdp

    @property
    def columns(self) -> float:
        """Columns that a device decodes, one after the other."""
        return math.ceil(self.rows / self.slots) * self.new

    @property
    def live(self) -> float:
        """Columns of a text that a decoded token attends to, half-way."""
        return self.prompt + self.new / 2


def sizes_of(config: Config, mesh: dict[str, int], strayed: float = STRAYED) -> Sizes:
    """The sizes that a configuration has on a mesh {data, fsdp, tensor}."""
    rollout = config.rollout
    return Sizes(
        mesh["data"], mesh["fsdp"], mesh["tensor"], rollout.batch_size, rollout.slots or rollout.batch_size,
        config.data.max_prompt_tokens, rollout.max_new_tokens, rollout.segment_tokens, strayed,
    )  # fmt: skip


def phases(config: Config, student: ModelConfig, teacher: ModelConfig | None, sizes: Sizes, chip: Chip) -> list[Phase]:
    """The phases of an on-policy step. Without a teacher there are only the student's."""
    serve = jnp.dtype(config.rollout.serve_dtype or config.student.dtype).itemsize
    found = [
        _relayout(config, student, sizes, chip, serve),
        _reading("student reads prompts", student, sizes, chip, serve, sizes.prompt, sizes.rows / sizes.slots),
        _writing("student decodes", student, sizes, chip, serve, serve, sizes.columns),
    ]
    if teacher is not None:
        cached = jnp.dtype(config.teacher.dtype).itemsize
        held = 1 if config.teacher.quantize == "int8" else cached
        turns = sizes.rows / sizes.slots
        found += [
            _reading("teacher reads prompts", teacher, sizes, chip, held, sizes.prompt, turns),
            _reading("teacher scores", teacher, sizes, chip, held, sizes.segment, sizes.columns / sizes.segment),
        ]
        if config.monitor.enabled:
            columns = sizes.strayed * sizes.columns
            found.append(_writing("teacher writes", teacher, sizes, chip, held, cached, columns))
    return [*found, _update(config, student, teacher, sizes, chip)]


def parameters(shape: ModelConfig) -> tuple[int, int]:
    """(all, those that a token is multiplied with) of a model: an embedding is looked up, unless it is the head too."""
    count = sum(math.prod(spec.shape) for spec in jax.tree.leaves(weight_specs(shape), is_leaf=is_spec))
    return count, count - (0 if shape.tied else shape.vocab_size * shape.width)


def cache_bytes_per_token(shape: ModelConfig, itemsize: int, tensor: int) -> float:
    """Bytes of a token's keys and values on one device of `tensor`; a head that does not divide is there whole."""
    heads = max(shape.num_kv_heads / tensor, 1)
    return 2 * shape.num_layers * heads * shape.head_dim * itemsize


def _phase(name: str, chip: Chip, flops: float, moved: float, linked: float) -> Phase:
    times = {"FLOPs": flops / chip.flops, "memory": moved / chip.bandwidth, "links": linked / chip.links}
    binds = max(times, key=lambda kind: times[kind])
    return Phase(name, flops, moved, linked, times[binds], binds)


def _attention(shape: ModelConfig, tokens: float, seen: float) -> float:
    """FLOPs of scores and mixing for tokens that each see so many columns."""
    return 4 * shape.num_layers * shape.num_heads * shape.head_dim * tokens * seen


def _reduced(shape: ModelConfig, tokens: float, tensor: int, itemsize: int, times: int) -> float:
    """Bytes over a device's links for the sums of activations over `tensor`, `times` in each layer."""
    return times * shape.num_layers * tokens * shape.width * itemsize * 2 * (tensor - 1) / tensor


def _writing(name, shape: ModelConfig, sizes: Sizes, chip: Chip, held: int, cached: int, columns: float) -> Phase:
    """Decoding: each column reads all weights and the live part of the cache."""
    rows, t = sizes.slots / sizes.groups, sizes.tensor
    _, multiplied = parameters(shape)
    flops = (2 * multiplied * rows + _attention(shape, rows, sizes.live)) / t
    moved = multiplied * held / t + rows * sizes.live * cache_bytes_per_token(shape, cached, t)
    linked = _reduced(shape, rows, t, cached, 2)
    return _phase(name, chip, columns * flops, columns * moved, columns * linked)


def _reading(name, shape: ModelConfig, sizes: Sizes, chip: Chip, held: int, tokens: float, turns: float) -> Phase:
    """Reading segments of so many tokens in one pass each."""
    rows, t = sizes.slots / sizes.groups, sizes.tensor
    _, multiplied = parameters(shape)
    head = shape.vocab_size * shape.width if name == "teacher scores" else 0
    flops = (2 * (multiplied - shape.vocab_size * shape.width + head) * rows * tokens) / t
    flops += _attention(shape, rows * tokens, sizes.live) / t
    moved = multiplied * held / t + rows * sizes.live * cache_bytes_per_token(shape, 2, t)
    linked = _reduced(shape, rows * tokens, t, 2, 2)
    return _phase(name, chip, turns * flops, turns * moved, turns * linked)


def _relayout(config: Config, shape: ModelConfig, sizes: Sizes, chip: Chip, serve: int) -> Phase:
    """The student's weights gathered over fsdp for serving."""
    count, _ = parameters(shape)
    whole = count * serve / sizes.tensor
    stored = jnp.dtype(config.student.dtype).itemsize * count / (sizes.tensor * sizes.fsdp)
    return _phase("relayout", chip, 0.0, stored + whole, whole * (sizes.fsdp - 1) / sizes.fsdp)


def _update(config: Config, student: ModelConfig, teacher: ModelConfig | None, sizes: Sizes, chip: Chip) -> Phase:
    """Forward and backward over all tokens, both heads, and the optimizer."""
    count, multiplied = parameters(student)
    t, f, d = sizes.tensor, sizes.fsdp, sizes.data
    tokens, length = sizes.rows * (sizes.prompt + sizes.new) / sizes.groups, sizes.prompt + sizes.new
    passes = 4 if config.optimizer.remat == "full" else 3
    flops = 2 * passes * multiplied * tokens + passes * _attention(student, tokens, length / 2)
    if teacher is not None and config.rollout.targets == "hidden":
        flops += 2 * teacher.width * teacher.vocab_size * tokens
    stored = jnp.dtype(config.student.dtype).itemsize
    used = jnp.dtype(config.optimizer.compute_dtype or config.student.dtype).itemsize
    shard, micro = count / (t * f), config.optimizer.accumulate
    moved = shard * (2 * stored + 4 * 4 + 2 * 4) + micro * passes * count * used / t
    gathered = (f - 1) / f * (2 * micro * count * used / t + micro * count * 4 / t)
    linked = gathered + 2 * (d - 1) / d * shard * 4 + 2 * _reduced(student, tokens, t, used, 2)
    return _phase("update", chip, flops / t, moved, linked)


def memory(config: Config, student: ModelConfig, teacher: ModelConfig | None, sizes: Sizes) -> dict[str, float]:
    """Bytes on a device by arithmetic, where no compiler says it: weights, moments, copies, caches, targets."""
    t, f = sizes.tensor, sizes.fsdp
    count, _ = parameters(student)
    stored = jnp.dtype(config.student.dtype).itemsize
    serve = jnp.dtype(config.rollout.serve_dtype or config.student.dtype).itemsize
    rows, slots = sizes.rows / sizes.groups, sizes.slots / sizes.groups
    columns = sizes.prompt + sizes.new + max(sizes.segment, sizes.new // 4)
    found = {
        "student, moments, gradient": count * (stored + 8 + 4) / (t * f),
        "student, serving": count * serve / t,
        "student's cache": slots * columns * cache_bytes_per_token(student, serve, t),
    }
    if teacher is not None:
        cached = jnp.dtype(config.teacher.dtype).itemsize
        held = 1 if config.teacher.quantize == "int8" else cached
        width = teacher.width / t if config.rollout.targets == "hidden" else 2 * config.rollout.targets_k
        found |= {
            "teacher": parameters(teacher)[0] * held / t,
            "teacher's cache": slots * columns * cache_bytes_per_token(teacher, cached, t),
            "targets": rows * 2 * sizes.new * width * cached,
        }
    return found
