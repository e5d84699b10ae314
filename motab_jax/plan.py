"""`python -m motab_jax.plan CONFIG.yaml topology=v5p:4x4x4 [mesh=find] [key=value ...] [--json FILE]`: does it fit?

And how long is a step at the least? Compiles the run's own programs for TPUs that this machine does not have, and says
of each what it needs of a chip's memory, its collectives, whether it copies a cache, and the
roofline time of a step; then the largest batch and length that fit. Leaves with status 3 where it does not fit.

GPUs are planned by arithmetic alone. mesh=find tries the fastest meshes by arithmetic first. Models are read from their
config.json alone. Needs the extra [tpu]. Times are rooflines at vendors' peak rates, never measured.
"""

import argparse
import contextlib
import json

import jax
from rich.console import Console

from motab_jax.planning.roofline import TEACHER_SHARE
from motab_jax.planning.search import Target, find_largest, find_mesh, make_plan
from motab_jax.planning.tables import tables
from motab_jax.runtime.cli import Parser, run_verb, truth
from motab_jax.runtime.compilation import set_numerics
from motab_jax.runtime.files import check_writable
from motab_jax.runtime.storage import to_path

DOES_NOT_FIT = 3


def _share(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")


WORDS = Parser(__doc__)
WORDS.word("topology", "v5p:4x4x4", "v4, v5e, v5p, v6e, tpu7x with a shape; gpu:h100x8, gpu:h200x8", required=True)
WORDS.word("mesh", "find", "try meshes; a mesh of your own is mesh.data=, mesh.fsdp=, mesh.tensor=", choices=["find"])
WORDS.word("strayed", "0.3", "share of tokens that the teacher generates, assumed", type=_share, default=TEACHER_SHARE)
WORDS.word("largest", "false", "skip the search for the largest batch and length", type=truth, default=True)
WORDS.option("json", "FILE", "also write the figures to a file")


def work(words: list[str]) -> int:
    """The verb."""
    args = WORDS.parse(words)
    if args.json is not None:
        check_writable("--json", to_path(args.json))
    jax.config.update("jax_platforms", "cpu")  # the host compiles; a TPU or GPU that is there has other things to do
    set_numerics(args.config.run.matmul_precision, deterministic=False)
    target, console = Target.of(args.topology, args.strayed), Console(highlight=False)
    console.width = console.width if console.is_terminal else 140
    plan = find_mesh(args.config, target, console.out) if args.mesh else make_plan(args.config, target)
    if plan.fits and args.largest:
        plan = find_largest(plan, console.out)
    for table in tables(plan):
        console.print(table)
    if args.json is not None:
        to_path(args.json).write_text(json.dumps(plan.as_json(), indent=2) + "\n", encoding="utf-8")
    console.out(plan.verdict)
    return 0 if plan.fits else DOES_NOT_FIT


if __name__ == "__main__":
    run_verb(work)
