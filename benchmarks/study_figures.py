"""What the study's runs say: means with their intervals, the paired difference, tables and pictures."""

import dataclasses
import json
import statistics
from collections.abc import Sequence
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


def accuracies(jobs) -> dict[str, dict[int, float]]:
    """Setting -> seed -> held-out accuracy after training."""
    found: dict[str, dict[int, float]] = {}
    for job in jobs:
        summary = json.loads((job.folder / "summary.json").read_text())
        found.setdefault(job.setting, {})[job.seed] = summary["accuracy_after"]
    return found


def best(table: dict[str, dict[int, float]], names) -> str:
    """The setting with the highest mean."""
    return max(names, key=lambda name: statistics.fmean(table[name].values()))


def compare(tuning, jobs, rivals: Sequence[str]) -> dict[str, Any]:
    """The study's figures. The MOTAB setting is chosen by its tuning runs, the rival by the reported ones."""
    table, choosing = accuracies(jobs), accuracies(tuning)
    motab, rival = best(choosing, choosing), best(table, rivals)
    seeds = sorted(table[motab])
    paired = interval([table[motab][seed] - table[rival][seed] for seed in seeds])
    methods = {
        name: {**dataclasses.asdict(interval(list(values.values()))), "per_seed": [values[seed] for seed in seeds]}
        for name, values in table.items()
    }
    return {
        "methods": methods,
        "tuning": {name: list(values.values()) for name, values in choosing.items()},
        "best_motab": motab,
        "best_rival": rival,
        "difference": paired.mean,
        "difference_low": paired.low,
        "difference_high": paired.high,
        "seeds": len(seeds),
    }


def courses(jobs) -> dict[str, dict[str, np.ndarray]]:
    """Setting -> means over seeds, at each evaluation: updates, seconds, teacher tokens, accuracy, strayed share."""
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
        tokens += line["tokens_teacher"] + line["teacher_scored_per_token"] * emitted
        rewinds.append(line["rewinds"])
        if "eval" in line:
            found.append((line["step"], seconds, tokens, line["eval"]["accuracy"], statistics.fmean(rewinds)))
            rewinds = []
    return np.array(found)


def draw(path: Path, lines: dict[str, dict[str, np.ndarray]], x: str, y: str, labels: tuple[str, str]) -> None:
    """A line for each setting, as SVG without a date, so that the same figures give the same file."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name, course in lines.items():
        axes.plot(course[x], course[y], marker="o", markersize=3, label=name)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    figure.tight_layout()
    with matplotlib.rc_context({"svg.hashsalt": "study"}):
        figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def tables(figures: dict[str, Any]) -> str:
    """The accuracies as Markdown, best first."""
    ranked = sorted(figures["methods"].items(), key=lambda item: -item[1]["mean"])
    rows = [
        f"| {name} | {Interval(found['mean'], found['low'], found['high'])} |"
        f" {', '.join(f'{100 * value:.1f}' for value in found['per_seed'])} |"
        for name, found in ranked
    ]
    return "\n".join(["| setting | accuracy, % (95% interval) | by seed |", "|---|---|---|", *rows])


def write(out: Path, tuning, jobs, rivals: Sequence[str], size: dict[str, int]) -> dict[str, Any]:
    """The figures; writes study-table.md and the pictures."""
    figures = {**compare(tuning, jobs, rivals), "prompts": size["held_out"], "size": size}
    difference = Interval(figures["difference"], figures["difference_low"], figures["difference_high"])
    head = (
        f"{figures['best_motab']} (chosen on other seeds) against {figures['best_rival']} (the best rival): "
        f"{difference} points, {figures['seeds']} seeds, {figures['prompts']} held-out prompts each."
    )
    (out / "study-table.md").write_text(f"{head}\n\n{tables(figures)}\n")
    lines = courses(jobs)
    shown = {name: lines[name] for name in {figures["best_motab"]: 0, "motab": 0, **dict.fromkeys(rivals, 0)}}
    for x, label in (("updates", "updates"), ("seconds", "seconds of training"), ("teacher_tokens", "teacher tokens")):
        draw(out / f"study-{x}.svg", shown, x, "accuracy", (label, "held-out accuracy"))
    watched = {name: line for name, line in lines.items() if line["rewinds"].any()}
    draw(out / "study-rewinds.svg", watched, "updates", "rewinds", ("updates", "rewinds a trajectory"))
    print(head)
    print(tables(figures))
    return figures
