"""A random tiny pair of models and the means to run it: what the rollout's tests share.

`run` is one jitted function for the whole session, so that tests with equal static settings share a compiled program.
"""

import functools
from dataclasses import fields

import jax
import jax.numpy as jnp
import numpy as np

from motab_jax.data.steps import compile_delimiter
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.transformer import Model, init
from motab_jax.rollout import (
    BacktrackSpec,
    MonitorSpec,
    Prompts,
    RolloutConfig,
    SamplingSpec,
    TargetSpec,
    Trajectory,
    rollout,
)

VOCAB = 40
PADDED = 48
STOP = 1
DELIMITER = ".\n"
PIECES = [b"", b"", b".", b"\n", b".\n.", b"a.", b"\nb", b"c.\n.d", b"e.\n.", b"f.\n.", b"\ng", b"\nh.", b"\ni", b"\nj"]
PIECES += [bytes([65 + i]) for i in range(VOCAB - len(PIECES))]
ROWS, WIDTH = 16, 8
MAX_NEW = 40
SPECS = {"sampling": SamplingSpec, "monitor": MonitorSpec, "backtrack": BacktrackSpec, "targets": TargetSpec}

run = jax.jit(rollout)


def tiny(width: int, vocab: int = VOCAB) -> ModelConfig:
    """A two-layer Qwen3 shape with grouped queries."""
    return ModelConfig("qwen3", vocab, width, 2 * width, 2, 4, 2, 8, 512, qk_norm=True, tied=True)


@functools.cache
def model(seed: int, width: int = 32, vocab: int = VOCAB) -> Model:
    """Random weights, large enough for distributions with likely and unlikely tokens."""
    return Model(init(tiny(width, vocab), jax.random.key(seed), std=0.3), tiny(width, vocab))


def student() -> Model:
    """The student of the pair."""
    return model(1)


def teacher() -> Model:
    """The teacher: wider, of the same tokenizer, with a vocabulary padded beyond it."""
    return model(2, 48, PADDED)


def random_prompts(seed: int = 0) -> Prompts:
    """Left-padded prompts of 2 to WIDTH tokens."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, WIDTH + 1, ROWS)
    tokens = rng.integers(2, VOCAB, (ROWS, WIDTH))
    tokens[np.arange(WIDTH) < WIDTH - lengths[:, None]] = 0
    return Prompts(jnp.asarray(tokens, jnp.int32), jnp.asarray(lengths, jnp.int32), jnp.arange(ROWS, dtype=jnp.int32))


def settings(**changes) -> RolloutConfig:
    """The tests' rollout settings: sampled, root step, suffix."""
    # `changes` name fields of the config or of its specs; two of one name are told apart here.
    names = {
        "monitored": "enabled",
        "steps": "teacher_steps",
        "targets": "kind",
        "targets_k": "k",
        "targets_dtype": "dtype",
    }
    base = {"automaton": compile_delimiter(DELIMITER, PIECES), "stop_ids": jnp.array([STOP, STOP])}
    base |= {"eps0": 0.35, "theta": 0.6, "vocab_size": VOCAB, "max_new_tokens": MAX_NEW, "segment_tokens": 4}
    base |= {"temperature": 1.0, "top_p": 0.9, **changes}
    base |= {name: jnp.float32(base[name]) for name in ("eps0", "theta")}
    base = {names.get(name, name): value for name, value in base.items()}
    for name, spec in SPECS.items():
        base[name] = spec(**{field.name: base.pop(field.name) for field in fields(spec) if field.name in base})
    return RolloutConfig(**base)


def outcome(*, pair=None, prompts: Prompts | None = None, key: int = 0, **changes) -> Trajectory:
    """Run the pair (student, teacher) and fetch the trajectories."""
    writer, judge = pair or (student(), teacher())
    prompts = random_prompts() if prompts is None else prompts
    return jax.device_get(run(writer, judge, prompts, jax.random.key(key), settings(**changes)))


def row_of(result: Trajectory, row: int) -> dict:
    """One row without what lies beyond its length; `exact` holds integers, `close` real numbers."""
    log = {name: getattr(result, name)[row, : result.length[row]] for name in ("tokens", "sources", "discarded_by")}
    rewinds = result.num_rewinds[row]
    times = {name: getattr(result, name)[row, :rewinds] for name in ("rewind_at", "breach_step", "root_step")}
    steps = {name: table[row, : result.steps.count[row]] for name, table in _tables(result.steps).items()}
    real = {name: steps.pop(name) for name in ("value", "entropy", "boundary")}
    real["teacher_logprob"] = result.teacher_logprob[row, : result.length[row]]
    exact = {name: np.asarray(x).tolist() for name, x in (log | times | steps).items()}
    return {"exact": exact | {"finish": int(result.finish[row])}, "close": real}


def _tables(steps) -> dict:
    names = ("start", "end", "source", "value", "entropy", "boundary", "stray", "discarded_by")
    return {name: getattr(steps, name) for name in names}


def assert_same_row(one: dict, other: dict) -> None:
    """Integers equal, real numbers to 1e-5."""
    assert one["exact"] == other["exact"]
    for name, values in one["close"].items():
        np.testing.assert_allclose(values, other["close"][name], atol=1e-5, err_msg=name)


def completion(result: Trajectory, row: int) -> list[int]:
    """The tokens that were kept."""
    return result.tokens[row][result.kept[row]].tolist()
