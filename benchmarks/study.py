"""Every method on the shipped pair's task: equal prompts, equal updates, several seeds; tables, pictures, raw figures.

`python benchmarks/study.py` trains what is missing under --runs-folder (each run by `python -m motab_jax.train`, one
on each core at a time, so a stopped study goes on where it was), then writes study.json, study-table.md and
study-*.svg to --out. --quick is the same in small, a check. The prompts are few and seen several times: with endless
fresh ones supervised training meets every state, and exposure bias hides.

A MOTAB setting is chosen on seeds of its own (--tuning-seeds), never on the held-out problems that are reported.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import queue
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import study_biases
import study_figures

from motab_jax.data import arithmetic
from motab_jax.data.arithmetic import Problem

ROOT = Path(__file__).resolve().parents[1]
HAND_BACK = ("backtrack.intervention=steps", "backtrack.steps=1", "backtrack.max_interventions=4")
PAPER = ("objective.target=stitched", "objective.student_loss=cross_entropy", "objective.teacher_loss=cross_entropy")
MOTAB = {
    "motab": (),
    "motab, fixed boundary": ("monitor.boundary=fixed",),
    "motab, breach": ("backtrack.target=breach",),
    "motab, hand-back": HAND_BACK,
    "motab, breach, hand-back": ("backtrack.target=breach", *HAND_BACK),
    "motab, stitched, cross-entropy": PAPER,
    "motab, no stitching, cross-entropy": (PAPER[1], PAPER[2]),
    "motab, eps0 0.2": ("monitor.eps0=0.2",),
    "motab, eps0 0.8": ("monitor.eps0=0.8",),
    "motab, theta 0.5": ("monitor.theta=0.5",),
    "motab, theta 2": ("monitor.theta=2.0",),
}
RIVALS = ("sft", "seqkd", "opd", "opd_sampled", "gkd", "skd", "skd_step", "minillm", "adaswitch", "kat", "akl", "eopd")
KAT = ("monitor.step_tokens=8", "monitor.patience=3")  # texts are short
READ = ("sft", "opd", "motab")  # whose students' errors are counted step by step
TUNED = 100  # seeds from here on are for choosing


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is trained and measured."""

    steps: int
    batch: int
    train_prompts: int
    held_out: int
    eval_every: int


FULL = Size(steps=60, batch=64, train_prompts=256, held_out=500, eval_every=10)
QUICK = Size(steps=4, batch=16, train_prompts=32, held_out=32, eval_every=2)


@dataclasses.dataclass(frozen=True)
class Job:
    """One training run."""

    setting: str
    seed: int
    words: tuple[str, ...]
    folder: Path

    @property
    def done(self) -> bool:
        """Whether it ran to its end."""
        return (self.folder / "summary.json").is_file()

    def run(self, core: int) -> None:
        """Train on one core."""
        _call(core, "train", self.words, self.folder)


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a run's student writes on its seed's held-out problems, sampled: what it would write, errors and all."""

    job: Job
    size: Size

    @property
    def file(self) -> Path:
        return self.job.folder / "problems.jsonl"

    @property
    def folder(self) -> Path:
        return self.job.folder

    @property
    def done(self) -> bool:
        return (self.job.folder / "read").is_file()

    def run(self, core: int) -> None:
        """Evaluate the run's export on one core."""
        rows = min(self.size.held_out, 250)
        words = [f"student.path={self.folder / 'export'}", f"output={self.file}", f"data.shuffle_seed={self.job.seed}"]
        words += [f"eval.prompts={self.size.held_out}", f"eval.batch_size={rows}", "eval.temperature=1.0"]
        _call(core, "evaluate", words, self.folder)
        (self.folder / "read").touch()


def _call(core: int, verb: str, words, folder: Path) -> None:
    """A verb on the quickstart recipe, on one core; RuntimeError with its last words if it fails."""
    command = ["taskset", "-c", str(core), sys.executable, "-m", f"motab_jax.{verb}", "configs/quickstart.yaml"]
    found = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True)
    if found.returncode != 0:
        raise RuntimeError(f"{folder}: {found.stderr[-2000:]}")


