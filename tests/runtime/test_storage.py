"""Places that a user names: paths of this machine in all their forms, and URLs that nothing here reads."""

from pathlib import Path

import pytest

from motab_jax import evaluate, export, plan, report, synthesize, train
from motab_jax.config import UserError, load_config
from motab_jax.models import load_pretrained
from motab_jax.runtime.paths import recipe_path
from motab_jax.runtime.storage import to_path

QUICKSTART = str(recipe_path("quickstart"))


@pytest.mark.parametrize(
    ("verb", "words", "named"),
    [
        *((train, [f"{key}=foo://x/y"], f"{key}=foo://x/y") for key in
          ("run.dir", "student.path", "teacher.path", "data.path", "eval.path")),
        (synthesize, ["output=Foo://x/y.jsonl"], "output="),
        (synthesize, ["output=y.jsonl", "sft=foo://x/y.jsonl"], "sft="),
        (synthesize, ["output=y.jsonl", "preferences=foo://x/y.jsonl"], "preferences="),
        (evaluate, ["output=foo://x/y.jsonl"], "output="),
        (export, ["foo://x/run", "out"], "run"),
        (export, ["run", "foo://x/out"], "out"),
        (report, ["foo://x/run"], "run"),
        (report, ["run", "svg=foo://x/y.svg"], "svg="),
        (plan, ["topology=v5e:2x2", "--json", "foo://x/y.json"], "foo://x/y.json"),
    ],
)  # fmt: skip
def test_an_unknown_scheme_is_refused_before_any_work(verb, words, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        verb.work(words)
    text = str(caught.value)
    assert "foo://" in text and named in text and "file://" in text and "\n" not in text and len(text) < 300, text
    assert list(tmp_path.iterdir()) == []


def test_the_library_refuses_it_too():
    with pytest.raises(UserError, match="foo://"):
        load_pretrained("foo://x/model")


def test_paths_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my runs"
    assert to_path("~/my runs/") == to_path(f"file://{tmp_path}/my%20runs") == to_path("my runs/").resolve() == folder
    assert to_path("gs/a:b") == Path("gs/a:b")
    config = load_config(None, [f"run.dir=file://{tmp_path}/my%20runs"])
    assert config.run.dir == str(folder)
    with pytest.raises(UserError, match="file:///runs"):
        load_config(None, ["run.dir=file://runs"])
