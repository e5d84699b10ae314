"""What a run leaves behind: the exported student is the trained one, and other verbs and libraries read it."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import AutoConfig, AutoTokenizer

from motab_jax import evaluate, export, report
from motab_jax.config import load_config
from motab_jax.models.hf.pretrained import load_pretrained
from motab_jax.models.transformer import forward
from motab_jax.runtime.checkpoint import Checkpointer
from motab_jax.session.export import export_student
from motab_jax.session.session import open_session
from motab_jax.training.programs import make_programs
from tests.data import fake_hub
from tests.verbs.helpers import POSITIONS, STEPS, read_lines, words


@pytest.fixture(scope="module")
def final_params(finished):
    """The parameters of the run's last checkpoint."""
    config = load_config(finished[0] / "config.yaml")
    state = make_programs(open_session(config)).state
    with Checkpointer(finished[0] / "checkpoints", config.run.keep) as checkpoints:
        state, _ = checkpoints.restore(STEPS, state)
    return jax.device_get(state.params)


def test_the_export_gives_the_logits_of_the_run(finished, final_params, pair):
    params, config = load_pretrained(finished[0] / "export")
    tokens = jnp.arange(24, dtype=jnp.int32).reshape(2, 12) % config.vocab_size
    logits = forward(params, config, tokens)
    np.testing.assert_array_equal(logits, forward(jax.tree.map(jnp.asarray, final_params), config, tokens))
    first, _ = load_pretrained(pair / "student")
    assert np.abs(logits - forward(first, config, tokens)).max() > 1e-2, "training changed the student"


def test_the_verb_writes_the_same_student(finished, tmp_path, capsys):
    assert export.work([str(finished[0]), str(tmp_path / "out")]) == 0
    assert f"step {STEPS}" in capsys.readouterr().out
    for name in ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (finished[0] / "export" / name).read_bytes(), name


def test_an_earlier_checkpoint_is_another_student(finished, tmp_path):
    assert export.work([str(finished[0]), str(tmp_path / "out"), "step=20"]) == 0
    (weights,) = (tmp_path / "out").glob("*.safetensors")
    assert weights.read_bytes() != (finished[0] / "export" / "model.safetensors").read_bytes()


def test_transformers_reads_the_folder(finished, pair):
    folder = finished[0] / "export"
    config = AutoConfig.from_pretrained(folder)
    assert (config.model_type, config.hidden_size, config.max_position_embeddings) == ("qwen3", 32, POSITIONS)
    ours, theirs = AutoTokenizer.from_pretrained(pair / "student"), AutoTokenizer.from_pretrained(folder)
    assert theirs.encode("12+3-4=") == ours.encode("12+3-4=") and theirs.eos_token_id == ours.eos_token_id
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] in (
        ours.eos_token_id,
        [ours.eos_token_id],
    )


def test_the_export_has_the_students_own_files_and_all_stop_tokens(pair, tmp_path):
    """The tokenizer's files byte for byte; the end token that the teacher taught beside the student's own."""
    source = shutil.copytree(pair / "student", tmp_path / "source")
    teacher = shutil.copytree(pair / "teacher", tmp_path / "teacher")
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, "temperature": 0.6}))
    (source / "config.json").write_text(
        (source / "config.json").read_text().replace('"eos_token_id": 1', '"eos_token_id": [1, 3]')
    )
    (teacher / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 1]}))
    changes = (f"student.path={source}", f"teacher.path={teacher}")
    session = open_session(load_config(None, words(pair, tmp_path, *changes)[1:]), teacher=False)
    export_student(session, session.student.params, tmp_path / "out")
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    assert all((tmp_path / "out" / name).read_bytes() == (source / name).read_bytes() for name in names)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [1, 3, 4], "temperature": 0.6}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == [1, 3, 4]
    # A student without a template gets the one of its training.
    (source / "chat_template.jinja").unlink()
    (teacher / "chat_template.jinja").write_text("{{ messages[0].content }}=")
    changes = (*changes, "data.chat_template=true")
    session = open_session(load_config(None, words(pair, tmp_path, *changes)[1:]), teacher=False)
    export_student(session, session.student.params, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == "{{ messages[0].content }}="


def test_a_student_from_the_hub_keeps_its_generation_config(pair, tmp_path, monkeypatch):
    """Sampling settings and token ids of the source reach the export, whether it is a folder or a hub id."""
    source = shutil.copytree(pair / "student", tmp_path / "source")
    stops = json.loads((source / "generation_config.json").read_text())
    generation = {**stops, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "pad_token_id": 0}
    (source / "generation_config.json").write_text(json.dumps(generation))
    fake_hub.install_models(monkeypatch, {"someone/student": source}, tmp_path / "cache")
    for name, path in (("folder", str(source)), ("hub", "someone/student")):
        session = open_session(load_config(None, words(pair, tmp_path, f"student.path={path}")[1:]), teacher=False)
        export_student(session, session.student.params, tmp_path / name)
        assert json.loads((tmp_path / name / "generation_config.json").read_text()) == generation
        assert json.loads((tmp_path / name / "config.json").read_text())["pad_token_id"] == 0


def test_evaluating_the_export_gives_the_figures_of_the_summary(finished, pair, tmp_path, capsys):
    run, output = finished[0], tmp_path / "problems.jsonl"
    assert evaluate.work([*words(pair, tmp_path, f"student.path={run / 'export'}"), f"output={output}"]) == 0
    said = capsys.readouterr()
    figures = json.loads(said.out)
    after = json.loads((run / "summary.json").read_text())["after"]
    assert figures.keys() == after.keys()
    assert {k: v for k, v in figures.items() if k != "reverse_kl"} == {
        k: v for k, v in after.items() if k != "reverse_kl"
    }
    assert figures["reverse_kl"] == pytest.approx(after["reverse_kl"], abs=1e-5)
    problems = read_lines(output)
    assert len(problems) == 12
    assert figures["accuracy"] == sum(problem["correct"] for problem in problems) / 12
    assert f"{100 * figures['accuracy']:.1f}% ± {100 * figures['stderr']:.1f}" in said.err, "the table"


def test_a_run_evaluates_on_its_way_as_it_does_at_its_end(finished, pair, tmp_path, capsys):
    """The student of step 20, exported and evaluated alone, has the figures that the run wrote at step 20."""
    assert export.work([str(finished[0]), str(tmp_path / "out"), "step=20"]) == 0
    capsys.readouterr()
    assert evaluate.work(words(pair, tmp_path, f"student.path={tmp_path / 'out'}")) == 0
    alone = json.loads(capsys.readouterr().out)
    (during,) = (line["eval"] for line in read_lines(finished[0] / "metrics.jsonl") if line["step"] == 20)
    assert alone.keys() == during.keys()
    assert alone.pop("reverse_kl") == pytest.approx(during.pop("reverse_kl"), abs=1e-5)
    assert alone == during


def test_the_report_draws_a_picture(finished, tmp_path, capsys):
    assert report.work([str(finished[0]), f"svg={tmp_path / 'run.svg'}", "count=2"]) == 0
    assert "Held-out metrics on 12 prompts" in capsys.readouterr().out
    assert (tmp_path / "run.svg").read_text().startswith("<svg")
