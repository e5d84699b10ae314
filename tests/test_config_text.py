"""Configurations as text: what is dumped loads to an equal tree, and an override may hold any text."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from motab_jax.config import Config, UserError, dump_config, load_config
from motab_jax.config.yaml_text import read_override, read_yaml, write_yaml

quick = settings(max_examples=40, derandomize=True, deadline=None)
# Any text, and more often than by chance what YAML, or a reader that interpolates, takes for something else.
TRICKY = [
    *(
        "null",
        "~",
        "yes",
        "1e-5",
        "0x1f",
        "1:30",
        "2026-11-27",
        ".inf",
        "- a",
        "a: b",
        "#",
        "a=b",
        "=",
        "<<",
        "%",
        "@",
        "`",
    ),
    *(
        "${a}",
        "\\${oc.env:HOME}",
        "'",
        '"',
        "|",
        ">-",
        "&a",
        "*a",
        "!!int 3",
        "---",
        "...",
        "[",
        "{a: b",
        "é",
        "数",
        "🙂",
    ),
    *("\n", "\n\n", ".\n\n", " x ", "\t", "\r\n", "\x85", "\u2028", "\ufeff", "\x00", "\x1b[0m"),
]
texts = st.one_of(st.sampled_from(TRICKY), st.lists(st.sampled_from(TRICKY), max_size=4).map("".join), st.text())
scalars = st.one_of(texts, st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False))


@pytest.fixture(scope="module")
def reload(tmp_path_factory):
    """The configuration read back from its dump."""
    path = tmp_path_factory.mktemp("dumps") / "config.yaml"

    def of(config: Config) -> Config:
        path.write_text(dump_config(config), encoding="utf-8")
        return load_config(path)

    return of


@quick
@given(
    name=texts,
    fields=st.dictionaries(texts, texts, max_size=3),
    delimiter=texts.filter(bool),
    rate=st.floats(1e-30, 1e3),
)
def test_a_dump_loads_to_an_equal_tree_whatever_its_strings(reload, name, fields, delimiter, rate):
    config = Config.model_validate(
        {
            "run": {"name": name},
            "data": {"fields": fields, "instruction": name},
            "monitor": {"step_delimiter": delimiter},
            "optimizer": {"learning_rate": rate},
        }
    )
    assert reload(config) == config


@quick
@given(st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)))
def test_yaml_round_trip(value):
    assert read_yaml(write_yaml(value)) == value


@quick
@given(texts)
def test_an_override_holds_any_text_that_is_quoted(text):
    quoted = yaml.safe_dump(text, default_style='"', width=10**9)
    assert load_config(None, [f"objective.transition_text={quoted}"]).objective.transition_text == text
    if text.isprintable():
        assert read_override("'" + text.replace("'", "''") + "'") == text


@quick
@given(st.sampled_from(["a", "Step ", "=", ": ", "- ", "#", "5", "null", "é", "$"]), texts)
def test_plain_text_with_a_line_end_is_taken_as_it_is(before, after):
    text = before + "\n" + after
    assert load_config(None, [f"monitor.step_delimiter={text}"]).monitor.step_delimiter == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("\n\n", "\n\n"),
        (".\n\n", ".\n\n"),
        ("Answer: yes", "Answer: yes"),
        ("a = b # c", "a = b # c"),
        (" padded ", " padded "),
        ("${HOME}", "${HOME}"),
        ("[1, 2", "[1, 2"),
        ("!!python/name:os.system", "!!python/name:os.system"),
        ("", None),
        ("null", None),
        ("true", True),
        ("5", 5),
        ("1e-5", 1e-5),
        ("0812", "0812"),
        ("08.5", 8.5),
        ("'5'", "5"),
        ("[a, {b: 2}]", ["a", {"b": 2}]),
    ],
)
def test_what_an_override_means(text, value):
    assert read_override(text) == value and type(read_override(text)) is type(value)


def test_overrides_go_over_the_file_key_by_key(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("data: {fields: {prompt: q, answer: a}}\nobjective: {student_loss: {name: jsd, weight: 2}}\n")
    config = load_config(path, ["data.fields.answer=b", "data.fields={id: n}", "objective.student_loss.weight=3"])
    assert config.data.fields == {"prompt": "q", "answer": "b", "id": "n"}
    assert (config.objective.student_loss.name, config.objective.student_loss.weight) == ("jsd", 3)
    assert load_config(path, ["objective.student_loss=masked"]).objective.student_loss.weight == 1


def test_a_file_is_read_without_interpolation(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    path = tmp_path / "my.yaml"
    path.write_text("run: {name: '${oc.env:SECRET}'}\ndata: {split: '${run.name}'}\n")
    config = load_config(path)
    assert (config.run.name, config.data.split) == ("${oc.env:SECRET}", "${run.name}")


def test_a_mistake_is_blamed_on_where_it_is(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("run: {keep: 0}\n")
    with pytest.raises(UserError) as caught:
        load_config(path, ["run.steps=3", "monitor.eps0=a\nb", "optimizer={clip: -1}"])
    message = str(caught.value)
    assert "\n" not in message
    assert f"{path}: run.keep = 0" in message
    assert r"'monitor.eps0=a\nb': monitor.eps0" in message and "'optimizer={clip: -1}': optimizer.clip" in message
    with pytest.raises(UserError) as caught:
        load_config(None, ["backtrack.max_interventions=3"])
    assert "override" in str(caught.value) and "backtrack" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "run: {steps: 1}\nrun: {seed: 2}\n",
        "run: {keep: 1, keep: 2}\n",
        "[" * 5000,
        "a: 1\n---\n",
        'run: {name: "\\ud83d"}',
    ],
)
def test_a_file_that_is_not_one_tree(text, tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
