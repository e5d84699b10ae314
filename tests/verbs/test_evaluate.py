"""Evaluating on several benchmarks (records from a fake of the hub), and the table of figures."""

import json

import pytest
from rich.console import Console

import motab_jax.data.tokenizer as tokenizer_module
from motab_jax import evaluate
from motab_jax.data.extract import extract_answer
from motab_jax.evaluation.show import evaluation_table
from tests.data import fake_hub
from tests.verbs.helpers import read_lines, words

# Problems that the tiny pair's tokenizer can spell.
SUMS = {
    ("HuggingFaceH4/MATH-500", None, "test"): [
        {"problem": f"{n}+1=", "answer": str(n + 1), "unique_id": f"test/{n}"} for n in range(3)
    ],
    ("openai/gsm8k", "main", "test"): [{"question": f"{n}+2=", "answer": f"#### {n + 2}"} for n in range(2)],
}
FIELDS = {
    *("benchmark", "id", "sample", "prompt", "text", "answer", "extracted", "correct", "score", "tokens"),
    "finish_reason",
}


def test_several_benchmarks_give_a_line_and_a_row_each(pair, tmp_path, capsys, monkeypatch):
    fake_hub.install(monkeypatch, SUMS)
    output = tmp_path / "problems.jsonl"
    changes = ["eval.preset=[math500,gsm8k]", "eval.samples=2", "eval.instruction=null", "eval.reverse_kl=false"]
    assert evaluate.work([*words(pair, tmp_path, *changes), f"output={output}"]) == 0
    said = capsys.readouterr()
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [(line["name"], line["prompts"], line["k"]) for line in lines] == [("math500", 3, 2), ("gsm8k", 2, 2)]
    assert all(list(line["pass_at"]) == ["1", "2"] and "problems" not in line for line in lines)
    problems = read_lines(output)
    assert [(p["benchmark"], p["id"], p["sample"]) for p in problems] == [
        *(("math500", f"test/{n}", sample) for n in range(3) for sample in range(2)),
        *(("gsm8k", str(n), sample) for n in (1, 2) for sample in range(2)),
    ]
    for problem in problems:
        assert set(problem) == FIELDS and isinstance(problem["score"], float)
        assert problem["text"] and problem["correct"] is (problem["score"] == 1.0)
    assert [(p["prompt"], p["answer"]) for p in problems[::2]] == [
        ("0+1=", "1"), ("1+1=", "2"), ("2+1=", "3"), ("0+2=", "2"), ("1+2=", "3")
    ]  # fmt: skip
    assert [p["extracted"] for p in problems] == [extract_answer(p["text"]) for p in problems]
    assert any(problem["extracted"] for problem in problems)
    rows = [line for line in said.err.splitlines() if line.startswith("│")]
    assert len(rows) == 2 and "math500" in rows[0] and "gsm8k" in rows[1]


def test_where_the_prompt_opens_a_thought_a_completion_must_close_it(pair, tmp_path, monkeypatch):
    fake_hub.install(monkeypatch, SUMS)
    monkeypatch.setattr(tokenizer_module, "_THOUGHT_TAGS", ("=", "@"))  # the tiny tokenizer spells no <think>
    output = tmp_path / "problems.jsonl"
    changes = ["eval.preset=math500", "eval.samples=2", "eval.instruction=null", "eval.reverse_kl=false"]
    assert evaluate.work([*words(pair, tmp_path, *changes), f"output={output}"]) == 0
    assert [(bool(p["text"]), p["extracted"], p["correct"]) for p in read_lines(output)] == 6 * [(True, "", False)]


def figures(**changes):
    """What `evaluate` found."""
    plain = {"accuracy": 0.25, "stderr": 0.125, "pass_at_k": 0.5, "k": 8, "prompts": 30, "truncated": 0.1}
    return {"name": "aime24", **plain, "length_mean": 2345.6, **changes}


def table(*found) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(evaluation_table(found))
    return captured.get()


def test_the_table_shows_what_there_is():
    text = table(figures(), figures(name="reasoning_gym:a[b],c", score=0.3, score_stderr=0.02, k=1))
    assert "25.0% ± 12.5" in text and "30.0% ± 2.0" in text and "10.0%" in text and "2346" in text
    assert "reasoning_gym:a[b],c" in text and "reverse KL" not in text
    assert "pass@k" in text and "pass@k" not in table(figures(k=1))


def test_the_tasks_of_a_benchmark_have_rows_of_their_own():
    one, two = figures(name="", prompts=17), figures(name="", prompts=13)
    text = table(figures(tasks={"one": one, "two": two}))
    assert [line.split()[1] for line in text.splitlines() if line.startswith("│")] == ["aime24", "one", "two"]


@pytest.mark.parametrize("key", ["score", "tasks"])
def test_figures_that_are_not_there_leave_no_column(key):
    assert key not in table(figures())
