"""The build: its batches, its accuracy, and the command from start to end on a plan of seconds."""

import random

import jax
import numpy as np
import pytest

from motab_jax.data.tasks import arithmetic, pointers
from motab_jax.data.tokenizer import load_tokenizer
from motab_jax.models.hf.pretrained import load_pretrained
from motab_jax.models.transformer import Model, init
from motab_jax.quickstart import build
from motab_jax.quickstart.plans import Arrows, Hops, Plan, Round, Stage, Sums, WrongHops, architecture

TINY = architecture(layers=1, width=16, heads=2, head_dim=8, mlp=16)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    arithmetic.write_tokenizer(folder)
    return load_tokenizer(folder)


def test_a_batch_trains_the_completion_and_its_end_and_nothing_else(tokenizer):
    tokens, trained = build.make_group(
        Sums(min_terms=5, max_terms=11, columns=112, rows=8), tokenizer, random.Random(0)
    )
    assert tokens.shape == trained.shape == (8, 112)
    for row, mask in zip(tokens, trained, strict=True):
        prompt = tokenizer.decode(row[: mask.argmax()], skip_special_tokens=True)
        lines = tokenizer.decode(row[mask], skip_special_tokens=True)
        assert prompt.endswith("=") and arithmetic.split_of(prompt) == "train"
        first, *terms = (int(n) for n in prompt[:-1].replace("+", " ").replace("-", " -").split())
        assert lines == arithmetic.solution(arithmetic.Problem(first, tuple(terms)))
        assert row[mask][-1] == tokenizer.eos_token_id
        assert not mask[row == tokenizer.pad_token_id].any()


def test_batches_of_maps(tokenizer):
    rng = random.Random(0)
    for row, mask in zip(*build.make_group(Hops(2, 4, 5, columns=36, rows=8), tokenizer, rng), strict=True):
        prompt, end = tokenizer.decode(row[: mask.argmax()], skip_special_tokens=True), mask.argmax() + mask.sum()
        assert arithmetic.split_of(prompt) == "train" and mask[mask.argmax() : end].all()
        arrows = tuple((arrow[0], arrow[1]) for arrow in prompt.partition(".")[0].split(","))
        problem = pointers.Problem(arrows, prompt[-3], int(prompt[-2]))
        assert tokenizer.decode(row[mask], skip_special_tokens=True) == pointers.solution(problem)
    for row, mask in zip(*build.make_group(Arrows(3, columns=20, rows=8), tokenizer, rng), strict=True):
        arrows = tokenizer.decode(row, skip_special_tokens=True).split(",")
        assert sorted(arrows[:3]) == sorted(arrows[3:])
        assert tokenizer.decode(row[mask], skip_special_tokens=True) == "".join(arrow[1] for arrow in arrows[3:])


def test_lost_chains_follow_the_map_wherever_it_leads_and_train_on_all_but_the_wrong_key(tokenizer):
    for row, mask in zip(
        *build.make_group(WrongHops(4, 6, 8, columns=52, rows=8), tokenizer, random.Random(0)), strict=True
    ):
        text = tokenizer.decode(row, skip_special_tokens=True)
        prompt, _, completion = text.partition("=")
        assert arithmetic.split_of(prompt + "=") == "train"
        target = {arrow[0]: arrow[1] for arrow in prompt.partition(".")[0].split(",")}
        *lines, last = completion.split("\n")
        trained = mask[len(prompt) + 2 :]  # after <bos> and =
        assert trained[: len(completion) + 1].sum() == len(completion)  # <eos> is trained on, one key is not
        before, slip = prompt[-2], int(np.argmin(trained)) // 3
        for number, line in enumerate(lines):
            assert line[1:] == str(len(lines) - 1 - number)
            assert line[0] not in target if number == slip else line[0] == target.get(before, line[0])
            before = line[0]
        assert last == f"#{before}" and trained[len(completion) + 1 :].sum() == 0


def columns(task):
    """The widest batches of a task in all plans."""
    stages = [stage for plan in build.PLANS.values() for stages in plan.rounds for stage in stages.stages]
    return max(rows.columns for stage in stages for rows in stage.rows if rows.task is task)


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
    assert len(prompt) + len(completion) + 1 <= columns(pointers)


def test_the_same_seed_gives_the_same_batches(tokenizer):
    stages = (Stage(2, (Sums(2, 3, 32, rows=4), Hops(1, 2, 3, 32, rows=4))),)
    runs = [
        [np.concatenate([tokens for tokens, _ in groups]) for groups in build.batches(stages, tokenizer, "x")]
        for _ in range(2)
    ]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0][0], runs[0][1])


def test_measure_counts_answers_and_chains(tokenizer, monkeypatch):
    def written(model, tokenizer, problems):
        chains = [arithmetic.solution(p) for p in problems]
        chains[0] += "7"  # a wrong answer
        chains[1] = f"#{problems[1].answer}"  # a right answer without its chain
        return [(text, len(text) + 1) for text in chains]

    monkeypatch.setattr(build, "complete", written)
    model = Model(init(TINY, jax.random.key(0)), TINY)
    found = build.measure_accuracy(model, tokenizer, 10, seed=0)
    assert (found.answer, found.chain, found.prompts) == (0.9, 0.8, 10)


def test_training_goes_back_when_a_measurement_overshoots(tokenizer, monkeypatch):
    shares = iter([0.1, 0.9, 0.2, 0.3])
    seen = []

    def measure_accuracy(model, *_):
        seen.append(model)
        return build.Accuracy(next(shares), 0.0, 0, 0)

    monkeypatch.setattr(build, "measure_accuracy", measure_accuracy)
    restored = []
    monkeypatch.setattr(build.Learner, "restore", lambda self, snapshot: restored.append(snapshot))
    stages = (Stage(20, (Sums(2, 3, 32, rows=2),)),)
    plan = Plan(TINY, (Round(stages, 1e-3, "constant"),), wanted=(0.25, 0.40), check_every=4)
    model = build.train("student", plan, tokenizer, 0)
    assert len(seen) == 4 and model.params is seen[-1].params
    assert len(restored) == 1 and restored[0][0] is seen[0].params


def test_the_command_writes_a_pair_that_loads(tmp_path, monkeypatch, capsys):
    part = Round((Stage(2, (Sums(2, 3, 32, rows=4),)),), 1e-3, "cosine")
    both = Round((Stage(2, (Sums(2, 3, 32, rows=4), Hops(1, 2, 3, 32, rows=4))),), 1e-3, "cosine")
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
