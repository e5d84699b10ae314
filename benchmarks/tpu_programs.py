"""The programs as XLA compiles them for TPUs, ahead of time and without one: Qwen3-4B teaches Qwen3-0.6B.

    python benchmarks/tpu_programs.py [--json FILE] [--chips v5e v5p v6e]

Four chips, cut over `tensor`; bfloat16; 32 slots, prompts of 256 tokens, 2048 new ones. For each chip and program:
bytes a device needs, copies of arrays as large as a cache, scatters into it, collectives. Temporaries are what is left
without the caches, which live inside the rollout. Times are rooflines of a decoded column, not measurements.
"""

import math
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parent))
import bench

from motab_jax.data.steps import StepAutomaton
from motab_jax.distill import (
    Objective,
    TokenLoss,
    build_targets,
    init_state,
    make_optimizer,
    make_schedule,
    select_teacher_head,
)
from motab_jax.distill import make_update as make
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.serving import serve_specs
from motab_jax.models.transformer import Model, weight_specs
from motab_jax.planning import hlo
from motab_jax.planning.topologies import CHIPS, Chip, topology_devices
from motab_jax.rollout import MonitorSpec, Prompts, RolloutConfig, rollout
from motab_jax.rollout.row_groups import run_per_group
from motab_jax.rollout.score_finished import score_trajectories
from motab_jax.runtime.mesh import batch_sharding, layout_shardings, make_mesh, replicated

VOCAB, PROMPT, NEW, SLOTS, SEGMENT = 151936, 256, 2048, 32, 64
STUDENT = ModelConfig("qwen3", VOCAB, 1024, 3072, 28, 16, 8, 128, 40960, qk_norm=True, tied=True)
TEACHER = ModelConfig("qwen3", VOCAB, 2560, 9728, 36, 32, 8, 128, 40960, qk_norm=True, tied=True)
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


def model(shape: ModelConfig, mesh, specs=None, layout: str = "serve", dtype=jnp.bfloat16) -> Model:
    """A model without weights, in serving form and layout unless told otherwise."""
    specs = specs or serve_specs(shape, scan_layers=True)
    axes = jax.tree.map(lambda spec: spec.axes, specs)
    shapes = jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, dtype), specs)
    return Model(
        jax.tree.map(lambda x, s: x.update(sharding=s), shapes, layout_shardings(mesh, axes, layout, shapes)), shape
    )


def numbers(mesh) -> RolloutConfig:
    """The engine's numbers, abstract where they are arrays."""

    def config() -> RolloutConfig:
        automaton = StepAutomaton(jnp.zeros((3, VOCAB), jnp.int32), jnp.zeros((3, VOCAB), bool))
        return RolloutConfig(
            automaton,
            jnp.zeros(2, jnp.int32),
            jnp.float32(0),
            jnp.float32(0),
            vocab_size=VOCAB,
            max_new_tokens=NEW,
            segment_tokens=SEGMENT,
        )

    return jax.tree.map(lambda x: x.update(sharding=replicated(mesh)), jax.eval_shape(config))


def prompts(mesh, rows: int) -> Prompts:
    """Abstract prompts."""
    per_row = jax.ShapeDtypeStruct((rows,), jnp.int32)
    shapes = jax.eval_shape(Prompts, jax.ShapeDtypeStruct((rows, PROMPT), jnp.int32), per_row, per_row, per_row)
    return jax.tree.map(lambda x: x.update(sharding=batch_sharding(mesh)), shapes)


