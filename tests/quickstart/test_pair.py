"""The shipped pair is what its README says: small, of one tokenizer, and of the promised skill."""

import json
import random

import jax
import jax.numpy as jnp
import pytest

from motab_jax.data.pairs import common_vocab_size
from motab_jax.data.stop_tokens import stop_ids
from motab_jax.data.tasks import arithmetic, pointers
from motab_jax.data.tasks.arithmetic import ALPHABET
from motab_jax.data.tokenizer import load_tokenizer, vocab_size
from motab_jax.models.hf.pretrained import load_pretrained
from motab_jax.models.transformer import Model, forward
from motab_jax.quickstart import STUDENT, TEACHER, build

NAMES = {
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
}  # fmt: skip


@pytest.mark.parametrize("folder", [TEACHER, STUDENT], ids=lambda folder: folder.name)
def test_the_folders_are_complete_and_small(folder):
    assert {path.name for path in folder.iterdir()} >= NAMES
    assert (folder / "model.safetensors").stat().st_size <= 4_000_000
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen3"
    tokenizer = load_tokenizer(folder)
    assert stop_ids(tokenizer, folder) == (tokenizer.eos_token_id,)
    assert len(tokenizer) == build.PLANS[folder.name].config.vocab_size


def test_the_pair_shares_its_tokenizer_which_spells_every_character():
    student, teacher = load_tokenizer(STUDENT), load_tokenizer(TEACHER)
    assert common_vocab_size(student, teacher) == vocab_size(student) == vocab_size(teacher)
    for text in (ALPHABET, "However,", "Wait, 12+7=19\n"):
        ids = student.encode(text, add_special_tokens=False)
        assert student.unk_token_id not in ids and student.decode(ids) == text


@pytest.mark.parametrize(
    ("folder", "task", "least", "most"),
    [(TEACHER, arithmetic, 0.98, 1.0), (TEACHER, pointers, 0.98, 1.0), (STUDENT, arithmetic, 0.2, 0.45)],
)
def test_the_pair_has_the_promised_skill(folder, task, least, most):
    params, config = load_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    assert least <= build.measure_accuracy(Model(params, config), tokenizer, 256, seed=5, task=task).answer <= most


def test_the_teacher_is_sure_in_a_map_until_a_key_is_wrong():
    params, config = load_pretrained(TEACHER)
    tokenizer = load_tokenizer(TEACHER)
    problems = pointers.problems(64, seed=5, split="held_out", min_hops=6)
    mean_entropy = {}
    for steps in (0, 1):
        rng = random.Random(0)
        texts = [p.prompt + pointers.corrupt(p, steps, rng, lines=4) for p in problems]
        logits = forward(params, config, jnp.asarray([tokenizer.encode(text) for text in texts]))
        logp = jax.nn.log_softmax(logits[:, -1])
        mean_entropy[steps] = float(-(jnp.exp(logp) * logp).sum(-1).mean())
    assert mean_entropy[0] < 0.2 and mean_entropy[1] > 2.5
