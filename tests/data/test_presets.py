"""Presets: what each sets, who wins, and what it makes of records with the real fields (from a fake of the hub)."""

import json

import pytest

from motab_jax.config import UserError, dump_config, load_config
from motab_jax.config.presets import BOXED, DATA, EVAL, LETTER
from motab_jax.data.prompts import load_prompts
from motab_jax.data.records import Prompt
from motab_jax.grading.grade import is_correct
from tests.data import fake_hub

ANSWERS = {
    ("data", "limo_v2"): ("1", "Find the maximum.", "3", "Okay, let me think."),
    ("data", "acereason_math"): ("1", "How many are there?", "5", None),
    ("data", "deepmath"): ("1", "Evaluate the limit.", "0", None),
    ("data", "gsm8k"): ("1", "How many clips did she sell?", "1,072", None),
    ("data", "math"): ("1", "What is the degree?", r"\frac{1}{2}", None),
    ("eval", "aime24"): ("60", "Every morning Ada walks.", "204", None),
    ("eval", "aime25"): ("0", "Find the sum of all bases.", "70", None),
    ("eval", "amc23"): ("0", "Cities A and B are 45 miles apart.", "27.0", None),
    ("eval", "math500"): ("test/precalculus/807.json", "Convert the point.", r"\left( 3, \frac{\pi}{2} \right)", None),
    ("eval", "gsm8k"): ("1", "How many clips did she sell?", "1,072", None),
}


def first_prompt(kind: str, name: str) -> Prompt:
    config = load_config(None, [f"{kind}.preset={name}"])
    section = config.data if kind == "data" else config.eval
    (prompt,) = load_prompts(section, split=section.split, count=None, seed=0)
    return prompt


def test_every_preset_is_tried():
    tried = {*ANSWERS, ("eval", "gpqa_diamond")}
    assert tried == {("data", name) for name in DATA} | {("eval", name) for name in EVAL}


@pytest.mark.parametrize(("kind", "name"), ANSWERS)
def test_a_preset_reads_the_records_of_its_set(kind, name, monkeypatch):
    fake_hub.install(monkeypatch, fake_hub.HUB)
    identity, question, answer, completion = ANSWERS[kind, name]
    prompt = first_prompt(kind, name)
    assert prompt == Prompt(identity, f"{question}\n{BOXED}", answer, "math", completion=completion)
    assert is_correct(prompt, rf"So it is \boxed{{{answer}}}.")


def test_gpqa_lists_its_choices_and_asks_for_a_letter(monkeypatch):
    fake_hub.install(monkeypatch, fake_hub.HUB)
    prompt = first_prompt("eval", "gpqa_diamond")
    question, _, *choices, instruction = str(prompt.prompt).split("\n")
    assert (prompt.id, question, instruction) == (fake_hub.GPQA["Record ID"], fake_hub.GPQA["Question"], LETTER)
    assert [choice[:2] for choice in choices] == ["A)", "B)", "C)", "D)"]
    assert f"{prompt.answer}) 10^-4 eV" in choices and prompt.grader == "choice"
    other = "A" if prompt.answer != "A" else "B"
    assert is_correct(prompt, rf"It is \boxed{{{prompt.answer}}}") and not is_correct(prompt, rf"\boxed{{{other}}}")


def test_the_usual_samples():
    for name in ("aime24", "aime25", "amc23"):
        section = load_config(None, [f"eval.preset={name}"]).eval
        assert (section.samples, section.temperature, section.top_p) == (8, 0.6, 0.95)
    assert load_config(None, ["eval.preset=gsm8k"]).eval.prompts == 1319, "all of it"


def test_the_users_keys_win(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": "1 #### 2", "note": "n"}))
    words = ["data.preset=gsm8k", "data.source=jsonl", f"data.path={path}", "data.fields.id=note", "data.instruction="]
    data = load_config(None, words).data
    assert load_prompts(data, split="train", count=None, seed=0) == [Prompt("n", "q", "2", "math")]
    config = load_config(None, ["eval.samples=4", "eval.preset=aime24"])
    assert config.eval.samples == 4 and config.eval.temperature == 0.6


def test_a_preset_on_the_command_line_is_not_mixed_with_the_files_data(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("eval: {preset: gpqa_diamond, samples: 5, batch_size: 7, fields: {id: other}}\nrun: {seed: 3}\n")
    section = load_config(path).eval
    assert (section.samples, section.fields["id"], section.grader) == (5, "other", "choice")
    words = load_config(path, ["eval.preset=math500"]).eval
    assert words == load_config(None, ["eval.preset=math500", "eval.batch_size=7"]).eval
    assert load_config(path, ["eval.preset=null"]).eval.samples == 5


@pytest.mark.parametrize("words", [["eval.preset=gpqa_diamond", "data.preset=math"], ["eval.preset=[aime24,gsm8k]"]])
def test_a_dump_loads_to_the_same(words, tmp_path):
    config = load_config(None, [*words, "eval.top_p=0.9"])
    (tmp_path / "dumped.yaml").write_text(dump_config(config))
    again = load_config(tmp_path / "dumped.yaml")
    assert again == config and again.eval.benchmarks() == config.eval.benchmarks()


def test_several_benchmarks_are_each_alone_under_the_users_keys():
    config = load_config(None, ["eval.preset=[aime24,gpqa_diamond]", "eval.samples=2", "eval.max_new_tokens=99"])
    for section, name in zip(config.eval.benchmarks(), ("aime24", "gpqa_diamond"), strict=True):
        assert section == load_config(None, [f"eval.preset={name}", "eval.samples=2", "eval.max_new_tokens=99"]).eval
    alone = load_config(None, ["eval.preset=aime24"]).eval
    assert alone.benchmarks() == [alone]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.preset=gsm9k"], r"data\.preset = 'gsm9k': no such preset; there are limo_v2"),
        (["eval.preset=limo_v2"], r"eval\.preset = 'limo_v2': no such preset; there are aime24"),
        (["eval.preset=[aime24,x]"], "no such preset"),
        (["eval.preset=[]"], "at least one"),
        (["eval.preset=[aime24,aime24]"], "once"),
        (["eval.preset=[aime24,aime25]", "eval.source=jsonl"], r"leave eval\.source out"),
        (["eval.preset=3"], r"eval\.preset"),
    ],
)
def test_wrong_presets(words, message):
    with pytest.raises(UserError, match=message):
        load_config(None, words)


def test_what_the_hub_does_not_have(monkeypatch):
    fake_hub.install(monkeypatch, {("openai/gsm8k", "main", "train"): [{"text": "nothing known"}]})
    with pytest.raises(UserError, match=r"hub:GAIR/LIMO-v2', split 'train': could not be loaded"):
        first_prompt("data", "limo_v2")
    with pytest.raises(UserError, match=r"hub:openai/gsm8k, row 1: the field 'question' is missing"):
        first_prompt("data", "gsm8k")


def test_columns_that_nobody_asked_for_are_not_read(monkeypatch):
    asked = []
    monkeypatch.setattr(fake_hub.FakeDataset, "select_columns", lambda self, names: asked.append(names) or self)
    fake_hub.install(monkeypatch, fake_hub.HUB)
    first_prompt("data", "deepmath")
    assert asked == [["question", "final_answer"]]