def caches(mesh, rows: int) -> tuple[list[tuple[int, ...]], int]:
    """Dimensions of the rollout's caches on one device, and their bytes together."""
    columns, tensor = PROMPT + NEW + max(SEGMENT, NEW // 4), mesh.shape["tensor"]
    dims = [(m.num_layers, rows, m.num_kv_heads // tensor, columns, m.head_dim) for m in (STUDENT, TEACHER)]
    return dims, sum(2 * 2 * math.prod(cache) for cache in dims)


def compile_rollout(mesh, rows: int = SLOTS):
    """The rollout with the monitor on."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = model(STUDENT, mesh), model(TEACHER, mesh), prompts(mesh, rows), key, numbers(mesh)
    return jax.jit(run_per_group(rollout, mesh, (False, False, True, False))).lower(*arguments).compile()


def compile_scoring(mesh, rows: int = SLOTS):
    """The teacher's pass over finished rows, as without a monitor."""
    config = numbers(mesh).replace(monitor=MonitorSpec(enabled=False), score_after=True)
    log = jax.eval_shape(rollout, model(STUDENT, mesh), model(TEACHER, mesh), prompts(mesh, rows), KEY, config)
    log = jax.tree.map(lambda x: x.update(sharding=batch_sharding(mesh) if x.ndim > 1 else replicated(mesh)), log)

    def score(teacher, log, counters, config):  # the rows apart from the counters, which are of all groups
        return score_trajectories(teacher, log.replace(counters=counters), config)

    arguments = model(TEACHER, mesh), log.replace(counters=None), log.counters, config
    return jax.jit(run_per_group(score, mesh, (False, True, False))).lower(*arguments).compile()


KEY = jax.eval_shape(lambda: jax.random.key(0))


def compile_update(mesh, rows: int = SLOTS):
    """The update on spliced targets, reverse KL, layers recomputed."""
    objective = Objective(student=TokenLoss("reverse_kl"), teacher=TokenLoss("forward_kl"), vocab_size=VOCAB)
    schedule = make_schedule("cosine", peak=1e-5, floor=0.0, steps=100, warmup_ratio=0.05)
    optimizer = make_optimizer(schedule, weight_decay=0.0, clip=1.0, beta1=0.9, beta2=0.95)
    update = make(STUDENT, optimizer, objective, remat="full")
    student, teacher = model(STUDENT, mesh, weight_specs(STUDENT), "update", jnp.float32), model(TEACHER, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, student.params)
    state = jax.eval_shape(lambda params: init_state(params, optimizer), student.params)
    structure = jax.tree.structure(shardings)

    def put(node):
        if jax.tree.structure(node) == structure:
            return jax.tree.map(lambda x, s: x.update(sharding=s), node, shardings)
        return node.update(sharding=replicated(mesh))

    state = jax.tree.map(put, state, is_leaf=lambda node: jax.tree.structure(node) == structure)

    def step(state, head, log):
        return update(
            state, head, build_targets(log, target="spliced", transition=jnp.zeros((0,), jnp.int32), max_tokens=NEW)
        )

    log = jax.eval_shape(rollout, model(STUDENT, mesh), model(TEACHER, mesh), prompts(mesh, rows), KEY, numbers(mesh))
    log = jax.tree.map(lambda x: x.update(sharding=batch_sharding(mesh) if x.ndim > 1 else replicated(mesh)), log)
    return jax.jit(step, donate_argnums=0).lower(state, select_teacher_head(teacher, objective), log).compile()


def roofline(shape: ModelConfig, chip: Chip, tensor: int) -> tuple[float, str]:
    """Seconds of one decoded column of all slots with half of the new tokens written, and what binds it."""
    weights = hlo.tree_bytes(jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.bfloat16), weight_specs(shape)))
    live = 4 * shape.num_layers * SLOTS * shape.num_kv_heads * shape.head_dim * (PROMPT + NEW // 2)
    times = {"bandwidth": (weights + live) / tensor / chip.bandwidth, "FLOPs": weights * SLOTS / tensor / chip.flops}
    binds = max(times, key=lambda kind: times[kind])
    return times[binds], binds


def main() -> None:
    """Compile and print."""
    parser = bench.parser(__doc__)
    parser.add_argument("--chips", nargs="+", choices=TOPOLOGIES, default=list(TOPOLOGIES))
    arguments = parser.parse_args()
    jax.config.update("jax_traceback_in_locations_limit", 0)  # libtpu may not end otherwise (docs/decisions.md)
    table, figures = [], {}
    for chip in arguments.chips:
        mesh = make_mesh(1, 1, 4, devices=topology_devices(TOPOLOGIES[chip]))
        shapes, held = caches(mesh, SLOTS)
        for name, build in (("rollout", compile_rollout), ("scoring", compile_scoring), ("update", compile_update)):
            began = time.perf_counter()
            found = hlo.program_facts(build(mesh), shapes)
            spare = found.temporaries - (held if name == "rollout" else 0)
            collectives = ", ".join(f"{count} {kind}" for kind, count in found.collectives.items()) or "none"
            gib = [f"{x / 2**30:.2f}" for x in (found.arguments, held if name == "rollout" else 0, spare)]
            took = time.perf_counter() - began
            table.append([f"{chip} {name}", *gib, found.copies, found.scatters, collectives, f"{took:.0f} s"])
            if name == "rollout":
                figures |= {
                    f"{chip}_kv_copies": found.copies, f"{chip}_cache_scatters": found.scatters,
                    f"{chip}_temp_over_kv": spare / held,
                }  # fmt: skip
        for role, shape in (("student", STUDENT), ("teacher", TEACHER)):
            bound, binds = roofline(shape, CHIPS[chip], 4)
            table.append([f"{chip} {role}, roofline", *[""] * 5, f"{1e3 * bound:.2f} ms a column ({binds})", ""])
            figures[f"{chip}_{role}_ms_a_column"] = 1e3 * bound
    columns = ["", "arguments GiB", "caches", "temporaries", "copies", "scatters", "collectives", "compile"]
    bench.show("4 chips, tensor = 4; bytes are a device's", columns, table)
    bench.save(arguments.json, figures)


if __name__ == "__main__":
    main()
