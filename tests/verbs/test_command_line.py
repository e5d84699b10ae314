"""--help, --print-config, the verbs' own words, exit statuses and signals."""

import os
import signal
import subprocess
import sys

import pytest

import motab_jax.train as train
from motab_jax import evaluate, export, plan, report, synthesize
from motab_jax.config import UserError, load_config, valid_keys
from motab_jax.runtime import cli
from motab_jax.runtime.paths import recipe_path
from tests.verbs.helpers import words

CONFIGURED = [train, synthesize, evaluate, plan]
VERBS = [*CONFIGURED, export, report]
VERB_NAMES = [verb.__name__.rpartition(".")[2] for verb in VERBS]
each_verb = pytest.mark.parametrize("verb", VERBS, ids=VERB_NAMES)
each_configured = pytest.mark.parametrize("verb", CONFIGURED, ids=VERB_NAMES[: len(CONFIGURED)])


def run_here(monkeypatch, capsys, arguments, work=train.work):
    """(exit status, stdout, stderr) of run_verb in this process."""
    monkeypatch.setattr(sys, "argv", ["verb", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.run_verb(work)
    return caught.value.code, *capsys.readouterr()


@each_verb
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_names_the_words_and_every_key(verb, option, monkeypatch, capsys):
    """Even where a word that is required is missing."""
    status, out, err = run_here(monkeypatch, capsys, [option], verb.work)
    assert status == 0 and err == "" and f"motab_jax.{verb.__name__.rpartition('.')[2]}" in out
    keys = valid_keys()
    sections = {key.rpartition(".")[0] for key in keys}
    listed = [key for key in keys if key not in sections and f"\n  {key}=" in out]
    assert listed == ([key for key in keys if key not in sections] if verb in CONFIGURED else [])


def test_help_names_the_verbs_own_words(capsys):
    wanted = {
        train: ["--profile"],
        synthesize: ["output=", "sft=", "preferences=", "only_correct="],
        evaluate: ["output="],
        plan: ["topology=", "mesh=", "strayed=", "largest=", "--json "],
        export: ["step="],
        report: ["svg=", "count="],
    }
    for verb, own in wanted.items():
        with pytest.raises(SystemExit):
            verb.work(["--help"])
        out = capsys.readouterr().out
        assert [word for word in own if f"\n  {word}" not in out] == []


@each_configured
def test_the_printed_configuration_loads_back(verb, tmp_path, capsys):
    changes = words(
        tmp_path, tmp_path, "objective.teacher_loss=jsd", "rollout.top_p=0.5", "monitor.step_delimiter=\n\n"
    )
    with pytest.raises(SystemExit) as caught:
        verb.work([changes[0], "--print-config", *changes[1:]])
    assert caught.value.code == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    config = load_config(tmp_path / "printed.yaml")
    assert config == load_config(changes[0], changes[1:]) and config.monitor.step_delimiter == "\n\n"


def test_without_a_file_it_is_the_quickstart_recipe():
    given = train.WORDS.parse(["--profile", "run.steps=3"])
    assert given.profile and given.config == load_config(recipe_path("quickstart"), ["run.steps=3"])


def test_a_lone_dash_pair_is_a_mistake_and_an_empty_word_is_none():
    with pytest.raises(UserError, match="'--'"):
        train.WORDS.parse(["--", "run.steps=3"])
    assert train.WORDS.parse(["", "run.steps=3"]).config.run.steps == 3


def test_a_verbs_own_words_are_no_overrides():
    given = synthesize.WORDS.parse(["output=a=b.jsonl", "run.steps=3", "only_correct=true", "run.name=output=x"])
    assert (str(given.output), given.sft, given.only_correct) == ("a=b.jsonl", None, True)
    assert (given.config.run.steps, given.config.run.name) == (3, "output=x")
    given = export.WORDS.parse(["step=3", "run", "out"])
    assert (str(given.run), str(given.out), given.step) == ("run", "out", 3)
    given = report.WORDS.parse(["run"])
    assert (str(given.run), given.svg, given.count) == ("run", None, 3)


@pytest.mark.parametrize(
    ("verb", "given", "named"),
    [
        (train, ["--steps"], "--steps"),
        (train, ["--prof"], "--prof"),
        (train, ["a.yaml", "b.yaml"], "b.yaml"),
        (synthesize, ["only_correct=yes", "output=x"], "only_correct="),
        (synthesize, [], "output="),
        (plan, ["--json"], "--json"),
        (plan, ["topology=v5e:2x2", "largest=no"], "largest="),
        (export, ["run"], "OUT"),
        (export, ["run", "out", "more"], "more"),
        (export, ["run", "out", "step=last"], "step="),
        (export, ["run", "out", "steps=3"], "steps=3"),
        (report, [], "RUN"),
        (report, ["run", "count=-1"], "count="),
        (report, ["run", "--print-config"], "--print-config"),
    ],
)
def test_a_mistake_in_the_words_is_one_line_and_status_2(verb, given, named, monkeypatch, capsys):
    status, out, err = run_here(monkeypatch, capsys, given, verb.work)
    assert (status, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1 and named in err


def test_exit_statuses(monkeypatch, capsys):
    def mistaken(_):
        raise UserError("the file\nis gone")

    def interrupted(_):
        raise KeyboardInterrupt

    assert run_here(monkeypatch, capsys, [], mistaken) == (2, "", "error: the file is gone\n")
    assert run_here(monkeypatch, capsys, [], lambda _: cli.STOPPED) == (75, "", "")
    assert run_here(monkeypatch, capsys, [], lambda _: None) == (0, "", "")
    assert run_here(monkeypatch, capsys, [], interrupted) == (130, "", "interrupted\n")
    assert run_here(monkeypatch, capsys, ["--print-config", "run.steps=x"])[0] == 2


def test_starting_the_verbs_loads_no_model_library():
    """transformers, torch and the trackers are loaded when they are used."""
    heavy = "{'transformers', 'torch', 'datasets', 'wandb', 'tensorboardX', 'trackio', 'math_verify'}"
    imports = ", ".join(f"motab_jax.{name}" for name in VERB_NAMES)
    code = f"import sys, {imports}; sys.exit(', '.join({heavy} & sys.modules.keys()) or 0)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr


def test_the_first_signal_is_noted_and_the_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with cli.Signals() as signals:
        assert not signals.received
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, (
            "the second one ends the process"
        )
    assert signal.getsignal(signal.SIGTERM) == before
