"""What the study's runs say: means with their intervals, the paired difference, and pictures."""

import dataclasses
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from motab_jax.runtime.metrics import read_log

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean and its 95% interval over seeds (Student's t)."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} ({100 * self.low:.1f} to {100 * self.high:.1f})"


def interval(values: Sequence[float]) -> Interval:
    """Of independent values; one alone has no interval, which is then the value itself."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, mean, mean)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return Interval(mean, mean - half, mean + half)


Table = dict[str, dict[int, float]]  # setting -> seed -> held-out accuracy after training


def accuracies(jobs) -> Table:
    """A setting's accuracy with each seed: the mean of the jobs that share both, which are of different tasks."""
    found: dict[str, dict[int, list[float]]] = {}
    for job in jobs:
        summary = json.loads((job.folder / "summary.json").read_text())
        found.setdefault(job.setting, {}).setdefault(job.seed, []).append(summary["accuracy_after"])
    return {name: {seed: statistics.fmean(each) for seed, each in seeds.items()} for name, seeds in found.items()}


def best(table: Table, names: Iterable[str]) -> str:
    """The setting with the highest mean."""
    return max(names, key=lambda name: statistics.fmean(table[name].values()))


def summary(table: Table) -> dict[str, dict[str, Any]]:
    """Of each setting the mean, its interval, and every seed's accuracy, as study.json has them."""
    return {
        name: {**dataclasses.asdict(interval(list(each.values()))), "per_seed": [each[seed] for seed in sorted(each)]}
        for name, each in table.items()
    }


def compare(jobs, motab: str, rivals: Sequence[str]) -> dict[str, Any]:
    """Every setting's accuracy, and a MOTAB setting's paired difference to the best rival of these very runs."""
    table = accuracies(jobs)
    rival, seeds = best(table, [name for name in rivals if name in table]), sorted(table[motab])

    def ahead_of(name: str) -> Interval:
        return interval([table[motab][seed] - table[name][seed] for seed in seeds])

    paired, methods = ahead_of(rival), summary(table)
    for name, found in methods.items():
        found["behind"] = dataclasses.asdict(ahead_of(name))
    return {
        "methods": methods,
        "best_motab": motab,
        "best_rival": rival,
        "difference": paired.mean,
        "difference_low": paired.low,
        "difference_high": paired.high,
        "seeds": len(seeds),
    }


def courses(jobs) -> dict[str, dict[str, np.ndarray]]:
    """Setting -> means over seeds, at each evaluation: updates, seconds, teacher tokens, accuracy, rewinds."""
    rows: dict[str, list[np.ndarray]] = {}
    for job in jobs:
        rows.setdefault(job.setting, []).append(_course(job.folder))
    names = ("updates", "seconds", "teacher_tokens", "accuracy", "rewinds")
    return {setting: dict(zip(names, np.mean(found, axis=0).T, strict=True)) for setting, found in rows.items()}


def _course(folder: Path) -> np.ndarray:
    """One run, a row for each evaluation."""
    seconds = tokens = 0.0
    rewinds: list[float] = []
    found = []
    for line in read_log(folder / "metrics.jsonl"):
        spent = line["seconds"]
        seconds += spent["rollout"] + spent["update"] + spent["relayout"]
        emitted = line["tokens_student"] + line["tokens_teacher"]
        tokens += (line["teacher_scored_per_token"] + line["teacher_reread_per_token"]) * emitted
        rewinds.append(line["rewinds"])
        if "eval" in line:
            found.append((line["step"], seconds, tokens, line["eval"]["accuracy"], statistics.fmean(rewinds)))
            rewinds = []
    return np.array(found)


def draw(path: Path, lines: dict[str, dict[str, np.ndarray]], x: str, y: str, labels: tuple[str, str]) -> None:
    """A line for each setting, as SVG without a date, so that the same figures give the same file."""
    figure, axes = plt.subplots(figsize=(9, 4.5))
    axes.set_prop_cycle(color=matplotlib.colormaps["tab20"].colors)
    for name, course in lines.items():
        axes.plot(course[x], course[y], marker="o", markersize=3, label=name, lw=2.5 if "motab" in name else 1.2)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.tight_layout()
    with matplotlib.rc_context({"svg.hashsalt": "study"}):
        figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw_courses(out: Path, task: str, jobs, tuning) -> None:
    """Accuracy of the compared settings against updates, seconds and teacher tokens; rewinds of MOTAB's settings."""
    axes = {"updates": "updates", "seconds": "seconds of training", "teacher_tokens": "teacher tokens"}
    for x, label in axes.items():
        draw(out / f"study-{x}-{task}.svg", courses(jobs), x, "accuracy", (label, "held-out accuracy"))
    labels = ("updates", "rewinds a trajectory")
    draw(out / f"study-rewinds-{task}.svg", courses(tuning), "updates", "rewinds", labels)
