"""Records in the forms that data sets really have: each kind is read, or refused with its line and what to do."""

import gzip
import json
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from motab_jax.config import UserError
from motab_jax.data.prompts import load_prompts
from motab_jax.grading.grade import is_correct
from tests.data.test_prompts import Section, read

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "so 4"}
SYSTEM = {"role": "system", "content": "s"}


def one(tmp_path, record: dict[str, Any], fields: dict[str, str] | None = None, **rules: Any):
    return read(json.dumps(record), tmp_path, fields, **rules)[0]


def refused(tmp_path, record, fields, message, **rules):
    with pytest.raises(UserError, match=rf"data\.jsonl, line 1: {message}") as caught:
        one(tmp_path, record, fields, **rules)
    assert "\n" not in str(caught.value)


def test_a_chat_that_ends_with_the_answer_is_no_prompt(tmp_path):
    record = {"messages": [SYSTEM, USER, ASSISTANT]}
    refused(
        tmp_path,
        record,
        {"prompt": "messages"},
        r"the field 'messages' ends with the assistant's turn.*data\.fields=\{prompt: messages, completion: messages\}",
    )
    both = {"prompt": "messages", "completion": "messages"}
    found = one(tmp_path, record, both)
    assert (found.prompt, found.completion) == ([SYSTEM, USER], "so 4")
    assert one(tmp_path, {"messages": [USER]}, both).completion is None
    longer = one(tmp_path, {"messages": [USER, ASSISTANT, USER, ASSISTANT]}, both)
    assert (longer.prompt, longer.completion) == ([USER, ASSISTANT, USER], "so 4")
    refused(tmp_path, {"messages": [ASSISTANT]}, both, ".*no message before the assistant's turn")
    refused(tmp_path, {"messages": "q"}, both, ".*can't be both the prompt and the completion")


def test_dots_lead_into_objects_and_lists(tmp_path):
    fields = {"prompt": "extra.question", "answer": "reward_model.ground_truth", "completion": "solutions.1"}
    record = {"extra": {"question": "q"}, "reward_model": {"ground_truth": "4"}, "solutions": ["a", "b"]}
    found = one(tmp_path, record, fields)
    assert (found.prompt, found.answer, found.completion) == ("q", "4", "b")
    plain = {"extra.question": "with a dot in its name", **record}
    assert one(tmp_path, plain, fields).prompt == "with a dot in its name"
    for wrong in ("reward_model.truth", "reward_model.ground_truth.x", "solutions.2", "solutions.-1"):
        refused(
            tmp_path, record, fields | {"answer": wrong}, rf"the field '{wrong}' is missing.*fields here: extra, rew"
        )
    choices = {"prompt": "q", "answer": "yes", "others": ["no", "perhaps"]}
    rules = {"wrong_answers": ["others.0", "others.1"], "grader": "choice"}
    assert "perhaps" in str(one(tmp_path, choices, **rules).prompt)


def test_dots_lead_into_the_columns_of_parquet(tmp_path):
    table = pyarrow.table({"data": [{"q": "a", "answers": ["1"]}, {"q": "b", "answers": []}]})
    parquet.write_table(table, tmp_path / "data.parquet")
    section = Section("parquet", str(tmp_path / "data.parquet"), {"prompt": "data.q", "answer": "data.answers"})
    found = load_prompts(section, split="train", count=None, seed=0)
    assert [(prompt.prompt, prompt.answer, prompt.grader) for prompt in found] == [
        ("a", "1", "math"),
        ("b", None, "none"),
    ]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(["3"], "3"), ([3], "3"), (["3", "3"], "3"), (["1", "2"], "1, 2"), ([], None), (["", None], None)],
)
def test_answers_as_lists(answer, expected, tmp_path):
    found = one(tmp_path, {"prompt": "p", "answer": answer})
    assert found.answer == expected and found.grader == ("none" if expected is None else "math")


def test_all_answers_of_a_list_are_asked_for(tmp_path):
    both = one(tmp_path, {"prompt": "p", "answer": ["1", "2"]})
    assert [is_correct(both, text) for text in (r"\boxed{1, 2}", r"\boxed{1}", r"\boxed{2}")] == [True, False, False]
    record = {"prompt": "p", "answer": ["yes", "yeah"]}
    refused(tmp_path, record, None, r".*has 2 answers; data\.fields\.answer=answer\.0 takes the first", grader="exact")
    assert one(tmp_path, record, {"answer": "answer.0"}, grader="exact").answer == "yes"


