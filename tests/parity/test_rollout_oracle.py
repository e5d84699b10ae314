"""`synthesize` against the oracle: the same trajectories, token for token, on random tiny pairs of each family.

Teacher and student are random: the student is the teacher with layers cut off and noise added, so that the two agree
often enough for safe steps and differ often enough for breaches. Vocabularies hold tokens that end in, begin with or
contain the step delimiter. Prompts on which a greedy or a judging decision is too close for float32 are left out.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models
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

pytestmark = pytest.mark.parity

PROMPTS = 50
MAX_NEW_TOKENS = 28
MIN_MARGIN = 1e-4
LETTERS = "abcdefghijkl"
SPECIAL = ["<pad>", "<eos>", "<end>"]
STOP_IDS = [1, 2]
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
    target: str = "root"
    intervention: str = "suffix"
    max_interventions: int = 1
    eps0: float = 0.3
    theta: float = 0.5
    entropy_top_k: int = 0
    monitor: bool = True
    padded_teacher: int = 0
    model: dict = field(default_factory=dict)

    def rules(self):
        """The oracle's keyword arguments."""
        names = ("delimiter", "target", "intervention", "max_interventions", "eps0", "theta", "entropy_top_k", "monitor")
        return {name: getattr(self, name) for name in names} | {"max_new_tokens": MAX_NEW_TOKENS, "stop_ids": STOP_IDS}


CASES = {
    "root-suffix": Case("qwen3", ".", seed=1),
    "breach-suffix": Case("llama", ".\n", seed=2, target="breach", entropy_top_k=5),
    "root-steps": Case("qwen2", "..", seed=3, intervention="steps", max_interventions=3, padded_teacher=4),
    "monitor-off": Case("llama", ".\n", seed=4, monitor=False),
}


def vocabulary(delimiter):
    """About 40 tokens: specials, single characters, and pieces that start, end, span or repeat the delimiter."""
    first, last = delimiter[0], delimiter[-1]
    pieces = [*LETTERS, *dict.fromkeys((".", "\n"))]
    pieces += [letter + first for letter in LETTERS[:7]] + [last + letter for letter in LETTERS[:5]]
    pieces += [delimiter + letter for letter in LETTERS[:4]] + [letter + delimiter for letter in LETTERS[:4]]
    pieces += [delimiter, delimiter + delimiter, delimiter + first]
    return SPECIAL + list(dict.fromkeys(pieces))


def make_tokenizer(words):
    """A character tokenizer: byte pairs without merges, so that longer pieces are written but never read."""
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=["<end>"],
        clean_up_tokenization_spaces=False,
    )


def make_pair(case, vocab_size):
    """Teacher of three peaked random layers, student of its first and last with noise added; float32, eval mode."""
    torch.manual_seed(case.seed)
    teacher = _model(case, vocab_size + case.padded_teacher, layers=3)
    student = _model(case, vocab_size, layers=2)
    with torch.no_grad():
        for name, weight in teacher.named_parameters():
            weight.copy_(_peaked(name, weight))
        source = dict(teacher.named_parameters())
        for name, weight in student.named_parameters():
            origin = source[name.replace("layers.1.", "layers.2.")]
            kept = origin[:vocab_size] if "embed" in name or "lm_head" in name else origin
            weight.copy_(kept + NOISE * kept.std() * torch.randn_like(kept) if kept.dim() > 1 else kept)
    return student.eval(), teacher.eval()
