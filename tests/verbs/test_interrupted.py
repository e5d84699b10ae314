"""Signals at any moment at which the run asks: it saves, leaves with 75, and ends as a run that was left alone."""

import json

import pytest

from motab_jax.config import load_config
from motab_jax.runtime.cli import STOPPED
from motab_jax.training import loop
from tests.verbs.helpers import read_lines, without_clocks, words

pytestmark = pytest.mark.long

# 3 batches of an evaluation before the first step, after each of 3 steps, and at the end.
CHANGES = [
    *("run.steps=3", "run.eval_every=1", "run.save_every=2", "run.sample_every=1"),
    *("eval.batch_size=4", "eval.reverse_kl=true"),
]
# The question at which each start is told that a signal came: in the evaluation before; after step 1; in its
# evaluation; after step 2, in its evaluation; in the last one.
STOPS = [2, 3, 2, 6, 3, 6]


def train(pair, runs, stop_at, monkeypatch):
    """A start that is told of a signal at its question number `stop_at`; None: at none."""
    asked = 0

    def came(flag):
        nonlocal asked
        asked += 1
        return asked == stop_at

    monkeypatch.setattr(loop, "any_process", came)
    path, *overrides = words(pair, runs, *CHANGES)
    return loop.train(load_config(path, overrides))


def test_it_goes_on_where_it_was_stopped(pair, tmp_path, monkeypatch):
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    assert train(pair, alone, None, monkeypatch) == 0
    for number in STOPS:
        before = (stopped / "tiny" / "metrics.jsonl").read_text() if number != STOPS[0] else ""
        assert train(pair, stopped, number, monkeypatch) == STOPPED
        assert (stopped / "tiny" / "metrics.jsonl").read_text().startswith(before), "no line is written twice"
    assert train(pair, stopped, None, monkeypatch) == 0
    assert without_clocks(stopped / "tiny" / "metrics.jsonl") == without_clocks(alone / "tiny" / "metrics.jsonl")
    ours, theirs = (json.loads((runs / "tiny" / "summary.json").read_text()) for runs in (stopped, alone))
    for key in ("before", "after", "tokens", "steps", "accuracy_before", "accuracy_after"):
        assert ours[key] == pytest.approx(theirs[key]) if isinstance(theirs[key], float) else ours[key] == theirs[key]
    weights = [(runs / "tiny" / "export" / "model.safetensors").read_bytes() for runs in (stopped, alone)]
    assert weights[0] == weights[1] and not (stopped / "tiny" / "evaluation.partial.json").exists()
    trajectories = [read_lines(runs / "tiny" / "trajectories.jsonl") for runs in (stopped, alone)]
    assert trajectories[0] == trajectories[1]
