"""The study: its arithmetic by hand, and its seconds-long twin from end to end."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import study
import study_figures
import study_jobs

from motab_jax.config import METHODS, load_config

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class FakeJob:
    """A run that never was: its folder holds what a run would have written."""

    setting: str
    seed: int
    folder: Path


def fake_job(folder, setting, seed, accuracy):
    run = folder / f"{setting}-{seed}"
    run.mkdir()
    (run / "summary.json").write_text(json.dumps({"accuracy_after": accuracy}))
    spent = {"rollout": 1.0, "update": 0.5, "relayout": 0.5}
    line = {"seconds": spent, "tokens_student": 6, "tokens_teacher": 4}
    line |= {"teacher_scored_per_token": 0.5, "teacher_reread_per_token": 0.25}
    lines = [line | {"step": step, "rewinds": 0.25 * step} for step in (1, 2)]
    lines[1]["eval"] = {"accuracy": accuracy}
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return FakeJob(setting, seed, run)


def test_an_interval_is_students():
    found = study_figures.interval([0.1, 0.2, 0.3])
    half = 4.302652729911275 * 0.1 / 3**0.5  # the 97.5% quantile at two degrees of freedom
    assert (found.mean, found.low, found.high) == pytest.approx((0.2, 0.2 - half, 0.2 + half))
    assert study_figures.interval([0.4]) == study_figures.Interval(0.4, 0.4, 0.4)


def test_the_rival_is_the_best_of_the_reported_and_the_difference_is_paired(tmp_path):
    reported = {"motab": (0.8, 0.9), "motab, breach": (0.95, 0.97), "sft": (0.5, 0.8), "opd": (0.6, 0.6)}
    jobs = [fake_job(tmp_path, name, seed, x) for name, both in reported.items() for seed, x in enumerate(both)]
    found = study_figures.compare(jobs, "motab", ["sft", "opd", "akl"])
    assert (found["best_motab"], found["best_rival"], found["seeds"]) == ("motab", "sft", 2)
    assert found["difference"] == pytest.approx(0.2) and found["methods"]["opd"]["per_seed"] == [0.6, 0.6]
    tuning = [fake_job(tmp_path, "motab", 100, 0.7), fake_job(tmp_path, "motab, breach", 100, 0.6)]
    assert study_figures.best(study_figures.accuracies(tuning), ["motab", "motab, breach"]) == "motab"
    course = study_figures.courses(jobs)["opd"]
    assert {name: values.tolist() for name, values in course.items()} == {
        "updates": [2], "seconds": [4.0], "teacher_tokens": [15.0], "accuracy": [0.6], "rewinds": [0.375],
    }  # fmt: skip


def test_a_seed_counts_once_whatever_the_tasks(tmp_path):
    jobs = []
    for task, each in (("sums", (0.2, 0.4)), ("maps", (0.6, 1.0))):
        (tmp_path / task).mkdir()
        jobs += [fake_job(tmp_path / task, "opd", seed, accuracy) for seed, accuracy in enumerate(each)]
    assert study_figures.accuracies(jobs) == {"opd": {0: pytest.approx(0.4), 1: pytest.approx(0.7)}}


@dataclass
class FakeWork:
    """A work that only counts how often it was done."""

    name: str
    done: bool
    times: int = 0

    def run(self, core: int) -> None:
        self.times, self.done = self.times + 1, True


def test_what_is_done_is_not_done_again():
    works = [FakeWork("old", done=True), FakeWork("new", done=False), FakeWork("newer", done=False)]
    for _ in range(2):
        study_jobs.work_off(works)
    assert [work.times for work in works] == [0, 1, 1]


def test_every_method_is_in_the_study():
    assert {*study.RIVALS, "motab"} == set(METHODS)
    for words in (study.MOTAB | study.RIVALS).values():
        load_config(ROOT / "configs" / "quickstart.yaml", list(words))


@pytest.mark.long
def test_the_quick_study(tmp_path):
    words = ["--quick", "--out", tmp_path / "out", "--runs-folder", tmp_path / "runs", "--seeds", "1"]
    words += ["--tuning-seeds", "1", "--settings", "motab", "opd", "--tasks", "pointers", "--strengths"]
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
    command = [sys.executable, ROOT / "benchmarks" / "study.py", *words]
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert ran.returncode == 0, ran.stderr
    figures = json.loads((tmp_path / "out" / "study.json").read_text())
    assert set(figures["methods"]) == {"motab", "opd"} and figures["prompts"] == study.QUICK.held_out
    assert set(figures["tasks"]["pointers"]["middle"]["methods"]) == set(figures["exposure"]["pointers"])
    assert len(figures["reversed_exposure"]["pointers"]) == 4
    assert figures["best_motab"] == "motab" and figures["best_rival"] == "opd"
    page = (tmp_path / "out" / "study.md").read_text()
    pictures = {path.name for path in (tmp_path / "out").glob("*.svg")}
    assert len(pictures) == 7 and set(re.findall(r"\((study-\S+\.svg)\)", page)) == pictures
