"""SFT lines and preference pairs of records worked out by hand; tokens are characters."""

import pytest

from motab_jax import synthesize
from motab_jax.config import UserError
from motab_jax.data.records import Prompt
from motab_jax.synthesis.derived_files import chat, preference_pairs, prompt_type
from tests.verbs.schema import RECORD_SCHEMA, faults


def decode(tokens, *, special=False):
    """Capitals are special tokens."""
    return "".join(character for character in map(chr, tokens) if special or not character.isupper())


def step(text: str, start: int, source: str, *, stray: bool = False) -> dict:
    figures = {"value": 0.1 if stray else 0.9, "entropy": 0.0, "boundary": 0.5, "stray": stray}
    return {"start": start, "end": start + len(text), "source": source, **figures}


def steps_of(written: list[tuple[str, str]], start: int = 0, *, stray: bool = False) -> list[dict]:
    found = []
    for text, source in written:
        found.append(step(text, found[-1]["end"] if found else start, source))
    if stray:
        found[-1]["stray"] = True
    return found


def rewind(root: int, start: int, *discarded: str) -> dict:
    text = "".join(discarded)
    steps = steps_of([(part, "student") for part in discarded], start, stray=True)
    tokens = {"discarded_tokens": [*map(ord, text)], "discarded_text": text, "discarded_steps": steps}
    return {"breach_step": root + len(discarded) - 1, "root_step": root, **tokens}


def record(written: list[tuple[str, str]], *rewinds: dict, stop: str = "E") -> dict:
    text = "".join(part for part, _ in written)
    sources = [source for part, source in written for _ in part] + [written[-1][1]] * len(stop)
    found = {
        **{"id": "p", "sample": 0, "prompt": "why?", "prompt_tokens": [*map(ord, "Bwhy?A")]},
        **{"text": text, "tokens": [*map(ord, text + stop)], "sources": sources, "target_text": f"flawed, {text}"},
        **{"steps": steps_of(written), "rewinds": [*rewinds], "finish_reason": "stop", "correct": True},
    }
    assert faults(found, RECORD_SCHEMA) == []
    return found


def pairs(found: dict, *, templated: bool = False) -> list[tuple[str, str, str]]:
    lines = list(preference_pairs(found, decode, templated=templated))
    assert all(list(line) == ["prompt", "chosen", "rejected"] for line in lines)
    return [tuple(line.values()) for line in lines]


STUDENT, TEACHER = "student", "teacher"
SUFFIX = record([("aa.", STUDENT), ("b.", TEACHER), ("cc.", TEACHER), ("d", TEACHER)], rewind(1, 3, "xx.", "yyy."))


def test_a_chat_line_ends_in_the_target():
    asked = {"role": "user", "content": "why?"}
    told = {"role": "assistant", "content": "flawed, aa.b.cc.d"}
    assert chat(SUFFIX) == {"messages": [asked, told]}
    system = {"role": "system", "content": "Be brief."}
    assert chat(SUFFIX | {"prompt": [system, asked]}) == {"messages": [system, asked, told]}


def test_as_many_of_the_teachers_steps_as_were_discarded():
    assert pairs(SUFFIX) == [("why?aa.", "b.cc.", "xx.yyy.")]
    assert pairs(SUFFIX, templated=True) == [("Bwhy?Aaa.", "b.cc.", "xx.yyy.")]


def test_a_pair_for_each_rewind_up_to_the_students_next_step():
    """The teacher wrote two steps; the student's next one strayed at once, so the teacher wrote two more."""
    written = [("aa.", STUDENT), ("b.", TEACHER), ("cc.", TEACHER), ("d.", TEACHER), ("e.", TEACHER), ("f", STUDENT)]
    found = record(written, rewind(1, 3, "x.", "y.", "z."), rewind(3, 8, "w."))
    assert pairs(found) == [("why?aa.", "b.cc.", "x.y.z."), ("why?aa.b.cc.", "d.", "w.")]
    handed_back = record([("b.", TEACHER), ("f.", STUDENT), ("g", STUDENT)], rewind(0, 0, "x.", "y."))
    assert pairs(handed_back) == [("why?", "b.", "x.y.")]


def test_no_pair_where_nothing_was_put_right():
    assert pairs(record([("aa.", STUDENT)])) == []
    assert pairs(record([("aa.", STUDENT)], rewind(1, 3, "x."))) == [], "the teacher stopped there"
    assert pairs(record([("aa.", STUDENT), ("x.", TEACHER)], rewind(1, 3, "x."))) == [], "the same again"


def test_prompts_of_two_kinds_fit_no_parquet_column():
    pytest.importorskip("pyarrow")
    text = Prompt("1", "why?", None, "none")
    chats = Prompt("2", [{"role": "user", "content": "why?"}], None, "none")
    assert str(prompt_type([text])) == "string" and "role" in str(prompt_type([chats]))
    with pytest.raises(UserError, match=r"\.parquet"):
        prompt_type([text, chats])


@pytest.mark.parametrize(
    ("own", "part"),
    [
        (["sft=out.jsonl"], "overwrite each other"),
        (["preferences=out.jsonl.config.yaml"], "overwrite each other"),
        (["sft=no/such/sft.jsonl"], "sft=no/such/sft.jsonl"),
        (["preferences=."], "preferences=."),
        (["only_correct=yes"], "only_correct="),
    ],
)
def test_words_of_the_verb(own, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=part.replace(".", r"\.")):
        synthesize.work(["output=out.jsonl", *own])
    assert list(tmp_path.iterdir()) == []
