"""Methods whose text the student does not write: who writes, what is compiled, what the loss is, and resuming."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from motab_jax.config import load_config
from motab_jax.data.prompts import PromptStream
from motab_jax.data.tasks import arithmetic
from motab_jax.distill import cross_entropy, jsd
from motab_jax.models.hf.pretrained import load_pretrained
from motab_jax.models.transformer import forward
from motab_jax.session.prompts import training_prompts
from motab_jax.session.session import needs_teacher, open_session
from motab_jax.training.batches import is_on_policy, training_completions, with_steps
from tests.verbs.helpers import (
    ROOT,
    SPAWN_LIMIT,
    environment,
    read_lines,
    tokenizer_of,
    without_clocks,
    words,
)
from tests.verbs.test_bad_input import check

STEPS, ROWS, ROOM, PROMPTS = 3, 8, 32, 12
SEED = 2  # with which the student writes in the third of the first four steps, and only there
ON_POLICY = [False, False, True, False]
# The texts of the tiny pair are short and its students poor: what would seldom happen is made to.
RIVALS = {
    "opd": (),
    "opd_sampled": (),
    "skd": ("monitor.top_k=5",),
    "skd_step": (),
    "minillm": (),
    "adaswitch": ("monitor.eps0=1.5",),
    "kat": ("monitor.step_tokens=2", "monitor.patience=1", "monitor.rate=0.5", "monitor.pace=1.0"),
    "akl": (),
    "eopd": (),
}
PROBLEMS = arithmetic.problems(PROMPTS, seed=5, split="train", min_terms=2, max_terms=4)
TRAIN_ALL = "import json, sys; from motab_jax import train; [train.work(words) for words in json.load(sys.stdin)]"


def solved(folder, count=PROMPTS):
    """The words for a file of short problems of which `count` are solved; with nothing held out."""
    path = folder / "solved.jsonl"
    said = [arithmetic.solution(problem) if n < count else None for n, problem in enumerate(PROBLEMS)]
    rows = [{"id": f"sum-{n}", "prompt": PROBLEMS[n].prompt, "said": text} for n, text in enumerate(said)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["data.source=jsonl", f"data.path={path}", "data.fields.completion=said"]


def method_words(method, pair, folder, *changes):
    """The words of a few steps of a method's own recipe on the tiny pair, in folder/method."""
    [_, *rest] = words(pair, folder, "rollout.samples_per_prompt=1", f"rollout.max_new_tokens={ROOM}")
    rest += ["data.count=null", f"run.name={method}"]
    rest += [f"run.seed={SEED}", f"run.steps={STEPS}", "run.save_every=2", "run.sample_every=1"]
    rest += ["eval.reverse_kl=false", *solved(folder)]
    return [str(ROOT / "configs" / f"{method}.yaml"), *rest, *changes]


