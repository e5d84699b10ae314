"""Tables of held-out metrics, and trajectories in colour.

Green is what the student generated and kept, red struck through what was discarded, blue what the teacher generated.
Where there is no colour, as in a file, marks say the same: [-discarded-] and {+the teacher's+}.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

STYLES = {"student": "green", "teacher": "bold blue", "discarded": "red strike", "note": "dim italic"}
MARKS = {"student": "{}", "teacher": "{{+{}+}}", "discarded": "[-{}-]", "note": "{}"}
COLUMNS = (
    *(("name", "benchmark"), ("prompts", "problems"), ("k", "k"), ("accuracy", "avg@k"), ("pass_at_k", "pass@k")),
    *(("score", "score"), ("truncated", "truncated"), ("length_mean", "mean length"), ("reverse_kl", "reverse KL")),
)


def accuracy_table(before: Mapping[str, Any], after: Mapping[str, Any]) -> Table:
    """Held-out metrics before and after training."""
    table = Table(title=f"Held-out metrics on {after['prompts']} prompts")
    for column in ("", "before", "after"):
        table.add_column(column, justify="left" if not column else "right")
    for key, label in (
        ("accuracy", "accuracy"),
        ("score", "score"),
        ("truncated", "truncated"),
        ("length_mean", "mean length"),
        ("reverse_kl", "reverse KL to the teacher"),
    ):
        if before.get(key) is not None and after.get(key) is not None:
            table.add_row(label, _formatted(key, before), _formatted(key, after))
    return table


def evaluation_table(evaluations: Sequence[Mapping[str, Any]]) -> Table:
    """The metrics of benchmarks, a row for each; a benchmark of several tasks has a row below it for each task."""
    several = any(metrics["k"] > 1 for metrics in evaluations)
    shown = [column for column in COLUMNS if any(column[0] in metrics for metrics in evaluations)]
    shown = [column for column in shown if several or column[0] != "pass_at_k"]
    table = Table(title="Held-out metrics (± is one standard error over problems)")
    for number, (_, label) in enumerate(shown):
        table.add_column(label, justify="right" if number else "left")
    for metrics in evaluations:
        tasks = [{**task, "name": f"  {name}"} for name, task in metrics.get("tasks", {}).items()]
        for row in (metrics, *tasks):
            table.add_row(*(Text(_formatted(key, row) if key in row else "") for key, _ in shown))
    return table


def _formatted(key: str, metrics: Mapping[str, Any]) -> str:
    value = metrics[key]
    if key in ("accuracy", "score"):
        stderr = metrics["stderr" if key == "accuracy" else "score_stderr"]
        return f"{100 * value:.1f}% ± {100 * stderr:.1f}"
    if key in ("truncated", "pass_at_k"):
        return f"{100 * value:.1f}%"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def trajectory_panel(record: Mapping[str, Any], decode: Callable[[list[int]], str], *, marked: bool = False) -> Panel:
    """One trajectory in colour.

    Args:
      record: the trajectory's (docs/records.md).
      decode: token ids to text.
      marked: say with marks, too, who generated what.
    """
    text, tokens, sources = Text(), record["tokens"], record["sources"]
    prompt = record["prompt"] if isinstance(record["prompt"], str) else record["prompt"][-1]["content"]
    shown = 0  # tokens
    for rewind in record["rewinds"]:
        start = rewind["discarded_steps"][0]["start"]
        _spans(text, tokens, sources, shown, start, decode, marked)
        text.append_text(_styled(rewind["discarded_text"].rstrip("\n"), "discarded", marked))
        stray = rewind["discarded_steps"][-1]
        side = "<" if stray["value"] < stray["boundary"] else ">"  # monitor.alarm says on which side steps stray
        judgement = f"value {stray['value']:.3g} {side} boundary {stray['boundary']:.3g}"
        note = f"  strayed: {judgement}; the teacher generates from here\n"
        text.append(note, STYLES["note"])
        shown = start
    _spans(text, tokens, sources, shown, len(tokens), decode, marked)
    verdict = {True: "right", False: "wrong", None: "not graded"}[record["correct"]]
    return Panel(text, title=Text(prompt), subtitle=f"{verdict}, {record['finish_reason']}", title_align="left")


def _styled(text: str, role: str, marked: bool) -> Text:
    return Text(MARKS[role].format(text) if marked else text, STYLES[role])


def _spans(
    text: Text,
    tokens: list[int],
    sources: list[str],
    start: int,
    end: int,
    decode: Callable[[list[int]], str],
    marked: bool,
) -> None:
    """Append tokens start..end, one span for each run of tokens from the same source."""
    while start < end:
        stop = start
        while stop < end and sources[stop] == sources[start]:
            stop += 1
        text.append_text(_styled(decode(tokens[start:stop]), sources[start], marked))
        start = stop


def legend(*, marked: bool = False) -> Text:
    """The legend of the colours, or of the marks."""
    return Text("  ").join(_styled(role, role, marked) for role in ("student", "discarded", "teacher"))


def choose(records: list[dict], count: int) -> list[dict]:
    """The latest records, those with a rewind first."""
    newest = sorted(records, key=lambda record: -record["step"])
    return sorted(newest, key=lambda record: not record["rewinds"])[:count]


def show(console: Console, summary: Mapping[str, Any], records: list[dict], decode: Callable[[list[int]], str]) -> None:
    """Print trajectories, with marks where there is no colour, and the table of held-out metrics if there are any."""
    marked = (console.color_system is None or console.no_color) and not console.record  # what is recorded is drawn
    parts = [trajectory_panel(record, decode, marked=marked) for record in records]
    if parts:
        console.print(Group(legend(marked=marked), *parts))
    if summary.get("after"):
        console.print(accuracy_table(summary["before"], summary["after"]))
