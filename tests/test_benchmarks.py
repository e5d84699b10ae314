"""benchmarks/step_ours.py on a pair of toys: both kinds of step run, and lose nothing of what is compared."""

import jax
import pytest
import step_ours

from motab_jax.models.architecture import ModelConfig
from motab_jax.models.hf.pretrained import save_pretrained
from motab_jax.models.transformer import init

VOCAB, ROWS, NEW = 32, 4, 8


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    for name, width in (("teacher", 16), ("student", 8)):
        shape = ModelConfig("qwen3", VOCAB, width, 2 * width, 2, 2, 1, 8, 64, qk_norm=True, tied=True)
        save_pretrained(folder / name, init(shape, jax.random.key(width)), shape)
    made = step_ours.Ours(folder)
    made.load([[2, 3, 4]] * ROWS, NEW, 2)
    return made


def test_a_step_of_each_kind(ours):
    opd = ours.step("opd")
    assert opd["emitted"] == opd["kept"] == ROWS * NEW and opd["loss"] > 0
    ours.set_boundary(0.5, 3)
    motab = [ours.step("motab") for _ in range(3)]
    assert all(found["kept"] == ROWS * NEW <= found["emitted"] for found in motab)
    assert any(found["strayed"] > 0 for found in motab)


def test_its_first_step_has_the_prompts(ours):
    assert [row[:3] for row in ours.first()["tokens"]] == [[2, 3, 4]] * ROWS
    ours.decode()
