"""--help, --print-config, and the signals."""

import os
import signal
import subprocess
import sys

import pytest

from motab_jax import evaluate, export, report, synthesize, train
from motab_jax.config import UserError, load_config, valid_keys
from motab_jax.runtime import cli
from tests.verbs.helpers import spawn, words

VERBS = {"train": train, "synthesize": synthesize, "evaluate": evaluate, "export": export, "report": report}


def run_here(monkeypatch, capsys, arguments, work=lambda words: 0, **settings):
    """(exit status, stdout, stderr) of run_verb in this process."""
    monkeypatch.setattr(sys, "argv", ["verb", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.run_verb("Usage.", work, **settings)
    return caught.value.code, *capsys.readouterr()


def test_help_names_every_key():
    process = spawn("train", ["--help"])
    assert process.returncode == 0 and process.stderr == ""
    assert train.__doc__ is not None and process.stdout.startswith(train.__doc__.strip())
    assert "Options: --help --print-config --profile\n" in process.stdout
    sections = {key.rpartition(".")[0] for key in valid_keys()}
    assert all(f"\n  {key}=" in process.stdout for key in valid_keys() if key not in sections)
    assert "\n  monitor.eps0=0.2\n" in process.stdout and "\n  objective.student_loss.name=cross_e" in process.stdout


def test_the_printed_configuration_loads_back(tmp_path, pair):
    changes = words(pair, tmp_path, "objective.teacher_loss=jsd", "rollout.top_p=0.5", "data.fields.prompt=question")
    assert spawn("train", ["--print-config", "--profile", *changes]).returncode == 0
    process = spawn("synthesize", ["--print-config", *changes, "output=out.jsonl"])
    assert process.returncode == 0 and process.stderr == ""
    (tmp_path / "printed.yaml").write_text(process.stdout)
    assert load_config(tmp_path / "printed.yaml") == load_config(changes[0], changes[1:])


def test_without_a_file_it_is_the_quickstart_recipe(monkeypatch, capsys, tmp_path):
    status, out, _ = run_here(monkeypatch, capsys, ["--print-config", "run.steps=3"])
    (tmp_path / "printed.yaml").write_text(out)
    assert status == 0 and load_config(tmp_path / "printed.yaml") == cli.read_config(None, ["run.steps=3"])


def test_a_verb_without_configuration_lists_no_keys(monkeypatch, capsys):
    assert run_here(monkeypatch, capsys, ["-h"], configured=False) == (0, "Usage.\n", "")


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


@pytest.mark.parametrize("verb", VERBS)
def test_starting_a_verb_loads_no_model_library(verb):
    """transformers, torch and the trackers are loaded when they are used."""
    heavy = "{'transformers', 'torch', 'datasets', 'wandb', 'tensorboardX', 'trackio', 'math_verify'}"
    code = f"import sys, motab_jax.{verb}; sys.exit(', '.join({heavy} & sys.modules.keys()) or 0)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr


def test_the_first_signal_is_noted_and_the_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with cli.Signals() as signals:
        assert not signals.came
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.came and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "the second one ends the process"
    assert signal.getsignal(signal.SIGTERM) == before
