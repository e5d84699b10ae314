"""Logs: one object a line, exact numbers, and what a resumed run cuts off."""

import json
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from motab_jax.config import UserError
from motab_jax.runtime.metrics import MetricsLog, Tracker, open_trackers, read_log


def test_one_object_a_line(tmp_path):
    with MetricsLog(tmp_path / "run") as log:
        log.append(1, {"loss": jnp.float32(0.1), "by": {"student": 2, "teacher": np.float64(0.5)}, "text": "é\n"})
        log.append(2, {"loss": float("nan"), "lengths": np.arange(3), "ok": True, "none": None})
        text = log.path.read_text(encoding="utf-8")
    first, second = (json.loads(line) for line in text.splitlines())
    assert list(first) == ["step", "loss", "by", "text"]
    assert np.float32(first["loss"]) == np.float32(0.1)
    assert first["by"] == {"student": 2, "teacher": 0.5} and first["text"] == "é\n"
    assert second == {"step": 2, "loss": None, "lengths": [0, 1, 2], "ok": True, "none": None}


def test_resume_cuts_later_steps_and_the_half_written_line(tmp_path):
    with MetricsLog(tmp_path, "trajectories.jsonl") as log:
        for step in (0, 10, 10, 20, 30):
            log.append(step, {"text": "x"})
        before = log.path.read_bytes().splitlines(keepends=True)
    with log.path.open("ab") as file:
        file.write('{"step": 40, "text": "é'.encode()[:-1])
    assert [line["step"] for line in read_log(log.path)] == [0, 10, 10, 20, 30]
    with MetricsLog(tmp_path, "trajectories.jsonl") as log:
        log.truncate_after(20)
        assert log.path.read_bytes() == b"".join(before[:4])
        log.append(30, {"text": "y"})
        assert [line["step"] for line in read_log(log.path)] == [0, 10, 10, 20, 30]
        log.truncate_after(-1)
        assert log.path.read_bytes() == b""


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"loss"\n{"step": 2}\n')
    with MetricsLog(tmp_path) as log, pytest.raises(UserError, match=r"metrics.jsonl, line 2"):
        log.truncate_after(5)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the log"):
        MetricsLog(tmp_path / "file")


def test_trackers_get_flat_finite_numbers(tmp_path):
    seen, closed = [], []
    tracker = Tracker(lambda step, figures: seen.append((step, figures)), lambda: closed.append(True))
    with MetricsLog(tmp_path, trackers=[tracker]) as log:
        log.append(4, {"loss": {"student": 1.0, "teacher": float("inf")}, "tokens": 3, "name": "x"})
    assert seen == [(4, {"loss/student": 1.0, "tokens": 3.0})]
    assert closed == [True]


def test_a_run_has_an_id_of_its_own_with_wandb_which_a_resumed_run_keeps(tmp_path, monkeypatch):
    begun = []
    fake = types.SimpleNamespace(init=lambda **given: begun.append(given) or types.SimpleNamespace(finish=None))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for folder in ("mine", "mine", "theirs"):
        (tmp_path / folder).mkdir(exist_ok=True)
        open_trackers(tmp_path / folder, "quickstart", wandb=True)
    first, resumed, other = (given["id"] for given in begun)
    assert first == resumed != other and len(first) == 32
    assert {given["name"] for given in begun} == {"quickstart"}


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb"), ("trackio", "trackio")]
)
def test_a_missing_tracker_names_its_extra(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"log.{name} is on .*\[{name}\]"):
        open_trackers(tmp_path, "run", **{name: True})
    assert open_trackers(tmp_path, "run") == ()
