"""`synthesize` against the oracle: the same trajectories, token for token, on random tiny pairs of each family.

Teacher and student are random: the student is the teacher without its middle layer and with noise added, so that the
two agree often enough for safe steps and differ often enough for breaches. The vocabularies hold tokens that end in,
begin with, contain or repeat the step delimiter. Prompts on which a greedy or judging decision is too close for
float32 are left out.
"""

import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.oracle import oracle_rollout
from tests.verbs.helpers import environment

pytestmark = pytest.mark.parity

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = 50
CANDIDATES = 60
MAX_NEW_TOKENS = 28
MIN_MARGIN = 1e-4
TRANSITION = "b.c"
TOLERANCE = 1e-4
STUDENT_NOISE, LOGIT_SCALE, LAYER_SCALE, MIDDLE_SCALE = 0.15, 2.5, 1.5, 0.2
LETTERS = "abcdefghijkl"
SPECIAL = ("<pad>", "<eos>", "<end>", "<|endoftext|>")
STOP_IDS = (1, 2)
RULES = (
    "delimiter",
    "target",
    "intervention",
    "steps",
    "max_interventions",
    "entropy_top_k",
    "monitor",
    "eps0",
    "theta",
    "signal",
    "boundary",
    "alarm",
    "patience",
    "top_k",
    "window",
)
FAMILIES = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16}),
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
}


@dataclass(frozen=True)
class Case:
    """One comparison: a pair of models, a delimiter and the rules of the rollout."""

    family: str
    delimiter: str
    seed: int
    segment_tokens: int
    target: str = "root"
    intervention: str = "suffix"
    steps: int = 1
    max_interventions: int = 1
    entropy_top_k: int = 0
    monitor: bool = True
    padded_teacher: int = 0
    eps0: float = 0.2
    theta: float = 0.5
    signal: str = "likelihood"
    boundary: str = "entropy_adaptive"
    alarm: str = "low"
    patience: int = 1
    top_k: int = 0
    window: int = 0
    trained_on: str = "stitched"