@pytest.mark.parametrize("answer", ["", " \n", None])
def test_empty_answers_count_as_none(answer, tmp_path):
    for part in ("whole", "boxed", "after_hashes"):
        found = one(tmp_path, {"prompt": "p", "answer": answer}, answer_part=part)
        assert (found.answer, found.grader) == (None, "none")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NaN", "is nan, which is not a number"),
        ("-Infinity", "is -inf, which is not a number"),
        ("true", "is neither text nor a number"),
        ("[true]", "is neither text nor a number"),
        ("[[1]]", "is neither text nor a number"),
        ("{}", "is neither text nor a number"),
    ],
)
def test_answers_that_are_none(text, message, tmp_path):
    for field in ("answer", "id") if "[" not in text else ("answer",):
        with pytest.raises(UserError, match=f"line 1: the field '{field}' {message}"):
            read(f'{{"prompt": "p", "{field}": {text}}}', tmp_path)


def test_completions_and_prompts_as_messages(tmp_path):
    found = one(tmp_path, {"prompt": [USER], "completion": [ASSISTANT]})
    assert (found.prompt, found.completion) == ([USER], "so 4")
    refused(
        tmp_path, {"prompt": "p", "completion": [ASSISTANT, USER]}, None, ".*other messages than one.*assistant, user"
    )
    refused(tmp_path, {"prompt": "p", "completion": [USER]}, None, ".*other messages than one of the assistant's: user")
    for key, value in (("tool_calls", [{"name": "f"}]), ("reasoning_content", "hm")):
        refused(tmp_path, {"prompt": "p", "completion": [ASSISTANT | {key: value}]}, None, f".*has {key}, which a")


def test_sharegpt(tmp_path):
    turns = [("system", "s"), ("human", "q"), ("gpt", "so 4")]
    record = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    both = {"prompt": "conversations", "completion": "conversations"}
    found = one(tmp_path, record, both)
    assert (found.prompt, found.completion) == ([SYSTEM, USER], "so 4")
    refused(tmp_path, record, {"prompt": "conversations"}, ".*ends with the assistant's turn")
    refused(tmp_path, record, None, r"the field 'prompt' is missing.*\(fields here: conversations\)")
    refused(
        tmp_path, {"prompt": [{"from": "alien", "value": "q"}]}, None, ".*a message from 'alien'; known are system, h"
    )


def test_content_parts(tmp_path):
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "2+2?"}]
    assert one(tmp_path, {"prompt": [{"role": "user", "content": parts}]}).prompt == [
        {"role": "user", "content": "What is 2+2?"}
    ]
    picture = {"prompt": [{"role": "user", "content": [*parts, {"type": "image", "url": "x"}]}]}
    refused(tmp_path, picture, None, ".*a content part that is not text: image; only text")


def test_calls_have_no_content(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}], "name": None}
    answer = {"role": "tool", "content": "4"}
    found = one(tmp_path, {"prompt": [USER, call, answer]}).prompt
    assert found == [USER, {"role": "assistant", "content": "", "tool_calls": [{"name": "add"}]}, answer]
    for content in (None, 3, [3]):
        refused(
            tmp_path, {"prompt": [USER, {"role": "assistant", "content": content}, USER]}, None, "the field 'prompt'"
        )
    refused(tmp_path, {"prompt": [{"role": "user", "content": " "}]}, None, ".*empty: no message has any text")


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "a \ud83d b"},
        {"prompt": [{"role": "user", "content": "\ude00"}]},
        {"prompt": "p", "answer": "\ud83d"},
        {"prompt": "p", "answer": ["\ud83d"]},
        {"prompt": "p", "id": "\ud83d"},
        {"prompt": "p", "completion": "\ud83d"},
        {"prompt": "p", "completion": [{"role": "assistant", "content": "\ud83d"}]},
    ],
    ids=str,
)
def test_half_a_surrogate_pair_is_no_text(record, tmp_path):
    refused(tmp_path, record, None, r"the field '\w+' has \\ud(83d|e00), half of a surrogate pair")
    assert one(tmp_path, {"prompt": "\U0001f600", "answer": "1"}).prompt == "\U0001f600", (
        "a whole pair is one character"
    )


def test_gzipped_lines(tmp_path):
    lines = b'\xef\xbb\xbf{"prompt": "a"}\r\n\n{"prompt": "b"}\n'
    packed = gzip.compress(lines)
    (tmp_path / "data.jsonl.gz").write_bytes(packed)
    section = Section("jsonl", str(tmp_path / "data.jsonl.gz"))
    found = load_prompts(section, split="train", count=None, seed=0)
    assert [(prompt.id, prompt.prompt) for prompt in found] == [("1", "a"), ("3", "b")]
    for damaged in (packed[:-12], packed[:12] + b"\xff" * 9 + packed[21:]):
        (tmp_path / "data.jsonl.gz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"data\.jsonl\.gz: not a complete gzip file"):
            load_prompts(section, split="train", count=None, seed=0)


def test_lines_end_at_line_feeds_alone(tmp_path):
    text = '{"prompt": "a\u2028b\u0085c"}\n{"prompt": "d"}'
    assert [prompt.prompt for prompt in read(text, tmp_path)] == ["a\u2028b\u0085c", "d"]
