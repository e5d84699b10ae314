"""Plan Qwen3-32B into Qwen3-4B at 32,768 tokens for slices that are not attached: mesh, batch, memory, collectives.

    python benchmarks/scale.py [--json FILE] [--topologies v5p:4x4x4 v6e:8x8] [--no-weak]

The recipe is configs/qwen3_32b_to_4b_32k.yaml, sequences of 2,048 + 30,720 tokens. The script finds a mesh, then the
largest batch; then it compares the bytes that collectives send per chip on 64 and 512 chips of v5p, with 8 times the
rows. Arrays are abstract: no weights are loaded. Times are rooflines.
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import bench

from motab_jax.config import Config, load_config
from motab_jax.models.architecture import ModelConfig, Rope
from motab_jax.planning.roofline import TEACHER_SHARE
from motab_jax.planning.search import Plan, Target, find_largest, find_mesh, make_plan

ROOT = Path(__file__).resolve().parents[1]
SHARED = {"max_positions": 40_960, "rope": Rope(1e6), "qk_norm": True}
MODELS = {
    "teacher": ModelConfig("qwen3", 151_936, 5120, 25_600, 64, 64, 8, 128, **SHARED),
    "student": ModelConfig("qwen3", 151_936, 2560, 9728, 36, 32, 8, 128, **SHARED, tied=True),
}
ROWS = {  # to begin with
    "v5p:4x4x4": 128, "v5p:2x4x4": 64, "v6e:8x8": 64, "v5e:8x8": 8, "gpu:h100x8": 16, "gpu:h200x8": 32
}  # fmt: skip
CHANGES = {"v5e:8x8": ("teacher.quantize=int8",)}
WEAK = ("v5p:4x4x4", "v5p:8x8x8")


def recipe(folder: Path, *changes: str) -> Config:
    """The recipe of the real pair, both models as a config.json alone."""
    words = []
    for role, shape in MODELS.items():
        (folder / role).mkdir(exist_ok=True)
        (folder / role / "config.json").write_text(json.dumps(shape.to_hf()))
        words.append(f"{role}.path={folder / role}")
    return load_config(ROOT / "configs" / "qwen3_32b_to_4b_32k.yaml", [*words, *changes])


def say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def plan_for(topology: str, folder: Path) -> Plan:
    """The plan with the best mesh and, if that fits, the largest batch."""
    say(topology)
    target = Target.of(topology, TEACHER_SHARE)
    plan = find_mesh(recipe(folder, f"rollout.batch_size={ROWS[topology]}", *CHANGES.get(topology, ())), target, say)
    return find_largest(plan, say, ["batch_size"]) if plan.fits else plan


def moved(plan: Plan) -> int:
    """Bytes that collectives send per chip, over all programs of a training step; loops counted once."""
    return sum(sum(program.facts.collective_bytes.values()) for program in plan.programs if program.facts is not None)


def weak(found: Plan, folder: Path) -> dict[str, float]:
    """The same mesh with eight times the groups and rows."""
    sizes = found.sizes
    say(WEAK[1])
    mesh = (f"mesh.data={8 * sizes.data}", f"mesh.fsdp={sizes.fsdp}", f"mesh.tensor={sizes.tensor}")
    config = recipe(folder, *mesh, f"rollout.batch_size={8 * sizes.rows}")
    return {"moved_64": moved(found), "moved_512": moved(make_plan(config, Target.of(WEAK[1], TEACHER_SHARE)))}


def row(plan: Plan) -> list[str]:
    sizes, gib = plan.sizes, 2**30
    temporaries, copies = "", ""
    if plan.compiled is not None:
        rollout = next(program.facts for program in plan.programs if program.name == "rollout")
        if rollout is not None:
            spare = rollout.temporaries - plan.compiled.cache_bytes
            temporaries, copies = f"{100 * spare / plan.compiled.cache_bytes:.1f}%", str(rollout.copies)
    return [
        plan.target.name, f"{sizes.data} x {sizes.fsdp} x {sizes.tensor}", "yes" if plan.fits else "no",
        f"{plan.needed / gib:.1f} of {plan.target.limit / gib:.1f}", temporaries, copies,
        str(sizes.rows), str(plan.largest.get("batch_size", "")), f"{plan.seconds:.0f}", _compiling(plan),
    ]  # fmt: skip


def _compiling(plan: Plan) -> str:
    return "" if plan.compiled is None else f"{sum(program.compile_seconds for program in plan.programs) / 60:.1f}"


def main() -> None:
    """Plan and print."""
    parser = bench.parser(__doc__)
    parser.add_argument("--topologies", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--no-weak", action="store_true", help="leave out the 512 chips")
    arguments = parser.parse_args()
    plans, scaled = {}, {}
    with tempfile.TemporaryDirectory() as name:
        for topology in arguments.topologies:
            plans[topology] = plan_for(topology, Path(name))
            say(" | ".join(row(plans[topology])))
            if topology == WEAK[0] and not arguments.no_weak:
                scaled = weak(plans[topology], Path(name))
            # Each takes minutes: save what is done so far.
            bench.save(arguments.json, {**scaled, "plans": {name: plan.as_json() for name, plan in plans.items()}})
    columns = ["", "data x fsdp x tensor", "fits", "GiB a device", "temporaries / KV", "KV copies", "rows",
               "rows at most", "s a step, roofline", "min to compile"]  # fmt: skip
    bench.show(
        "Qwen3-32B into Qwen3-4B, sequences of 2,048 + 30,720 tokens", columns, [row(plan) for plan in plans.values()]
    )
    if scaled:
        grown = scaled["moved_512"] / scaled["moved_64"]
        print(f"bytes of collectives per chip, {WEAK[0]} to {WEAK[1]} with 8 times the rows: {grown:.3f} times")


if __name__ == "__main__":
    main()
