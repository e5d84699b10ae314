"""Makes the shipped pair: a teacher that solves the arithmetic task, and a student that has begun to learn it.

    python -m motab_jax.quickstart.build [--out FOLDER] [--seed N] [--only teacher|student]

Both learn golden chains (data/arithmetic.py) by next-token cross-entropy on the completion, with AdamW in float32,
short chains first. The teacher trains to the end of its plan. The student stops while it is still poor: training goes
back to the last measured state, and measures more often, whenever a measurement has overshot the wanted range.
Left out: distillation, which is what the pair is for, and machines with several devices.
"""

import argparse
import contextlib
import dataclasses
import functools
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from motab_jax.config import UserError
from motab_jax.data import arithmetic
from motab_jax.data.arithmetic import Problem
from motab_jax.data.steps import compile_delimiter
from motab_jax.data.tokenizer import load_tokenizer, token_bytes
from motab_jax.distill.optimizer import make_optimizer, make_schedule
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.pretrained import save_pretrained
from motab_jax.models.transformer import Model, Params, forward, init
from motab_jax.rollout import Prompts, RolloutConfig, rollout

DELIMITER = "\n"  # a line is a step
MAX_NEW_TOKENS = 96  # the longest golden completion has 84
PROMPT_COLUMNS = 24  # the longest prompt: <bos>, two digits, ten signed digits, =
REPORT_PROMPTS, CHECK_PROMPTS = 1000, 256
REPORT_SEED, CHECK_SEED = 1, 2  # of the held-out prompts
EVAL_ROWS = 256
SAY_EVERY = 50  # steps


@dataclasses.dataclass(frozen=True)
class Stage:
    """Part of a training plan: `steps` batches of `rows` chains of min_terms..max_terms numbers, padded to `columns`."""

    steps: int
    min_terms: int
    max_terms: int
    columns: int
    rows: int = 64


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one model of the pair is made. With `wanted` it stops as soon as its greedy accuracy lies in that range."""

    config: ModelConfig
    stages: tuple[Stage, ...]
    learning_rate: float
    schedule: str
    wanted: tuple[float, float] | None = None
    check_every: int = 100


def architecture(*, layers: int, width: int, heads: int, head_dim: int, mlp: int) -> ModelConfig:
    """A Qwen3 decoder with the task's vocabulary."""
    return ModelConfig(
        model_type="qwen3",
        vocab_size=len(arithmetic.SPECIAL_TOKENS) + len(arithmetic.ALPHABET),
        width=width,
        mlp_width=mlp,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads // 2,
        head_dim=head_dim,
        max_positions=512,
        tied=True,
        qk_norm=True,
    )


