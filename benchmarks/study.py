"""Every method on the shipped tasks: equal prompts, equal updates, several seeds; tables, pictures, raw figures.

`python benchmarks/study.py` trains what is missing under --runs-folder (each run by `python -m motab_jax.train`, one
on each core at a time, so a stopped study goes on where it was), then writes study.json, study.md and study-*.svg to
--out. --quick is the same in small, a check. The prompts are few and seen several times: with endless fresh ones
supervised training meets every state, and exposure bias hides.

The MOTAB setting that is compared is chosen by runs of their own (--tuning-seeds), whose prompts and held-out problems
are others than those of the reported ones; they are the ablation and the sensitivity, too. Every setting starts from
the same students and has the same learning rate.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import study_biases
import study_figures
import study_report
from study_jobs import ROOT, TASKS, Job, Reading, Size, Students, make_jobs, work_off

from motab_jax.data.prompts import TASKS as PROBLEMS

BASE = ("monitor.eps0=0.5", "objective.student_loss=reverse_kl", "objective.teacher_loss=forward_kl")
HAND_BACK = ("backtrack.intervention=steps", "backtrack.steps=1", "backtrack.max_interventions=4")
ADAPTIVE = ("objective.student_loss=adaptive_kl", "objective.teacher_loss=adaptive_kl")
CROSS_ENTROPY = ("objective.student_loss=cross_entropy", "objective.teacher_loss=cross_entropy")
# The transition is one token; "However," would be eight characters that the pair has never seen.
PAPER = ("objective.target=stitched", "objective.transition_text=H", *CROSS_ENTROPY)
TOLERANT = "monitor.eps0=0.1"
MOTAB = {
    name: (*BASE, *changes)
    for name, changes in {
        "motab": (),
        "motab, fixed boundary": ("monitor.boundary=fixed",),
        "motab, breach": ("backtrack.target=breach",),
        "motab, hand-back": HAND_BACK,
        "motab, stitched, cross-entropy": PAPER,
        "motab, no stitching, cross-entropy": CROSS_ENTROPY,
        "motab, eps0 0.1": (TOLERANT,),
        "motab, theta 2": ("monitor.theta=2.0",),
        "motab, adaptive KL": ADAPTIVE,
        "motab, adaptive KL, eps0 0.1": (*ADAPTIVE, TOLERANT),
        "motab, adaptive KL, eps0 0.05": (*ADAPTIVE, "monitor.eps0=0.05"),
        "motab, adaptive KL, hand-back": (*ADAPTIVE, *HAND_BACK),
    }.items()
}
RIVALS = {
    name: (f"method={name}",)
    for name in (
        "sft", "seqkd", "opd", "opd_sampled", "gkd", "skd", "skd_step", "minillm", "adaswitch", "akl", "eopd",
    )
} | {"kat": ("method=kat", "monitor.step_tokens=8", "monitor.patience=3")}  # fmt: skip
READ = ("sft", "opd", "motab")  # whose students' errors are counted step by step
ELSEWHERE = ("sft", "opd", "akl")  # what weak and strong students also try
TUNED = 100  # seeds from here on are for choosing

FULL = Size(steps=60, batch=32, train_prompts=64, held_out=500, eval_every=20)
QUICK = Size(steps=4, batch=16, train_prompts=32, held_out=32, eval_every=2, shipped=True)


def main() -> None:
    """Train, compare, write."""
    given = _parser().parse_args()
    size = QUICK if given.quick else FULL
    folder = given.runs_folder.resolve() / ("quick" if given.quick else "full")
    settings = {name: words for name, words in (MOTAB | RIVALS).items() if name in (given.settings or MOTAB | RIVALS)}
    students = [] if size.shipped else [Students(task, folder / "students" / task) for task in given.tasks]
    work_off(students)

    tuned = {name: words for name, words in settings.items() if name in MOTAB}
    choosing = range(TUNED, TUNED + given.tuning_seeds)
    tuning = [job for task in given.tasks for job in make_jobs((task, "middle"), tuned, choosing, size, folder)]
    work_off(tuning)
    chosen = study_figures.best(study_figures.accuracies(tuning), tuned)

    jobs: list[Job] = []
    for strength in ("middle", *given.strengths):
        names = (*RIVALS, "motab", chosen) if strength == "middle" else (*ELSEWHERE, "motab", chosen)
        these = {name: words for name, words in settings.items() if name in names}
        for task in given.tasks:
            jobs += make_jobs((task, strength), these, range(given.seeds), size, folder)
    work_off(jobs)
    readings = [Reading(job, size) for job in jobs if job.strength == "middle" and job.setting in (*READ, chosen)]
    work_off(readings)

    given.out.mkdir(parents=True, exist_ok=True)
    figures = _figures(tuning, jobs, chosen, given.tasks, size)
    figures |= study_biases.write(given.out, {task: _written(readings, task) for task in given.tasks}, size.held_out)
    figures["students"] = {each.task: json.loads((each.folder / "students.json").read_text()) for each in students}
    (given.out / "study.json").write_text(json.dumps(figures, indent=1) + "\n")
    for task in given.tasks:
        own = [job for job in jobs if (job.task, job.strength) == (task, "middle")]
        study_figures.draw_courses(given.out, task, own, [job for job in tuning if job.task == task])
    (given.out / "study.md").write_text(study_report.report(figures))
    print(study_report.headline(figures))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of study.json, study.md, study-*.svg")
    parser.add_argument("--runs-folder", type=Path, default=ROOT / "runs" / "study", help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=5, help="seeds that are reported")
    parser.add_argument("--tuning-seeds", type=int, default=3, help="seeds that choose the MOTAB setting")
    parser.add_argument("--settings", nargs="+", choices=[*MOTAB, *RIVALS], metavar="NAME", help="only these")
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS], default=[*TASKS], help="only these")
    parser.add_argument(
        "--strengths", nargs="*", choices=["weak", "strong"], default=["weak", "strong"],
        help="students that are tried beside the middle ones",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a few short runs: a check, no evidence")
    return parser


def _figures(tuning: list[Job], jobs: list[Job], chosen: str, tasks: Sequence[str], size: Size) -> dict[str, Any]:
    """The comparison over all tasks' middle students at the top; then by task and strength."""
    rivals = list(RIVALS)
    middle = [job for job in jobs if job.strength == "middle"]
    cells: dict[str, dict[str, list[Job]]] = {task: {} for task in tasks}
    for job in jobs:
        cells[job.task].setdefault(job.strength, []).append(job)
    return {
        **study_figures.compare(middle, chosen, rivals),
        "prompts": size.held_out,
        "size": dataclasses.asdict(size),
        "tuning": {
            "both": study_figures.summary(study_figures.accuracies(tuning)),
            **{
                task: study_figures.summary(study_figures.accuracies(job for job in tuning if job.task == task))
                for task in tasks
            },
        },
        "tasks": {
            task: {strength: study_figures.compare(some, chosen, rivals) for strength, some in found.items()}
            for task, found in cells.items()
        },
    }


def _written(readings: list[Reading], task: str) -> study_biases.Written:
    """Every seed's held-out problems, and what a setting's student wrote."""
    found: study_biases.Written = {}
    for reading in readings:
        if reading.job.task == task:
            texts = [json.loads(line)["text"] for line in reading.file.read_text().splitlines()]
            problems = PROBLEMS[task].problems(reading.size.held_out, seed=reading.job.seed, split="held_out")
            found.setdefault(reading.job.setting, []).extend(zip(problems, texts, strict=True))
    return found


if __name__ == "__main__":
    main()
