"""Progress: plain lines off a terminal, a live line on one."""

import io

from rich.console import Console

from motab_jax.runtime.progress import Progress


def show(terminal: bool, every: float = 1000.0) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, height=10)
    with Progress(4, "train", every=every, console=console) as progress:
        for step in range(1, 5):
            progress.update(step, {"loss": 1 / step, "rewinds": step, "note": "[x]"})
        progress.print("done [bold]")
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_first_and_last_line_off_a_terminal():
    lines = show(terminal=False).splitlines()
    assert lines == [
        "train 1/4  loss 1  rewinds 1  note [x]",
        "train 4/4  loss 0.25  rewinds 4  note [x]",
        "done [bold]",
    ]


def test_time_brings_more_lines():
    assert len(show(terminal=False, every=0.0).splitlines()) == 5


def test_a_terminal_gets_a_live_line():
    text = show(terminal=True)
    assert "4/4" in text and "rewinds 4" in text and "\x1b[" in text


def test_the_time_left_is_reckoned_from_the_first_update_on(monkeypatch):
    """Steps 101 and 102 of 200 came 30 s apart: 98 more take 49 minutes, whatever was done before or compiled first."""
    clock = iter([1000.0, 1030.0, 1060.0])
    monkeypatch.setattr("motab_jax.runtime.progress.time.monotonic", lambda: next(clock))
    console = Console(file=io.StringIO(), width=100)
    with Progress(200, "train", done=100, console=console) as progress:
        for step in (101, 102, 200):
            progress.update(step)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.split() for line in lines] == [
        ["train", "101/200"],
        ["train", "102/200", "left", "0:49:00"],
        ["train", "200/200"],
    ]
