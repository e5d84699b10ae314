"""A user's mistakes: each is one sentence that names the file, key or line, said before the first step."""

import json
import shutil

import jax
import pytest

import motab_jax.train as train
from motab_jax import evaluate, export, report, synthesize
from motab_jax.config import UserError
from motab_jax.data.tokenizer import load_tokenizer
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.hf.pretrained import save_pretrained
from motab_jax.models.transformer import init
from tests.verbs.helpers import STEPS, spawn, without_clocks, words

GOOD = '{"prompt": "1+2="}\n'


def complaint(work, arguments: list[str]) -> str:
    """The UserError's text: one line, for the status 2."""
    with pytest.raises(UserError) as caught:
        work(arguments)
    text = str(caught.value)
    assert caught.value.status == 2 and "\n" not in text and 20 < len(text) < 700, text
    return text


def check(pair, runs, changes: list[str], *parts: str) -> None:
    """Training with these words fails with all the parts in its message, and no step is done."""
    text = complaint(train.work, words(pair, runs, *changes))
    assert all(part in text for part in parts), text
    assert not (runs / "tiny" / "metrics.jsonl").exists() and not (runs / "tiny" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("rollout.bath_size=8", ["rollout.bath_size", "rollout.batch_size"]),
        ("optimiser.learning_rate=1", ["optimiser", "optimizer"]),
        ("rollout.top_p=1.5", ["rollout.top_p", "1.5"]),
        ("run.steps=-1", ["run.steps", "-1"]),
        ("run.steps=many", ["run.steps", "many"]),
        ("optimizer.learning_rate=nan", ["optimizer.learning_rate", "nan"]),
        ("rollout.samples_per_prompt=3", ["rollout.batch_size=8", "rollout.samples_per_prompt=3"]),
        ("optimizer.accumulate=3", ["rollout.batch_size=8", "optimizer.accumulate=3"]),
        ("objective.student_loss=kl", ["objective.student_loss", "kl", "reverse_kl"]),
        ("objective.teacher_loss=minillm", ["teacher_loss=minillm", "student_loss"]),
        ("backtrack.max_interventions=2", ["max_interventions"]),
        ("data.source=csv", ["data.source", "csv", "jsonl"]),
        ("data.source=jsonl", ["data.path"]),
        ("data.max_prompt_tokens=8", ["arithmetic-train-", "data.max_prompt_tokens=8"]),
        ("data.max_prompt_tokens=500", ["data.max_prompt_tokens", "rollout.max_new_tokens", "524", "512"]),
        ("eval.max_new_tokens=500", ["data.max_prompt_tokens", "eval.max_new_tokens", "548", "512"]),
        ("eval.source=nothing", ["nothing", "jsonl"]),
        ("eval.preset=[math500,gsm8k]", ["eval.preset"]),
        ("mesh.tensor=3", ["mesh.tensor=3", "8"]),
        ("mesh.data=4", ["mesh.data=4", "8"]),
        ("mesh.fsdp=0", ["mesh.fsdp=0"]),
        ("run.dir=/proc/motab", ["/proc/motab/tiny", "run.dir"]),
        ("stray", ["stray"]),
        ("--steps", ["--steps", "--help"]),
        ("run.steps", ["run.steps"]),
        ("=5", ["=5"]),
        ("rollout=5", ["rollout"]),
        ("student.init_from_teacher.layers=[0]", ["student.path", "student.init_from_teacher"]),
        ("objective.target=stitched objective.transition_text=Hélas", ["objective.transition_text", "Hlas"]),
    ],
)
def test_words(change, parts, pair, tmp_path):
    check(pair, tmp_path, change.split(), *parts)


def test_a_corrected_command_may_use_the_folder_of_the_wrong_one(pair, tmp_path):
    check(pair, tmp_path, ["student.path=/nowhere/at/all"], "/nowhere/at/all")
    check(pair, tmp_path, ["data.max_prompt_tokens=8"], "data.max_prompt_tokens")


def test_a_teacher_without_a_student(pair, tmp_path):
    text = complaint(train.work, [f"teacher.path={pair / 'teacher'}", f"run.dir={tmp_path}"])
    assert "student.path" in text


