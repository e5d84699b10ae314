"""Trajectories with and without colour."""

import io

import pytest
from rich.console import Console

from motab_jax.evaluation.show import show

STEP = {"start": 2, "end": 4, "source": "student", "value": 0.1, "boundary": 0.2}
RECORD = {
    "prompt": "ask", "tokens": [*b"ab", *b"CD"], "sources": ["student"] * 2 + ["teacher"] * 2, "correct": True,
    "finish_reason": "stop", "rewinds": [{"discarded_steps": [STEP], "discarded_text": "wrong\n"}],
}  # fmt: skip


def printed(**settings) -> str:
    console = Console(file=io.StringIO(), width=80, **settings)
    show(console, {}, [RECORD], lambda ids: bytes(ids).decode())
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("settings", [{}, {"force_terminal": True, "color_system": "truecolor", "no_color": True}])
def test_without_colour_marks_say_what_was_discarded_and_who_wrote(settings):
    text = printed(**settings)
    assert "[-wrong-]" in text and "{+CD+}" in text and "[-discarded-]" in text and "{+teacher+}" in text
    assert "ab" in text and "{+ab" not in text and "strayed" in text


def test_colours_need_no_marks():
    text = printed(force_terminal=True, color_system="truecolor")
    assert "wrong" in text and "CD" in text and "\x1b[" in text
    assert not [mark for mark in ("[-", "-]", "{+", "+}") if mark in text]
