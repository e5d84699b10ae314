"""Students of several strengths for the study: one training of each task, saved whenever it first gets so far.

`python benchmarks/study_students.py TASK FOLDER` trains one from random weights on the task's golden chains, by the
plan of the shipped student (motab_jax/quickstart/plans.py) or its like for pointers, and writes FOLDER/weak,
FOLDER/middle, FOLDER/strong and FOLDER/students.json with the accuracy each was measured at.
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path

from motab_jax.data.prompts import TASKS
from motab_jax.quickstart.build import (
    CHECK_PROMPTS,
    CHECK_SEED,
    Learner,
    batches,
    make_tokenizer,
    measure_accuracy,
    save,
)
from motab_jax.quickstart.plans import PLANS, Arrows, Hops, Round, Stage

STRENGTHS = {"weak": 0.05, "middle": 0.30, "strong": 0.60}  # greedy accuracy at which each is saved


@dataclasses.dataclass(frozen=True)
class Course:
    """What a task's students are trained on, and when that is measured."""

    plan: Round
    check_from: int  # steps
    check_every: int


_MAPS = (
    Stage(200, (Arrows(3, 20, rows=192),)),
    Stage(120, (Hops(2, 4, 4, 32, rows=96),)),
    Stage(200, (Hops(4, 8, 12, 68),)),
)
COURSES = {
    "arithmetic": Course(PLANS["student"].rounds[0], check_from=300, check_every=10),
    "pointers": Course(Round(_MAPS, 3e-3, "constant"), check_from=320, check_every=1),
}  # fmt: skip


def make_students(name: str, folder: Path, seed: int = 0) -> dict[str, float]:
    """Train and save them; strength -> greedy accuracy on held-out problems. RuntimeError if the plan ends before."""
    course = COURSES[name]
    tokenizer = make_tokenizer()
    learner, found = Learner(PLANS["student"].config, seed), dict[str, float]()
    learner.begin(course.plan)
    for number, groups in enumerate(batches(course.plan.stages, tokenizer, f"student/{name}/{seed}"), 1):
        learner.update(groups)
        if number < course.check_from or number % course.check_every:
            continue
        share = measure_accuracy(learner.model, tokenizer, CHECK_PROMPTS, CHECK_SEED, TASKS[name]).answer
        print(f"{name}: step {number}, greedy answers {share:.1%}", flush=True)
        for strength, wanted in STRENGTHS.items():
            if share >= wanted and strength not in found:
                save(folder / strength, learner.model, tokenizer)
                found[strength] = share
        if len(found) == len(STRENGTHS):
            break
    else:
        raise RuntimeError(f"{name}: the plan ended with {found}")
    _finish(folder / "students.json", found)
    return found


def _finish(path: Path, found: dict[str, float]) -> None:
    """The last file, all or nothing: where it lies, all students do."""
    path.with_suffix(".part").write_text(json.dumps(found) + "\n")
    os.replace(path.with_suffix(".part"), path)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("task", choices=sorted(COURSES))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    make_students(given.task, given.folder)


if __name__ == "__main__":
    main()