def test_layers_that_the_teacher_does_not_have(pair, tmp_path):
    changes = ["student.path=null", "student.init_from_teacher.layers=[0,7]"]
    check(pair, tmp_path, changes, "student.init_from_teacher", "7", "0..2")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (None, []),
        ("run: [1, 2\n", ["line"]),
        ("run:\n\tsteps: 3\n", ["line 2"]),
        ("- run\n", []),
        ("run: {stepz: 3}\n", ["run.stepz", "run.steps"]),
        ("rollout: {top_p: high}\n", ["rollout.top_p", "high"]),
        ("run: {keep: 1, keep: 2}\n", ["keep"]),
        (b"\xff\xfe\x00", []),
    ],
)
def test_configuration_files(text, parts, pair, tmp_path):
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    said = complaint(train.work, [str(path), *words(pair, tmp_path)[1:]])
    assert all(part in said for part in [*parts, str(path)]), said


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (GOOD + '{"prompt": "1+\n', ["line 2"]),
        (GOOD + "\n" + '{"question": "1+2="}\n', ["line 3", "prompt"]),
        (GOOD + "[1]\n", ["line 2"]),
        (GOOD + '{"prompt": 5}\n', ["line 2", "prompt"]),
        (GOOD + '{"prompt": " "}\n', ["line 2", "prompt"]),
        (GOOD + json.dumps({"id": "long", "prompt": "1+" * 40 + "1="}), ["long", "83", "data.max_prompt_tokens=48"]),
        (b'{"prompt": "\xff"}\n', ["line 1"]),
        ("\n\n", []),
        ("", []),
        (None, ["data.path"]),
    ],
)
def test_prompt_files(text, parts, pair, tmp_path):
    path = tmp_path / "prompts.jsonl"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    check(pair, tmp_path, ["data.source=jsonl", f"data.path={path}"], str(path), *parts)


def test_a_field_that_no_line_has(pair, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(GOOD)
    changes = ["data.source=jsonl", f"data.path={path}", "data.fields.prompt=question"]
    check(pair, tmp_path, changes, str(path), "line 1", "'question'", "data.fields.prompt")
    check(pair, tmp_path, [*changes[:2], "data.fields.promt=question"], "data.fields", "promt")


@pytest.fixture
def student(pair, tmp_path):
    """A copy of the student, to be damaged."""
    return shutil.copytree(pair / "student", tmp_path / "damaged")


def halve(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def stretch(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 3}))
    return "missing", "layers.2"


def rename(folder):
    path = folder / "config.json"
    raw = json.loads(path.read_text()) | {"architectures": ["MambaForCausalLM"], "model_type": "mamba"}
    path.write_text(json.dumps(raw))
    return "mamba"


def drop(name):
    def damage(folder):
        (folder / name).unlink()
        return folder

    return damage


def spoil(name):
    def damage(folder):
        (folder / name).write_text('{"a": ')
        return folder

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        *(halve, stretch, rename),
        *map(drop, ("config.json", "model.safetensors", "tokenizer.json")),
        *map(spoil, ("config.json", "tokenizer.json", "generation_config.json")),
    ],
    ids=lambda damage: damage.__name__,
)
def test_damaged_models(damage, student, pair, tmp_path):
    parts = damage(student)
    parts = parts if isinstance(parts, tuple) else (parts,)
    check(pair, tmp_path, [f"student.path={student}"], *map(str, parts))


def test_different_tokenizers(student, pair, tmp_path):
    path = student / "tokenizer.json"
    path.write_text(path.read_text().replace('"7"', '"@"', 1))
    check(pair, tmp_path, [f"student.path={student}"], "tokenizer", "'7'", "'@'")


def test_fewer_embeddings_than_tokens(student, pair, tmp_path):
    tokenizer = load_tokenizer(student)
    shape = ModelConfig("qwen3", len(tokenizer) - 1, 16, 32, 1, 2, 1, 8, 512, qk_norm=True, tied=True)
    folder = tmp_path / "small"
    save_pretrained(folder, init(shape, jax.random.key(0)), shape, tokenizer=tokenizer)
    check(pair, tmp_path, [f"student.path={folder}"], str(folder), "embeddings", "tokens")


