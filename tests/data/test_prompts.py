"""Prompt sources and their errors, token limits, and the resumable order."""

import json
from dataclasses import dataclass, field
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from motab_jax.config import UserError
from motab_jax.data.prompts import PromptStream, encode_all, has_held_out, load_prompts
from motab_jax.data.records import Prompt
from motab_jax.data.tasks import arithmetic
from motab_jax.data.templates import PromptForm
from motab_jax.data.tokenizer import load_tokenizer
from motab_jax.grading.grade import is_correct


@dataclass(frozen=True)
class Section:
    """What a configuration section offers."""

    source: str
    path: str | None = None
    fields: dict[str, str] = field(default_factory=dict)
    split: str = "train"
    answer_part: str = "whole"
    wrong_answers: list[str] = field(default_factory=list)
    grader: str = "math"
    instruction: str | None = None


def read(text: str | bytes, tmp_path, fields=None, count=None, **rules: Any) -> list[Prompt]:
    path = tmp_path / "data.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_prompts(Section("jsonl", str(path), fields or {}, **rules), split="train", count=count, seed=0)


def test_jsonl_fields(tmp_path):
    messages = [{"role": "user", "content": "q"}]
    lines = [
        {"prompt": "p", "answer": 3, "id": 7},
        {"prompt": messages},
        {"prompt": "r", "answer": "x", "grader": "exact"},
    ]
    text = "\ufeff" + "\r\n\n".join(json.dumps(line) for line in lines) + "\n"
    assert read(text, tmp_path) == [
        Prompt("7", "p", "3", "math"),
        Prompt("3", messages, None, "none"),
        Prompt("5", "r", "x", "exact"),
    ]
    renamed = read('{"question": "q", "solution": "s"}', tmp_path, {"prompt": "question", "answer": "solution"})
    assert renamed == [Prompt("1", "q", "s", "math")]
    assert len(read(text, tmp_path, count=2)) == 2


def test_a_completion_may_be_there(tmp_path):
    text = '{"prompt": "p", "written": "w"}\n{"prompt": "q", "written": null}\n{"prompt": "r"}'
    assert [prompt.completion for prompt in read(text, tmp_path, {"completion": "written"})] == ["w", None, None]
    assert read('{"prompt": "p", "completion": "c"}', tmp_path)[0].completion == "c"
    with pytest.raises(UserError, match=r"line 1: the field 'written' is not text"):
        read('{"prompt": "p", "written": ["w"]}', tmp_path, {"completion": "written"})
    table = pyarrow.table({"prompt": ["a", "b"], "completion": ["c", None]})
    parquet.write_table(table, tmp_path / "data.parquet")
    section = Section("parquet", str(tmp_path / "data.parquet"))
    assert [p.completion for p in load_prompts(section, split="train", count=None, seed=0)] == ["c", None]


def test_an_instruction_ends_every_prompt(tmp_path):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    text = "\n".join(json.dumps({"prompt": prompt}) for prompt in ("p", messages))
    plain, chat = (prompt.prompt for prompt in read(text, tmp_path, instruction="Think."))
    assert plain == "p\nThink." and chat == [messages[0], {"role": "user", "content": "q\nThink."}]


def test_the_part_of_a_field_that_is_the_answer(tmp_path):
    text = json.dumps({"prompt": "p", "answer": r"a #### \boxed{1} so \boxed{\frac{2}{3}}. #### 1,234 "})
    assert [read(text, tmp_path, answer_part=part)[0].answer for part in ("after_hashes", "boxed")] == [
        "1,234",
        r"\frac{2}{3}",
    ]
    assert read('{"prompt": "p"}', tmp_path, answer_part="boxed")[0].answer is None
    for part, mark in (("after_hashes", "####"), ("boxed", "boxed")):
        with pytest.raises(UserError, match=f"line 1: the field 'answer' has no .*{mark}"):
            read('{"prompt": "p", "answer": "3 ####"}', tmp_path, answer_part=part)


