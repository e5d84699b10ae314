"""The build: its batches, its accuracy, and the command from start to end on a plan of seconds."""

import random

import jax
import numpy as np
import pytest

from motab_jax.data import arithmetic, pointers
from motab_jax.data.tokenizer import load_tokenizer
from motab_jax.models.pretrained import load_pretrained
from motab_jax.models.transformer import Model, init
from motab_jax.quickstart import build
from motab_jax.quickstart.plans import Hops, Plan, Round, Stage, Sums, architecture

TINY = architecture(layers=1, width=16, heads=2, head_dim=8, mlp=16)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    arithmetic.write_tokenizer(folder)
    return load_tokenizer(folder)


def test_a_batch_trains_the_completion_and_its_end_and_nothing_else(tokenizer):
    tokens, trained = build.group(Sums(min_terms=5, max_terms=11, columns=112, rows=8), tokenizer, random.Random(0))
    assert tokens.shape == trained.shape == (8, 112)
    for row, mask in zip(tokens, trained, strict=True):
        prompt = tokenizer.decode(row[: mask.argmax()], skip_special_tokens=True)
        lines = tokenizer.decode(row[mask], skip_special_tokens=True)
        assert prompt.endswith("=") and arithmetic.split_of(prompt) == "train"
        first, *terms = (int(n) for n in prompt[:-1].replace("+", " ").replace("-", " -").split())
        assert lines == arithmetic.solution(arithmetic.Problem(first, tuple(terms)))
        assert row[mask][-1] == tokenizer.eos_token_id
        assert not mask[row == tokenizer.pad_token_id].any()


def columns(task):
    """The widest batches of a task in all plans."""
    stages = [stage for plan in build.PLANS.values() for part in plan.rounds for stage in part.stages]
    return max(part.columns for stage in stages for part in stage.parts if part.task is task)


def test_the_longest_problem_fits_the_columns_and_the_completion_length(tokenizer):
    problem = arithmetic.Problem(10, (9,) * 9 + (-9,))
    assert len(problem.terms) + 1 == arithmetic.MAX_TERMS
    prompt, completion = tokenizer.encode(problem.prompt), arithmetic.solution(problem)
    assert len(prompt) <= build.PROMPT_COLUMNS
    assert len(completion) + 1 <= build.MAX_NEW_TOKENS
    assert len(prompt) + len(completion) + 1 <= columns(arithmetic)
    problem = pointers.sample_problem(random.Random(0), min_hops=pointers.MAX_HOPS)
    prompt, completion = tokenizer.encode(problem.prompt), pointers.solution(problem)
    assert len(prompt) == build.PROMPT_COLUMNS


def test_the_same_seed_gives_the_same_batches(tokenizer):
    stages = (Stage(2, (Sums(2, 3, 32, rows=4), Hops(1, 2, 3, 32, rows=4))),)
    runs = [
        [np.concatenate([tokens for tokens, _ in groups]) for groups in build.batches(stages, tokenizer, "x")]
        for _ in range(2)
    ]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0][0], runs[0][1])


def test_new_letters_keep_only_what_tells_them_apart():
    params = init(TINY, jax.random.key(0))
    pushed = {**params, "embed": params["embed"].at[-52:].add(3.0)}
    before, after = np.asarray(params["embed"]), np.asarray(build.spread_letters(pushed)["embed"])
    np.testing.assert_array_equal(after[:-52], before[:-52])
    np.testing.assert_allclose(after[-52:], before[-52:] - before[-52:].mean(0), atol=1e-5)


def test_measure_counts_answers_and_chains(tokenizer, monkeypatch):
    def written(model, tokenizer, problems):
        chains = [arithmetic.solution(p) for p in problems]
        chains[0] += "7"  # a wrong answer
        chains[1] = f"#{problems[1].answer}"  # a right answer without its chain
        return [(text, len(text) + 1) for text in chains]

    monkeypatch.setattr(build, "complete", written)
    model = Model(init(TINY, jax.random.key(0)), TINY)
    found = build.measure(model, tokenizer, 10, seed=0)
    assert (found.answer, found.chain, found.prompts) == (0.9, 0.8, 10)


def test_training_goes_back_when_a_measurement_overshoots(tokenizer, monkeypatch):
    shares = iter([0.1, 0.9, 0.2, 0.3])
    seen = []

    def measure(model, *_):
        seen.append(model)
        return build.Accuracy(next(shares), 0.0, 0, 0)

    monkeypatch.setattr(build, "measure", measure)
    restored = []
    monkeypatch.setattr(build.Learner, "restore", lambda self, snapshot: restored.append(snapshot))
    stages = (Stage(20, (Sums(2, 3, 32, rows=2),)),)
    plan = Plan(TINY, (Round(stages, 1e-3, "constant"),), wanted=(0.25, 0.40), check_every=4)
    model = build.train("student", plan, tokenizer, 0)
    assert len(seen) == 4 and model.params is seen[-1].params
    assert len(restored) == 1 and restored[0][0] is seen[0].params


def test_the_command_writes_a_pair_that_loads(tmp_path, monkeypatch, capsys):
    part = Round((Stage(2, (Sums(2, 3, 32, rows=4),)),), 1e-3, "cosine")
    both = Round((Stage(2, (Sums(2, 3, 32, rows=4), Hops(1, 2, 3, 32, rows=4))),), 1e-3, "cosine", new_letters=True)
    plans = {"teacher": Plan(TINY, (part, both)), "student": Plan(TINY, (part,))}
    monkeypatch.setattr(build, "PLANS", plans)
    monkeypatch.setattr(build, "REPORT_PROMPTS", 4)
    assert build.main(["--out", str(tmp_path), "--seed", "3"]) == 0
    said = capsys.readouterr().out
    assert all(f"{who}: answers" in said for who in ("teacher, arithmetic", "teacher, pointers", "student, arithmetic"))
    for name in build.PLANS:
        _, config = load_pretrained(tmp_path / name)
        assert config == TINY
        assert load_tokenizer(tmp_path / name).encode("1+2=")[0] == 2


def test_an_output_folder_that_cannot_be_written_is_one_clear_sentence(tmp_path, monkeypatch, capsys):
    plan = Plan(TINY, (Round((Stage(1, (Sums(2, 3, 32, rows=2),)),), 1e-3, "cosine"),))
    monkeypatch.setattr(build, "PLANS", {"teacher": plan})
    monkeypatch.setattr(build, "REPORT_PROMPTS", 2)
    (tmp_path / "file").write_text("")
    assert build.main(["--out", str(tmp_path / "file")]) == 2
    assert "file" in capsys.readouterr().err