def test_a_file_where_the_run_folder_should_be(pair, tmp_path):
    (tmp_path / "runs").write_text("")
    text = complaint(train.work, words(pair, tmp_path / "runs"))
    assert str(tmp_path / "runs") in text and "run.dir" in text


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run, to be damaged."""
    return shutil.copytree(finished[0], tmp_path / "tiny")


def test_another_configuration_in_the_same_folder(run, pair):
    text = complaint(train.work, words(pair, run.parent, "optimizer.learning_rate=1", "rollout.top_p=0.5"))
    assert all(part in text for part in (str(run), "optimizer.learning_rate", "rollout.top_p", "run.name"))


def test_a_damaged_checkpoint(run, pair):
    before = without_clocks(run / "metrics.jsonl")
    for path in (run / "checkpoints" / str(STEPS) / "state").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    process = spawn("train", words(pair, run.parent))
    assert process.returncode == 0, process.stderr
    said = " ".join(process.stdout.split())
    assert str(run / "checkpoints" / str(STEPS)) in said and "going back to step 20" in said
    assert (run / "damaged" / str(STEPS)).is_dir() and without_clocks(run / "metrics.jsonl") == before


@pytest.mark.long
def test_prompts_that_changed_since_the_run_was_saved(pair, tmp_path):
    """As many as before, with other texts: the run would be another one."""
    file = tmp_path / "problems.jsonl"
    lines = [{"prompt": f"1+{n}=", "answer": str(n + 1)} for n in range(8)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words_ = words(pair, tmp_path, "data.source=jsonl", f"data.path={file}", "run.steps=2", "run.eval_every=0",
                   "run.save_every=1", "eval.prompts=2", "data.count=null", "eval.source=arithmetic")  # fmt: skip
    assert spawn("train", words_).returncode == 0
    file.write_text(file.read_text().replace('"1+3="', '"2+2="'))
    text = complaint(train.work, [*words_])
    assert str(tmp_path / "tiny") in text and "the training prompts changed" in text and "run.name" in text


def test_a_damaged_metrics_log(run, pair):
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{oops", *lines[2:]]) + "\n")
    text = complaint(train.work, words(pair, run.parent))
    assert f"{path}, line 2" in text


def test_export_of_what_is_not_a_run(finished, tmp_path):
    run, file = str(finished[0]), tmp_path / "file"
    file.write_text("")
    assert f"{tmp_path}: no config.yaml" in complaint(export.work, [str(tmp_path), str(tmp_path / "out")])
    assert str(tmp_path) in complaint(export.work, [run, str(tmp_path)]), "it is not empty"
    assert str(file) in complaint(export.work, [run, str(file)])
    assert "999" in complaint(export.work, [run, str(tmp_path / "out"), "step=999"])
    assert not (tmp_path / "out").exists()


def test_report_of_what_is_not_a_run(finished, tmp_path):
    assert f"{tmp_path}: no summary.json" in complaint(report.work, [str(tmp_path)])
    assert f"svg={tmp_path}/no/run.svg" in complaint(report.work, [str(finished[0]), f"svg={tmp_path}/no/run.svg"])


@pytest.mark.parametrize("verb", [synthesize, evaluate])
def test_output_that_can_not_be_written(verb, pair, tmp_path):
    text = complaint(verb.work, words(pair, tmp_path, f"output={tmp_path}/no/out.jsonl"))
    assert f"output={tmp_path}/no/out.jsonl" in text


def test_evaluating_without_a_held_out_split(pair, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(GOOD)
    text = complaint(evaluate.work, words(pair, tmp_path, "data.source=jsonl", f"data.path={path}"))
    assert "eval.source" in text


def test_the_command_line_says_one_line_and_leaves_with_2(pair, tmp_path):
    process = spawn("synthesize", [*words(pair, tmp_path, "student.path=/no/such"), f"output={tmp_path / 'out.jsonl'}"])
    assert process.returncode == 2 and process.stdout == ""
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1 and "/no/such" in process.stderr