def test_the_choices_of_a_problem_come_in_an_order_of_its_own(tmp_path):
    lines = [{"prompt": f" Question {n}? ", "answer": "yes\n", "no": "no", "who": 3} for n in range(20)]
    text = "\n".join(map(json.dumps, lines))
    rules = {"wrong_answers": ["no", "who"], "grader": "choice"}
    found = read(text, tmp_path, **rules)
    for number, prompt in enumerate(found):
        question, blank, *choices = str(prompt.prompt).split("\n")
        assert (question, blank, prompt.grader) == (f"Question {number}?", "", "choice")
        assert sorted(choice[3:] for choice in choices) == ["3", "no", "yes"]
        assert [choice[:3] for choice in choices] == ["A) ", "B) ", "C) "] and f"{prompt.answer}) yes" in choices
    assert {prompt.answer for prompt in found} == {"A", "B", "C"}
    alone = read(json.dumps(lines[7]), tmp_path, **rules)[0]
    assert (alone.prompt, alone.answer) == (found[7].prompt, found[7].answer), "wherever it stands"


@pytest.mark.parametrize(
    ("text", "rules", "message"),
    [
        ('{"prompt": "a", "answer": "1"}', {"wrong_answers": ["no"]}, "line 1: the field 'no'"),
        ('{"prompt": "a", "no": "1"}', {"wrong_answers": ["no"]}, "line 1: a multiple choice .* an answer"),
        ('{"prompt": "a"}', {"wrong_answers": list("abcdefgh")}, "wrong_answers names 8 fields"),
    ],
)
def test_broken_choices(text, rules, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read(text, tmp_path, **rules)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": ', r"data\.jsonl, line 2: not valid JSON"),
        ('{"prompt": "a"}\n\n{"text": "b"}', r"data\.jsonl, line 3: the field 'prompt' is missing"),
        (b'{"prompt": "\xff"}', "line 1: not valid JSON"),
        ("[" * 100_000, "line 1"),
        ("[1]", "line 1: expected an object"),
        ('{"prompt": 3}', "line 1: .*neither text nor a list"),
        ('{"prompt": []}', "line 1: .*neither text nor a list"),
        ('{"prompt": [{"role": "user"}]}', "line 1: .*neither text nor a list"),
        ('{"prompt": " "}', "line 1: .*empty"),
        ('{"prompt": "a", "answer": {"value": 1}}', "line 1: .*'answer' is neither"),
        ('{"prompt": "a", "answer": "1", "grader": "x"}', "grader 'x'"),
        ('{"prompt": "a"}\n{"prompt": "b", "completion": 3}', "line 2: the field 'completion' is not text"),
        ("", r"data\.jsonl: the data set is empty"),
        ("\n \n", "empty"),
    ],
)
def test_broken_jsonl_names_file_and_line(text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read(text, tmp_path)


def test_named_fields_must_exist(tmp_path):
    with pytest.raises(UserError, match=r"line 1: the field 'gold' is missing; data\.fields\.answer"):
        read('{"prompt": "a"}', tmp_path, {"answer": "gold"})
    with pytest.raises(UserError, match="unknown key 'answers'"):
        read('{"prompt": "a"}', tmp_path, {"answers": "gold"})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (Section("jsonl"), r"needs data\.path"),
        (Section("jsonl", "absent.jsonl"), "absent.jsonl: no such file"),
        (Section("parquet", __file__), "not a readable parquet file"),
        (Section("json", "x"), "is not a source"),
        (Section("hub"), "is not a source"),
        (Section("jsonl:x"), "is not a source"),
    ],
)
def test_wrong_sources(section, message):
    with pytest.raises(UserError, match=message):
        load_prompts(section, split="train", count=None, seed=0)