@pytest.fixture(scope="module")
def runs(pair, tmp_path_factory):
    """The folder of a run of each method, `gkd` in one go and `gkd_again` in two; all in one process."""
    folder = tmp_path_factory.mktemp("methods")
    in_two = ["optimizer.schedule=constant", "optimizer.warmup_ratio=0"]  # run.steps changes no learning rate
    again = method_words("gkd", pair, folder, *in_two, "run.name=gkd_again")
    commands = [
        method_words("sft", pair, folder, "run.epochs=2", "run.steps=99"),
        method_words("seqkd", pair, folder),
        method_words("gkd", pair, folder, *in_two, "run.steps=4"),
        [*again, "run.steps=2"],
        [*again, "run.steps=4"],
        *(method_words(method, pair, folder, *changes) for method, changes in RIVALS.items()),
    ]
    process = subprocess.run(
        [sys.executable, "-c", TRAIN_ALL], input=json.dumps(commands), env=environment(),
        capture_output=True, text=True, timeout=SPAWN_LIMIT,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return folder


def figures(run):
    """(metrics, summary, sample records) of a run."""
    return read_lines(run / "metrics.jsonl"), json.loads((run / "summary.json").read_text()), samples(run)


def samples(run):
    """The sample trajectories."""
    return read_lines(run / "trajectories.jsonl")


def first_batch(pair):
    """The first step's prompts and texts: token ids, how many of them are the prompt's."""
    tokenizer = tokenizer_of(pair / "teacher")
    found = []
    for index in next(PromptStream(PROMPTS, ROWS, 0)):
        prompt = tokenizer.encode(PROBLEMS[index].prompt)
        text = tokenizer.encode(arithmetic.solution(PROBLEMS[index]), add_special_tokens=False)
        found.append(([*prompt, *text, tokenizer.eos_token_id], len(prompt)))
    return found


def logits_of(model, batch):
    """Logits f32[N,V] that predict the batch's text tokens, from a plain pass over each padded row; and the tokens."""
    width = max(len(ids) for ids, _ in batch)
    tokens, positions = np.zeros((ROWS, width), np.int32), np.full((ROWS, width), -1, np.int32)
    for row, (ids, _) in enumerate(batch):
        tokens[row, : len(ids)], positions[row, : len(ids)] = ids, np.arange(len(ids))
    logits = forward(*load_pretrained(model, "float32"), jnp.asarray(tokens), jnp.asarray(positions))
    parts = [logits[row, size - 1 : len(ids) - 1] for row, (ids, size) in enumerate(batch)]
    return jnp.concatenate(parts), jnp.asarray([token for ids, size in batch for token in ids[size:]])


def test_sft_minimises_the_cross_entropy_of_the_given_text(runs, pair):
    metrics, summary, records = figures(runs / "sft")
    logits, tokens = logits_of(pair / "student", first_batch(pair))
    assert metrics[0]["loss"] == pytest.approx(float(jnp.mean(cross_entropy(logits, tokens))), rel=1e-5)
    assert metrics[0]["tokens_teacher"] == metrics[0]["tokens/teacher"] == len(tokens)
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    solutions = {f"sum-{n}": arithmetic.solution(problem) for n, problem in enumerate(PROBLEMS)}
    for record in records:
        assert record["text"] == record["target_text"] == solutions[record["id"]] and record["steps"] == []
        assert set(record["sources"]) == {"teacher"} and record["finish_reason"] == "stop"
    assert summary["compiles"] == {"off_policy": 1, "update": 1}


def test_sft_asks_nothing_of_the_teacher(runs):
    for line in read_lines(runs / "sft" / "metrics.jsonl"):
        assert line["teacher_scored_per_token"] == line["target_bytes_per_token"] == line["cache_bytes"] == 0
        assert line["occupancy"] is line["dead_columns"] is line["value"] is None and not line["on_policy"]


def test_epochs_give_the_number_of_steps(runs):
    """Two passes over 12 prompts, 8 a step; the schedule ends with them."""
    metrics = read_lines(runs / "sft" / "metrics.jsonl")
    assert len(metrics) == 3 and metrics[-1]["epoch"] == 2
    config = load_config(runs / "sft" / "config.yaml")
    assert config.run.steps == 3 and config.run.epochs == 2
    rates = [line["learning_rate"] for line in metrics]
    assert rates == pytest.approx([1e-3, 7.5e-4, 2.5e-4]), "a cosine over three steps"


@pytest.mark.parametrize("method", RIVALS)
def test_three_steps_of_each_rival(runs, method):
    metrics, summary, records = figures(runs / method)
    assert len(metrics) == STEPS and all(np.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in metrics)
    assert set(summary["compiles"].values()) == {1} and summary["skipped"] == 0
    rewinds = sum(line["rewinds"] for line in metrics)
    assert (rewinds > 0) == (method in ("skd", "skd_step", "adaswitch"))
    for line in metrics if method == "skd" else ():
        assert line["tokens_teacher"] == line["tokens_discarded"] > 0, "one for one"
    assert all(len(record["rewinds"]) <= 1 for record in records) or method.startswith("skd")
    ended = [record["finish_reason"] for record in records].count("monitor")
    assert (ended > 0) == (method == "kat")


def test_the_boundary_follows_the_quantile(runs):
    """At pace 1 it is the median of the windows of the step before: about half of them stray."""
    metrics = read_lines(runs / "kat" / "metrics.jsonl")
    assert metrics[0]["boundary"] == 0.0 and all(line["eps0"] > 0 for line in metrics)
    assert metrics[1]["boundary"] == pytest.approx(metrics[0]["eps0"], rel=1e-6)
    assert metrics[2]["strayed"] > 0 == metrics[0]["strayed"]


def test_seqkd_trains_on_what_the_teacher_writes(runs):
    metrics, summary, records = figures(runs / "seqkd")
    for line in metrics:
        assert line["tokens_student"] == 0 < line["tokens_teacher"] == line["tokens/teacher"]
        assert line["teacher_scored_per_token"] == 1 and line["target_bytes_per_token"] == 0 < line["occupancy"] <= 1
        assert line["seconds"]["teacher_writing"] == line["seconds"]["rollout"] and not line["on_policy"]
        # Keys and values of the teacher's 3 layers alone, 2 heads of 8 numbers each, in 8 slots.
        assert line["cache_bytes"] % (2 * 3 * 2 * 8 * 4 * ROWS) == 0 < line["cache_bytes"]
    assert {source for record in records for source in record["sources"]} == {"teacher"}
    assert len({record["text"] for record in records}) == len(records)
    assert summary["compiles"] == {"off_policy": 1, "update": 1}


def test_gkd_draws_the_writer_for_each_step(runs, pair):
    metrics, summary, records = figures(runs / "gkd")
    assert [line["on_policy"] for line in metrics] == ON_POLICY
    for line in metrics:
        writer, other = ("student", "teacher") if line["on_policy"] else ("teacher", "student")
        assert line[f"tokens_{other}"] == 0 < line[f"tokens_{writer}"] and line["teacher_scored_per_token"] == 1
        found = [record["sources"] for record in records if record["step"] == line["step"]]
        assert {source for sources in found for source in sources} == {writer}
    assert summary["compiles"] == {"rollout": 1, "off_policy": 1, "update": 1}
    batch = first_batch(pair)
    student, teacher = (logits_of(pair / name, batch)[0] for name in ("student", "teacher"))
    assert metrics[0]["loss"] == pytest.approx(float(jnp.mean(jsd(student, teacher, reverse_weight=0.5))), rel=1e-4)


def test_gkd_goes_on_as_if_it_had_not_been_stopped(runs):
    one, other = runs / "gkd", runs / "gkd_again"
    assert without_clocks(one / "metrics.jsonl") == without_clocks(other / "metrics.jsonl")
    assert samples(one) == samples(other)
    weights = [(run / "export" / "model.safetensors").read_bytes() for run in (one, other)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_share_of_on_policy_steps(share):
    config = load_config(None, [f"rollout.on_policy={share}", "run.seed=3"])
    drawn = [is_on_policy(config, step) for step in range(1, 2001)]
    assert np.mean(drawn) == pytest.approx(share, abs=0.03)
    assert drawn == [is_on_policy(config, step) for step in range(1, 2001)]
    other = load_config(None, [f"rollout.on_policy={share}", "run.seed=4"])
    assert (drawn != [is_on_policy(other, step) for step in range(1, 2001)]) == (0 < share < 1)


@pytest.mark.parametrize(("epochs", "samples", "steps"), [(1, 1, 4), (3, 1, 10), (1, 4, 13), (2, 8, 50)])
def test_epochs_are_rounded_up_to_whole_steps(epochs, samples, steps):
    """25 prompts; 8 rows a step."""
    words = [f"run.epochs={epochs}", "rollout.batch_size=8", f"rollout.samples_per_prompt={samples}"]
    assert with_steps(load_config(None, words), 25).run.steps == steps
    assert with_steps(load_config(None, words[1:]), 25).run.steps == 100


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        ("", True),
        ("method=sft", False),
        ("method=seqkd", True),
        ("method=gkd", True),
        ("method=opd", True),
        ("monitor.enabled=false", False),
        ("method=sft eval.reverse_kl=true", True),
        ("method=sft objective.teacher_loss=forward_kl", True),
        ("method=sft student.init_from_teacher.layers=[0]", True),
    ],
)
def test_who_needs_a_teacher(words, needed):
    assert needs_teacher(load_config(None, words.split())) == needed