def words_of(setting: str) -> tuple[str, ...]:
    """The overrides that make a setting of the quickstart recipe."""
    if setting in MOTAB:
        return MOTAB[setting]
    return (f"method={setting}", *(KAT if setting == "kat" else ()))


def make_jobs(settings, seeds, size: Size, folder: Path) -> list[Job]:
    """A run of each setting with each seed; a seed has its own prompts, the same for all settings."""
    jobs = []
    for seed in seeds:
        for setting in settings:
            name = f"{setting.replace(', ', '-').replace(' ', '_')}-{seed}"
            words = (
                f"run.dir={folder}", f"run.name={name}", f"run.seed={seed}", f"run.steps={size.steps}",
                f"run.eval_every={size.eval_every}", f"run.save_every={size.steps}", "run.sample_every=0",
                f"data.shuffle_seed={seed}", f"data.count={size.train_prompts}", f"rollout.batch_size={size.batch}",
                f"eval.prompts={size.held_out}", f"eval.batch_size={min(size.held_out, 250)}",
            )  # fmt: skip
            jobs.append(Job(setting, seed, (*words_of(setting), *words), folder / name))
    return jobs


def work_off(jobs: Sequence[Job | Reading]) -> None:
    """Run what isn't done, one job on each core at a time."""
    waiting = [job for job in jobs if not job.done]
    cores: queue.Queue[int] = queue.Queue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)

    def one(job: Job | Reading) -> Job | Reading:
        core = cores.get()
        try:
            job.run(core)
        finally:
            cores.put(core)
        return job

    with concurrent.futures.ThreadPoolExecutor(cores.qsize()) as pool:
        for number, job in enumerate(concurrent.futures.as_completed([pool.submit(one, job) for job in waiting]), 1):
            print(f"{number}/{len(waiting)} {job.result().folder.name}", file=sys.stderr, flush=True)


def main() -> None:
    """Train, compare, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of study.json, study.md, study-*.svg")
    parser.add_argument("--runs-folder", type=Path, default=ROOT / "runs" / "study", help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=5, help="seeds that are reported")
    parser.add_argument("--tuning-seeds", type=int, default=2, help="seeds that choose the MOTAB setting")
    parser.add_argument("--settings", nargs="+", help="only these (default: all)")
    parser.add_argument("--quick", action="store_true", help="a few short runs: a check, no evidence")
    given = parser.parse_args()
    size = QUICK if given.quick else FULL
    settings = given.settings or [*MOTAB, *RIVALS]
    folder = given.runs_folder.resolve() / ("quick" if given.quick else "full")
    tuning = make_jobs(
        [name for name in settings if name in MOTAB], range(TUNED, TUNED + given.tuning_seeds), size, folder
    )
    jobs = make_jobs(settings, range(given.seeds), size, folder)
    work_off([*tuning, *jobs])
    work_off([Reading(job, size) for job in jobs if job.setting in READ])
    given.out.mkdir(parents=True, exist_ok=True)
    figures = study_figures.write(
        given.out, tuning, jobs, [x for x in settings if x in RIVALS], dataclasses.asdict(size)
    )
    biases = study_biases.write(given.out, {x: _texts(jobs, x, size) for x in READ if x in settings}, size.held_out)
    (given.out / "study.json").write_text(json.dumps({**figures, **biases}, indent=1) + "\n")


def _texts(jobs: list[Job], setting: str, size: Size) -> list[tuple[Problem, str]]:
    """Every seed's held-out problems, and what the setting's student wrote."""
    found = []
    for job in jobs:
        if job.setting == setting:
            lines = Reading(job, size).file.read_text().splitlines()
            texts = [json.loads(line)["text"] for line in lines]
            found += zip(arithmetic.problems(size.held_out, seed=job.seed, split="held_out"), texts, strict=True)
    return found


if __name__ == "__main__":
    main()