def test_a_training_file_has_no_held_out_split(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a"}')
    with pytest.raises(UserError, match=r"eval\.source"):
        load_prompts(Section("jsonl", str(path)), split="held_out", count=None, seed=0)
    own = Section("jsonl", str(path), split="held_out")  # the evaluation's own file is held out as a whole
    assert len(load_prompts(own, split="held_out", count=None, seed=0)) == 1
    assert not has_held_out("jsonl") and has_held_out("arithmetic") and has_held_out("reasoning_gym:chain_sum")


def test_parquet_reads_as_jsonl_does(tmp_path):
    table = pyarrow.table({"question": ["a", None], "answer": [1.5, 2.0]})
    parquet.write_table(table.slice(0, 1), tmp_path / "good.parquet")
    parquet.write_table(table, tmp_path / "bad.parquet")
    section = Section("parquet", str(tmp_path / "good.parquet"), {"prompt": "question"})
    assert load_prompts(section, split="train", count=None, seed=0) == [Prompt("1", "a", "1.5", "math")]
    with pytest.raises(UserError, match=r"bad\.parquet, row 2: the field 'question'"):
        load_prompts(
            Section("parquet", str(tmp_path / "bad.parquet"), {"prompt": "question"}), split="train", count=None, seed=0
        )


def test_missing_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    for source in ("hub:a/b", "reasoning_gym:chain_sum"):
        with pytest.raises(UserError, match=r"pip install '\.\[data\]'"):
            load_prompts(Section(source), split="train", count=1, seed=0)


@pytest.mark.parametrize("source", ["arithmetic", "pointers"])
def test_shipped_sources(source):
    train = load_prompts(Section(source), split="train", count=30, seed=0)
    held_out = load_prompts(Section(source), split="held_out", count=30, seed=0)
    assert all(is_correct(p, str(p.completion)) for p in train) and has_held_out(source)
    assert {p.grader for p in train} == {"arithmetic"} and len(train) == len(held_out) == 30
    assert not {str(p.prompt) for p in train} & {str(p.prompt) for p in held_out}
    with pytest.raises(UserError, match="split 'test'"):
        load_prompts(Section(source), split="test", count=1, seed=0)


def test_reasoning_gym_splits_are_disjoint():
    section = Section("reasoning_gym:chain_sum")
    train = load_prompts(section, split="train", count=40, seed=0)
    held_out = load_prompts(section, split="held_out", count=40, seed=0)
    assert len(train) == len(held_out) == 40
    assert not {str(p.prompt) for p in train} & {str(p.prompt) for p in held_out}
    assert train == load_prompts(section, split="train", count=40, seed=0)
    with pytest.raises(UserError, match="no_such_task"):
        load_prompts(Section("reasoning_gym:no_such_task"), split="train", count=1, seed=0)


def test_too_long_prompt_is_named_before_work_starts(tmp_path):
    arithmetic.write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    prompts = [Prompt("first", "1+1=", None, "none"), Prompt("second", "1+1+1+1=", None, "none")]
    options = {"form": PromptForm(), "path": "data.jsonl"}
    assert [len(ids) for ids in encode_all(prompts, tokenizer, max_prompt_tokens=9, **options)] == [5, 9]
    with pytest.raises(UserError, match=r"data\.jsonl: prompt 'second' has 9 tokens.*raise data\.max_prompt_tokens"):
        encode_all(prompts, tokenizer, max_prompt_tokens=8, **options)
    with pytest.raises(UserError, match="no chat template"):
        encode_all(prompts, tokenizer, form=PromptForm(chat_template=True), max_prompt_tokens=9, path=None)


def test_stream_epochs_are_whole_and_reshuffled():
    stream = PromptStream(7, 7, seed=0)
    epochs = [next(stream) for _ in range(3)]
    assert stream.epoch == 3
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_stream_order_does_not_depend_on_the_batch_size():
    orders = []
    for size in (1, 3, 10, 30):
        stream = PromptStream(7, size, seed=5)
        orders.append([i for _ in range(30 // size) for i in next(stream)])
    assert orders[0] == orders[1] == orders[2] == orders[3]
    assert orders[0] != [i for i in next(PromptStream(7, 30, seed=6))]


def test_stream_resumes_from_its_json_state():
    stream = PromptStream(7, 4, seed=1)
    next(stream)
    state = json.loads(json.dumps(stream.get_state()))
    rest = [next(stream) for _ in range(5)]
    resumed = PromptStream(7, 4, seed=1)
    resumed.set_state(state)
    assert [next(resumed) for _ in range(5)] == rest


def test_stream_refuses_the_state_of_other_data():
    state = PromptStream(7, 4, seed=1).get_state()
    with pytest.raises(UserError, match="number of prompts"):
        PromptStream(8, 4, seed=1).set_state(state)
    with pytest.raises(UserError, match="seed"):
        PromptStream(7, 4, seed=2).set_state(state)


def test_several_tasks_take_turns():
    both = load_prompts(Section("reasoning_gym:chain_sum,basic_arithmetic"), split="train", count=5, seed=0)
    assert [prompt.id.split("-")[0] for prompt in both] == ["chain_sum", "basic_arithmetic"] * 2 + ["chain_sum"]
    alone = load_prompts(Section("reasoning_gym:chain_sum"), split="train", count=3, seed=0)
    assert both[::2] == alone