def test_a_long_completion_is_cut_and_counted(pair, tmp_path):
    """Also: a student alone, no teacher named."""
    recipe, *changes = method_words("sft", pair, tmp_path, "teacher.path=null", "rollout.max_new_tokens=12")
    session = open_session(load_config(recipe, changes))
    assert session.teacher is None
    found = training_completions(session, training_prompts(session))
    texts = [session.tokenizer.encode(arithmetic.solution(p), add_special_tokens=False) for p in PROBLEMS]
    whole = [[*ids, session.stop_id] for ids in texts]
    assert found is not None and found.tokens == [ids[:12] for ids in whole]
    longer = [len(ids) for ids in whole if len(ids) > 12]
    assert 0 < found.truncated == len(longer) < PROMPTS
    assert str(found).startswith(f"{len(longer)} of {PROMPTS} completions are longer than rollout.max_new_tokens=12")
    assert str(found).endswith(str(max(longer)))


def test_a_prompt_without_completion(pair, tmp_path):
    check(pair, tmp_path, ["method=gkd", *solved(tmp_path, 5)], "solved.jsonl", "'sum-5'", "data.fields.completion")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (["method=sft"], ["rollout.samples_per_prompt=2", "rollout.on_policy=0"]),
        (["rollout.on_policy=1.5"], ["rollout.on_policy", "1.5"]),
        (["rollout.off_policy=nobody"], ["rollout.off_policy", "'nobody'", "teacher"]),
        (["run.epochs=0"], ["run.epochs"]),
        (
            ["method=sft", "rollout.samples_per_prompt=1", "objective.student_loss=reverse_kl"],
            ["rollout.targets=sampled", "objective.student_loss=reverse_kl"],
        ),
    ],
)
def test_settings_that_do_not_fit(changes, parts, pair, tmp_path):
    check(pair, tmp_path, changes, *parts)
