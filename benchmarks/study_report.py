"""The study as a page: its headline, its tables and its pictures, all from the figures of study.json."""

from typing import Any

from study_figures import Interval

_PROTOCOL = """# The study

Every method on the two shipped tasks, from students of three strengths. `python benchmarks/study.py` writes this page
and its figures, [study.json](study.json); [decisions.md](decisions.md#the-study) says what was concluded.

{headline}

## How it was measured

- Each run: {steps} updates of {batch} trajectories on {train_prompts} prompts of its seed's own (each seen about
  {times:.0f} times), the same for all settings. AdamW, learning rate 1e-3, as in `configs/quickstart.yaml`.
- Accuracy: greedy answers on {held_out} held-out problems of the seed's own. Intervals are Student's t at 95% over
  {seeds} seeds; the difference is paired by seed.
- The MOTAB setting that is compared was chosen by runs on {tuning} other seeds, with other prompts and other held-out
  problems, over both tasks. The best rival is the best of the reported runs, which favours it; the rivals' own keys
  were left as their methods set them, which favours MOTAB.
- Students: the shipped student's architecture, trained on golden chains and saved at {students}.
  "Middle" students are trained with every setting, "weak" and "strong" ones with some.
- A run has one processor core to itself; its seconds are those of rollout, update and relayout.
"""

_EXPOSURE = """
## Exposure bias

How often the student's next step is wrong, by its number, if no earlier step was wrong; and over all step numbers,
before the first error and after it. Sampled at temperature 1 from the trained middle students.
"""

_REVERSED = """
## Reversed exposure bias

The teacher after three lines of which the given number of last ones are wrong: its entropy where the next step starts,
in nats, and how often its own continuation, sampled at temperature 1, still reaches the correct answer.
"""


def headline(figures: dict[str, Any]) -> str:
    """One sentence: the chosen setting against the best rival."""
    return (
        f"{figures['best_motab']} (chosen on other seeds) against {figures['best_rival']} (the best rival): "
        f"{_difference(figures)} points over {' and '.join(figures['tasks'])}, {figures['seeds']} seeds, "
        f"{figures['prompts']} held-out problems each."
    )


def report(figures: dict[str, Any]) -> str:
    """The page, Markdown."""
    size = figures["size"]
    students = "; ".join(
        f"{task} {', '.join(f'{strength} {share:.0%}' for strength, share in found.items())}"
        for task, found in figures["students"].items()
    )
    parts = [
        _PROTOCOL.format(
            headline=headline(figures), seeds=figures["seeds"], students=students,
            times=size["steps"] * size["batch"] / size["train_prompts"],
            tuning=len(next(iter(figures["tuning"]["both"].values()))["per_seed"]), **size,
        ),
        "\n## Both tasks\n",
        accuracy_table(figures["methods"]),
        "\n## MOTAB's settings\n\nOn the tuning seeds; the first row is compared with the rivals.\n",
        _tuning(figures["tuning"]),
    ]  # fmt: skip
    for task, found in figures["tasks"].items():
        parts += [f"\n## {task.capitalize()}\n", _cells(found), _pictures(task)]
    parts += [_EXPOSURE, _exposure(figures["exposure"]), _REVERSED, _reversed(figures["reversed_exposure"])]
    return "\n".join(parts) + "\n"


def accuracy_table(methods: dict[str, Any]) -> str:
    """The accuracies, best first, and how far each is behind the chosen setting."""
    rows = [
        f"| {name} | {_interval(found)} | {', '.join(f'{100 * value:.1f}' for value in found['per_seed'])} | "
        f"{_interval(found['behind'])} |"
        for name, found in _ranked(methods)
    ]
    head = "| setting | accuracy, % (95% interval) | by seed | behind the chosen setting, points, paired by seed |"
    return "\n".join([head, "|---|---|---|---|", *rows])


def _ranked(methods: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted(methods.items(), key=lambda item: -item[1]["mean"])


def _interval(found: dict[str, Any]) -> Interval:
    return Interval(found["mean"], found["low"], found["high"])


def _difference(found: dict[str, Any]) -> Interval:
    return Interval(*(found[key] for key in ("difference", "difference_low", "difference_high")))


def _tuning(tuning: dict[str, Any]) -> str:
    """A row for each MOTAB setting, best first, a column for both tasks and for each."""
    head = [f"| setting | {' | '.join(tuning)} |", f"|---|{'---|' * len(tuning)}"]
    rows = [
        f"| {name} | {' | '.join(str(_interval(found[name])) for found in tuning.values())} |"
        for name, _ in _ranked(tuning["both"])
    ]
    return "\n".join([*head, *rows])


def _cells(strengths: dict[str, Any]) -> str:
    """A column for each strength, a row for each setting, and the paired difference last."""
    names = [name for name, _ in _ranked(strengths["middle"]["methods"])]
    rows = []
    for name in names:
        cells = [found["methods"].get(name) for found in strengths.values()]
        rows.append(f"| {name} | {' | '.join(str(_interval(cell)) if cell else '' for cell in cells)} |")
    differences = [f"{_difference(found)} against {found['best_rival']}" for found in strengths.values()]
    head = [f"| setting | {' | '.join(strengths)} |", f"|---|{'---|' * len(strengths)}"]
    return "\n".join([*head, *rows, f"| difference, points | {' | '.join(differences)} |"])


def _pictures(task: str) -> str:
    words = {
        "updates": "accuracy against updates", "seconds": "against seconds of training",
        "teacher_tokens": "against teacher tokens, scored and generated", "rewinds": "rewinds per trajectory",
    }  # fmt: skip
    return "\n".join(["", *(f"![{task}: {text}](study-{name}-{task}.svg)" for name, text in words.items())])


def _exposure(tasks: dict[str, Any]) -> str:
    parts = []
    for task, found in tasks.items():
        rows = [
            f"| {name} | {' | '.join(map(_share, [*line['first'], line['first_all'], line['further_all']]))} |"
            for name, line in found.items()
        ]
        steps = next(iter(found.values()))["step"]
        parts += [
            f"| {task}, % | {' | '.join(f'step {n}' for n in steps)} | all, before the first error | all, after it |",
            f"|---|{'---|' * (len(steps) + 2)}",
            *rows,
            f"\n![{task}: errors by step](study-exposure-{task}.svg)\n",
        ]
    return "\n".join(parts)


def _share(found: float | None) -> str:
    return "" if found is None else f"{100 * found:.1f}"


def _reversed(tasks: dict[str, Any]) -> str:
    rows = [
        f"| {task} | {view['flawed']} | {view['entropy']:.3f} | {100 * view['right']:.1f}% |"
        for task, views in tasks.items()
        for view in views
    ]
    head = ["| task | flawed steps | entropy | correct answers |", "|---|---|---|---|"]
    pictures = "\n![the teacher's entropy](study-entropy.svg)\n![its correct answers](study-recovery.svg)"
    return "\n".join([*head, *rows, pictures])
