"""What the study runs: students, training runs and readings, each a command on one core, and each skipped when done."""

import dataclasses
import os
import queue
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Protocol

from motab_jax.quickstart import STUDENT

ROOT = Path(__file__).resolve().parents[1]
TASKS = {
    "arithmetic": ("data.source=arithmetic",),
    "pointers": ("data.source=pointers", "rollout.max_new_tokens=32"),  # a golden chain has at most 27
}


class Work(Protocol):
    """Something to be run once."""

    @property
    def name(self) -> str: ...

    @property
    def done(self) -> bool: ...

    def run(self, core: int) -> None: ...


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is trained and measured."""

    steps: int
    batch: int
    train_prompts: int
    held_out: int
    eval_every: int
    shipped: bool = False  # start from the shipped student instead of one trained for the task

    @property
    def eval_words(self) -> tuple[str, ...]:
        return f"eval.prompts={self.held_out}", f"eval.batch_size={min(self.held_out, 250)}"


@dataclasses.dataclass(frozen=True)
class Students:
    """A task's students of three strengths (study_students.py)."""

    task: str
    folder: Path

    @property
    def name(self) -> str:
        return f"students of {self.task}"

    @property
    def done(self) -> bool:
        return (self.folder / "students.json").is_file()

    def run(self, core: int) -> None:
        _call(core, ["benchmarks/study_students.py", self.task, str(self.folder)])


@dataclasses.dataclass(frozen=True)
class Job:
    """One training run: a setting of the quickstart recipe, on a task, from a student, with a seed."""

    task: str
    strength: str
    setting: str
    seed: int
    words: tuple[str, ...]
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.task} {self.strength}: {self.folder.name}"

    @property
    def done(self) -> bool:
        return (self.folder / "summary.json").is_file()

    def run(self, core: int) -> None:
        _call(core, ["-m", "motab_jax.train", "configs/quickstart.yaml", *self.words])


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a run's student writes on its seed's held-out problems, sampled: what it would write, errors and all."""

    job: Job
    size: Size

    @property
    def name(self) -> str:
        return f"{self.job.name}, read"

    @property
    def file(self) -> Path:
        return self.job.folder / "problems.jsonl"

    @property
    def done(self) -> bool:
        return (self.job.folder / "read").is_file()

    def run(self, core: int) -> None:
        words = [f"student.path={self.job.folder / 'export'}", f"output={self.file}", *TASKS[self.job.task]]
        words += [f"data.shuffle_seed={self.job.seed}", *self.size.eval_words, "eval.temperature=1.0"]
        _call(core, ["-m", "motab_jax.evaluate", "configs/quickstart.yaml", *words])
        (self.job.folder / "read").touch()


def _call(core: int, words: Sequence[str]) -> None:
    """Python on one core; RuntimeError with its last words if it fails."""
    command = ["taskset", "-c", str(core), sys.executable, *words]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    found = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    if found.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{found.stderr[-2000:]}")


def make_jobs(
    cell: tuple[str, str], settings: dict[str, tuple[str, ...]], seeds: Iterable[int], size: Size, folder: Path
) -> list[Job]:
    """In a cell (task, strength), a run of each setting (its overrides) with each seed.

    A seed has its own prompts, the same for all settings. The students lie in folder/students, unless `size.shipped`.
    """
    task, strength = cell
    runs, jobs = folder / task / strength, []
    student = STUDENT if size.shipped else folder / "students" / task / strength
    for seed in seeds:
        for setting, own in settings.items():
            name = f"{setting.replace(', ', '-').replace(' ', '_')}-{seed}"
            words = (
                f"run.dir={runs}", f"run.name={name}", f"run.seed={seed}", f"run.steps={size.steps}",
                f"run.eval_every={size.eval_every}", f"run.save_every={size.steps}", "run.sample_every=0",
                f"data.shuffle_seed={seed}", f"data.count={size.train_prompts}", f"rollout.batch_size={size.batch}",
                *size.eval_words, f"student.path={student}",
            )  # fmt: skip
            jobs.append(Job(task, strength, setting, seed, (*own, *TASKS[task], *words), runs / name))
    return jobs


def work_off(works: Sequence[Work]) -> None:
    """Run what isn't done, one on each core at a time."""
    waiting = [work for work in works if not work.done]
    cores: queue.Queue[int] = queue.Queue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)

    def one(work: Work) -> Work:
        core = cores.get()
        try:
            work.run(core)
        finally:
            cores.put(core)
        return work

    with ThreadPoolExecutor(cores.qsize()) as pool:
        try:
            for number, work in enumerate(as_completed([pool.submit(one, work) for work in waiting]), 1):
                print(f"{number}/{len(waiting)} {work.result().name}", file=sys.stderr, flush=True)
        except RuntimeError:
            pool.shutdown(cancel_futures=True)  # say at once what failed, not when all others are done
            raise
