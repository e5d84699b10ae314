"""`python -m motab_jax.plan CONFIG.yaml topology=v5p:4x4x4 [mesh=find] [key=value ...] [--json FILE]`

Does the run fit, and how long is a step at the least? Compiles the run's own programs for TPUs that this machine does
not have, and says of each what it needs of a chip's memory, its collectives, whether it copies a cache, and the
roofline time of a step; then the largest batch and length that fit. Leaves with status 3 where it does not fit.

topology: v4, v5e, v5p, v6e or tpu7x with the slice's shape; gpu:h100x8 or gpu:h200x8 is planned by arithmetic alone.
mesh=find tries meshes, the fastest by arithmetic first. strayed=0.3: share of the tokens that the teacher is taken to
write. largest=false leaves out the search for the largest batch and length, which compiles four times more. Models are
read from their config.json alone. Needs the extra [tpu]. Times are rooflines at vendors' peak rates, never measured.
"""

import json
from pathlib import Path

import jax
from rich.console import Console

from motab_jax.config import UserError
from motab_jax.planning.roofline import TEACHER_SHARE
from motab_jax.planning.search import Target, find_largest, find_mesh, make_plan
from motab_jax.planning.tables import tables
from motab_jax.planning.topologies import CHIPS
from motab_jax.runtime.cli import check_writable, read_config, read_flag, run_verb, split_words

OWN = ("topology", "mesh", "strayed", "largest")
DOES_NOT_FIT = 3


def work(words: list[str]) -> int:
    """The verb."""
    path, file = _without_json(words)
    config_path, overrides, own = split_words(path, own=OWN)
    if file is not None:
        check_writable("--json", Path(file))
    jax.config.update("jax_platforms", "cpu")  # the host compiles; a TPU or GPU that is there has other things to do
    target = _target(own)
    config, console = read_config(config_path, overrides), Console(highlight=False)
    console.width = console.width if console.is_terminal else 140
    find = own.get("mesh") == "find"
    plan = find_mesh(config, target, console.out) if find else make_plan(config, target)
    if plan.fits and read_flag({"largest": "true", **own}, "largest"):
        plan = find_largest(plan, console.out)
    for table in tables(plan):
        console.print(table)
    if file is not None:
        Path(file).write_text(json.dumps(plan.as_json(), indent=2) + "\n", encoding="utf-8")
    console.out(plan.verdict)
    return 0 if plan.fits else DOES_NOT_FIT


def _without_json(words: list[str]) -> tuple[list[str], str | None]:
    """The words without --json FILE, and FILE."""
    if "--json" not in words:
        return words, None
    at = words.index("--json")
    if at + 1 == len(words):
        raise UserError("--json needs a file to write to")
    return words[:at] + words[at + 2 :], words[at + 1]


def _target(own: dict[str, str]) -> Target:
    """What is planned for. UserError for what is missing or unknown."""
    if "topology" not in own:
        raise UserError(f"plan needs topology=CHIP:SHAPE, such as v5p:4x4x4; chips: {', '.join(CHIPS)}")
    if own.get("mesh", "find") != "find":
        raise UserError(
            f"mesh={own['mesh']}: only mesh=find; a mesh of your own is mesh.data=, mesh.fsdp=, mesh.tensor="
        )
    return Target.of(own["topology"], _share(own))


def _share(own: dict[str, str]) -> float:
    try:
        share = float(own.get("strayed", TEACHER_SHARE))
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UserError(f"strayed={own['strayed']}: a share from 0 to 1")
    return share


if __name__ == "__main__":
    run_verb(__doc__, work, own=OWN, flags=("--json FILE",))
