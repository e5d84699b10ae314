"""Slots that refill against static batches, on texts of very different lengths; and what a large length limit costs.

    python benchmarks/occupancy.py [--json FILE] [--runs N]

Lengths are log-normal, median 500 and 99th percentile 5000, scaled down by twenty (seeded); a student of 4 layers, 128
wide, decodes them in 16 slots. Static: batch after batch of 16, each as long as its longest text. Refill: all texts in
one call, a finished slot takes the next. Occupancy is the share of decoded columns that hold a token. The last figure:
the first 256 tokens of 16 texts where 8192 are allowed, against 512. Large arrays are in large pages, as the launch
files have it (GLIBC_TUNABLES).
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import bench

from motab_jax.data.steps import StepAutomaton
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.serving import serve_params
from motab_jax.models.transformer import Model, init
from motab_jax.rollout import MonitorSpec, Prompts, RolloutConfig, SamplingSpec, rollout

SLOTS, TEXTS, PROMPT, VOCAB = 16, 640, 8, 1000
MEDIAN, P99, LONGEST = 25, 250, 400
STUDENT = ModelConfig("qwen3", VOCAB, 128, 384, 4, 4, 2, 32, 16384, qk_norm=True, tied=True)
run = jax.jit(rollout)


def lengths(seed: int = 0) -> np.ndarray:
    """Seeded log-normal lengths i32[TEXTS]."""
    sigma = np.log(P99 / MEDIAN) / 2.3263  # the normal distribution's 99th percentile
    drawn = np.random.default_rng(seed).lognormal(np.log(MEDIAN), sigma, TEXTS)
    return np.clip(drawn, 1, LONGEST).astype(np.int32)


def settings(max_new_tokens: int, slots: int = 0) -> RolloutConfig:
    """Sampling without monitor and without a stop token: the limits alone end a text."""
    automaton = StepAutomaton(jnp.zeros((1, VOCAB), jnp.int32), jnp.zeros((1, VOCAB), bool))
    return RolloutConfig(
        automaton, jnp.array([-1]), jnp.float32(0), jnp.float32(0), vocab_size=VOCAB, max_new_tokens=max_new_tokens,
        segment_tokens=4, slots=slots, sampling=SamplingSpec(1.0, 0, 1.0), monitor=MonitorSpec(enabled=False),
    )  # fmt: skip


def prompts(limits: np.ndarray) -> Prompts:
    """Random prompts of one length."""
    rows = len(limits)
    tokens = np.random.default_rng(1).integers(2, VOCAB, (rows, PROMPT)).astype(np.int32)
    sizes = np.full((rows,), PROMPT, np.int32)
    return Prompts(jnp.asarray(tokens), jnp.asarray(sizes), jnp.arange(rows, dtype=jnp.int32), jnp.asarray(limits))


def occupancy(results) -> float:
    """Busy columns over decoded columns, of one or more trajectories."""
    busy, decoded = (
        sum(float(getattr(r.counters, name)) for r in results) for name in ("busy_columns", "student_columns")
    )
    return busy / decoded


def main() -> None:
    """Measure and print."""
    arguments = bench.parser(__doc__).parse_args()
    bench.in_child_environment()
    student = Model(serve_params(init(STUDENT, jax.random.key(0)), STUDENT, scan_layers=False), STUDENT)
    limits, key = lengths(), jax.random.key(0)
    found: dict[str, list] = {}

    def static():
        parts = [prompts(limits[at : at + SLOTS]) for at in range(0, TEXTS, SLOTS)]
        found["static"] = [run(student, None, part, key, settings(LONGEST)) for part in parts]
        return [result.counters for result in found["static"]]

    def refill():
        found["refill"] = [run(student, None, prompts(limits), key, settings(LONGEST, SLOTS))]
        return found["refill"][0].counters

    few = np.full((SLOTS,), 256, np.int32)
    times = bench.alternate({"static": static, "refill": refill}, arguments.runs)
    reach = bench.alternate(
        {str(most): lambda most=most: run(student, None, prompts(few), key, settings(most)) for most in (512, 8192)},
        arguments.runs,
    )
    figures = {
        "static": occupancy(found["static"]),
        "refill": occupancy(found["refill"]),
        "wall_ratio": bench.ratio(times, "static", "refill"),
        "long_max_length_ratio": bench.ratio(reach, "8192", "512"),
    }
    tokens = int(limits.sum())
    bench.show(
        f"{TEXTS} texts, {tokens:,} tokens, longest {limits.max()}, {SLOTS} slots",
        ["", "occupancy", "seconds", "tokens/s"],
        [[n, figures[n], bench.median(times[n]), tokens / bench.median(times[n])] for n in ("static", "refill")]
        + [[f"256 tokens of at most {m}", "", bench.median(reach[m]), ""] for m in reach],
    )
    print(f"refill is {figures['wall_ratio']:.2f}x faster; 8192 costs {figures['long_max_length_ratio']:.2f}x of 512")
    bench.save(arguments.json, figures)


if __name__ == "__main__":
    main()
