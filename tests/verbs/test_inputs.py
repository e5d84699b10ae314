"""What a checkpoint remembers of its run's inputs."""

import pytest

from motab_jax.config import UserError
from motab_jax.training import inputs

SAVED = {"prompts": "a", "completions": None, "teacher": "b", "versions": {"jax": "0.1", "gone": "1"}}


def test_nothing_is_said_of_equal_inputs(capsys):
    inputs.check_inputs(SAVED, {**SAVED}, "runs/a")
    inputs.check_inputs(None, SAVED, "runs/a")
    assert capsys.readouterr().err == ""


def test_a_changed_teacher_is_refused():
    with pytest.raises(UserError, match=r"runs/a: the training prompts and the teacher's files changed"):
        inputs.check_inputs(SAVED, {**SAVED, "teacher": "c", "prompts": None}, "runs/a")


def test_other_versions_are_said(capsys):
    inputs.check_inputs(SAVED, {**SAVED, "versions": {"jax": "0.2", "gone": "1"}}, "runs/b")
    assert "note: runs/b: the run was saved with jax 0.1, now 0.2" in capsys.readouterr().err


def test_a_digest_of_rows_sees_every_id_and_length():
    rows = [[1, 2], [3]], [[1], [2, 3]], [[1, 2], [4]], [[1, 2], [3], []]
    assert len({inputs._digest_of_rows(r) for r in rows}) == 4