CASES = {
    "root-suffix": Case("qwen3", ".", seed=6, segment_tokens=5),
    "breach-suffix": Case("llama", ".\n", seed=3, segment_tokens=4, target="breach", entropy_top_k=5),
    "root-steps": Case(
        "qwen2", "..", seed=7, segment_tokens=8, intervention="steps", max_interventions=3, padded_teacher=4
    ),
    "monitor-off": Case("llama", ".\n", seed=4, segment_tokens=16, monitor=False),
    # The rivals' triggers. SKD by token: a token outside the teacher's likeliest is the teacher's to write.
    "skd": Case(
        "qwen3", ".", seed=8, segment_tokens=4, signal="top_k", top_k=3, window=1, eps0=1.0, boundary="fixed",
        theta=0.0, target="breach", intervention="steps", max_interventions=MAX_NEW_TOKENS, trained_on="spliced",
    ),
    "skd-step": Case(
        "llama", ".", seed=9, segment_tokens=6, signal="likelihood_ratio", eps0=0.9, boundary="fixed", theta=0.0,
        target="breach", intervention="steps", max_interventions=4, trained_on="spliced",
    ),
    "adaswitch": Case(
        "qwen2", ".", seed=10, segment_tokens=8, signal="reverse_kl", alarm="high", window=1, eps0=3.0,
        boundary="running_mean", target="breach", trained_on="spliced",
    ),
    "kat": Case(
        "qwen3", ".", seed=11, segment_tokens=7, signal="reverse_kl", window=3, patience=2, eps0=0.8,
        boundary="fixed", theta=0.0, intervention="stop", trained_on="spliced",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small lose time to threads, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def vocabulary(delimiter):
    """35 to 45 tokens: specials, single characters, and pieces that start, end, span or repeat the delimiter."""
    first, last = delimiter[0], delimiter[-1]
    pieces = [*LETTERS, ".", "\n"]
    pieces += [letter + first for letter in LETTERS[:7]] + [last + letter for letter in LETTERS[:5]]
    pieces += [delimiter + letter for letter in LETTERS[:4]] + [letter + delimiter for letter in LETTERS[:4]]
    pieces += [letter + delimiter + first for letter in LETTERS[:4]]  # hold the start of another match
    pieces += [delimiter, delimiter + delimiter, delimiter + first]
    return [*SPECIAL, *dict.fromkeys(pieces)]


def make_tokenizer(words, family):
    """A character tokenizer: byte pairs without merges, so that longer pieces are written but never read.

    Byte-level for qwen2, because transformers reads any tokenizer next to a qwen2 model as one; plain otherwise.
    """
    byte_level = family == "qwen2"
    names = [word.replace("\n", "Ċ") if byte_level else word for word in words]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel() if byte_level else decoders.Fuse()
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<eos>",
        pad_token="<pad>",
        additional_special_tokens=list(SPECIAL[2:]),
        clean_up_tokenization_spaces=False,
    )


def make_model(case, vocab_size, layers):
    """A tiny model of the case's family, untied, grouped queries, weights still the library's own."""
    config_class, model_class, extra = FAMILIES[case.family]
    config = config_class(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=STOP_IDS[0],
        pad_token_id=0,
        **extra,
    )
    return model_class(config).float().eval()


def peaked(name, weight):
    """Random weights, large enough for peaked distributions; norms near one, biases small, a weak middle layer."""
    noise = torch.randn_like(weight)
    if weight.dim() == 1:
        return 1 + 0.2 * noise if "norm" in name else 0.3 * noise
    if "embed" in name:
        return noise
    if "layers.1." in name and ("o_proj" in name or "down_proj" in name):
        noise = MIDDLE_SCALE * noise
    return (LOGIT_SCALE if "lm_head" in name else LAYER_SCALE) * noise / weight.shape[1] ** 0.5


def make_pair(case, vocab_size):
    """Student of two layers and teacher of three; the teacher's vocabulary may be padded beyond the tokenizer's."""
    torch.manual_seed(case.seed)
    teacher = make_model(case, vocab_size + case.padded_teacher, layers=3)
    student = make_model(case, vocab_size, layers=2)
    with torch.no_grad():
        for name, weight in teacher.named_parameters():
            weight.copy_(peaked(name, weight))
        source = dict(teacher.named_parameters())
        for name, weight in student.named_parameters():
            kept = source[name.replace("layers.1.", "layers.2.")][: weight.shape[0]]
            noise = STUDENT_NOISE * kept.std() * torch.randn_like(kept)
            weight.copy_(kept + noise if kept.dim() > 1 else kept)
    return student, teacher


def expected_rollouts(case, student, teacher, tokenizer, words):
    """Prompt -> the oracle's trajectory, for the first PROMPTS candidates that leave no decision to rounding."""
    draw = random.Random(case.seed)
    texts = ["".join(draw.choices(LETTERS + ".\n", k=draw.randint(2, 11))) for _ in range(CANDIDATES)]
    rules = {name: getattr(case, name) for name in RULES} | {"vocab_size": len(words), "stop_ids": STOP_IDS}
    pieces = [b"" if word in SPECIAL else word.encode() for word in words]
    found = {}
    for text in dict.fromkeys(texts):
        ids = tokenizer.encode(text)
        result = oracle_rollout(student, teacher, pieces, ids, max_new_tokens=MAX_NEW_TOKENS, **rules)
        if result["min_margin"] >= MIN_MARGIN and len(found) < PROMPTS:
            found[text] = result
    assert len(found) == PROMPTS, "too many prompts hang on rounding: choose another seed"
    return found


def write_inputs(case, student, teacher, tokenizer, prompts, folder):
    """Model folders, prompts.jsonl and config.yaml under `folder`; returns the configuration's path."""
    for name, model in (("student", student), ("teacher", teacher)):
        model.generation_config = GenerationConfig(eos_token_id=list(STOP_IDS), pad_token_id=0)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    lines = [json.dumps({"id": f"p{n}", "prompt": text}) for n, text in enumerate(prompts)]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    config = {
        "run": {"dir": str(folder / "runs")},
        "student": {"path": str(folder / "student")},
        "teacher": {"path": str(folder / "teacher")},
        "data": {"source": "jsonl", "path": str(folder / "prompts.jsonl"), "chat_template": False},
        "rollout": {"batch_size": 16, "max_new_tokens": MAX_NEW_TOKENS, "segment_tokens": case.segment_tokens},
        "monitor": {"enabled": case.monitor, "step_delimiter": case.delimiter, "entropy_top_k": case.entropy_top_k},
        "objective": {"target": case.trained_on, "transition_text": TRANSITION},
        "backtrack": {"target": case.target, "intervention": case.intervention, "steps": case.steps},
    }
    config["monitor"] |= {"eps0": case.eps0, "theta": case.theta, "boundary": case.boundary, "signal": case.signal}
    config["monitor"] |= {"alarm": case.alarm, "patience": case.patience, "step_tokens": case.window}
    config["monitor"] |= {"top_k": case.top_k or 1}
    config["backtrack"] |= {"max_interventions": case.max_interventions}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


def synthesize(config, output):
    """Run the verb as a user would, greedily, on one CPU device; returns id -> record."""
    words = [str(config), f"output={output}", "rollout.temperature=0", "rollout.top_p=1.0"]
    command = [sys.executable, "-m", "motab_jax.synthesize", *words]
    run = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert len({record["id"] for record in records}) == len(records), "an id occurs twice"
    return {record["id"]: record for record in records}


def target_text(case, expected, tokenizer):
    """What is trained on (eq. 11): all that was written, with the transition at each intervention, or what was kept."""
    stretches = expected["written"] if case.trained_on == "stitched" else [expected["tokens"]]
    return TRANSITION.join(tokenizer.decode(ids, skip_special_tokens=True) for ids in stretches)


def compare(record, expected, monitor):
    """Tokens, provenance and rewinds are equal; the step table is equal in its integers and to TOLERANCE elsewhere."""
    assert record["tokens"] == expected["tokens"]
    assert record["sources"] == expected["sources"]
    assert record["finish_reason"] == expected["finish_reason"]
    facts = ("breach_step", "root_step", "discarded_tokens")
    got, want = ([{name: rewind[name] for name in facts} for rewind in r["rewinds"]] for r in (record, expected))
    assert got == want
    if not monitor:
        return
    facts = ("start", "end", "source", "stray")
    got, want = ([{name: step[name] for name in facts} for step in r["steps"]] for r in (record, expected))
    assert got == want
    for got, want in zip(record["steps"], expected["steps"], strict=True):
        for name in ("value", "entropy", "boundary"):
            # What a signal that compares both models is at the teacher's tokens, the engine doesn't ask.
            if got[name] is not None or got["source"] == "student":
                close = pytest.approx(want[name] or 0.0, abs=TOLERANCE, rel=0)
                assert got[name] == (None if want[name] is None else close), name


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_synthesize_equals_the_oracle(case, tmp_path):
    words = vocabulary(case.delimiter)
    tokenizer = make_tokenizer(words, case.family)
    student, teacher = make_pair(case, len(words))
    expected = expected_rollouts(case, student, teacher, tokenizer, words)
    rewinds = [rewind for result in expected.values() for rewind in result["rewinds"]]
    ended = sum(result["finish_reason"] == "monitor" for result in expected.values())
    assert len(rewinds) + ended >= (20 if case.monitor else 0)
    if case.target == "root" and rewinds:
        assert sum(rewind["root_step"] < rewind["breach_step"] for rewind in rewinds) >= 5
    config = write_inputs(case, student, teacher, tokenizer, expected, tmp_path)
    records = synthesize(config, tmp_path / "out.jsonl")
    assert set(records) == {f"p{n}" for n in range(PROMPTS)}
    for n, (prompt, result) in enumerate(expected.items()):
        assert records[f"p{n}"]["prompt"] == prompt
        compare(records[f"p{n}"], result, case.monitor)
        assert records[f"p{n}"]["target_text"] == target_text(case, result, tokenizer)
