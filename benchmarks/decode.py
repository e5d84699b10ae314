"""Decoding against the memory's bandwidth and against transformers' `generate` in torch, on a real small model.

    python benchmarks/decode.py [MODEL_FOLDER] [--batch 1 16] [--json FILE] [--runs N]

Same weights, float32, greedy, 25 new tokens after a prompt of 32. Ours is the rollout engine without a monitor. A
token's time is that of 25 new tokens less that of 1, over 24. The floor reads all weights once a token, and the live
cache, at the bandwidth of a large sum timed in the same round. `bash launch/smollm2.sh` makes the default model's
folder; torch comes with the extra [parity].
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parent))
import bench

from motab_jax.data.steps import StepAutomaton
from motab_jax.models import load_pretrained
from motab_jax.models.serving import serve_params
from motab_jax.models.transformer import Model, forward
from motab_jax.planning.hlo import tree_bytes
from motab_jax.rollout import MonitorSpec, Prompts, RolloutConfig, SamplingSpec, rollout

DEFAULT = "downloads/SmolLM2-135M-Instruct"
PROMPT, NEW, WARM = 32, 25, 1
run = jax.jit(rollout)


def prompt(rows: int, new: int) -> Prompts:
    """One text in all rows; `new` tokens are to be written."""
    each = jnp.full((rows,), PROMPT, jnp.int32)
    tokens = jnp.broadcast_to(jnp.arange(100, 100 + PROMPT, dtype=jnp.int32), (rows, PROMPT))
    return Prompts(tokens, each, jnp.arange(rows, dtype=jnp.int32), jnp.full((rows,), new, jnp.int32))


def settings(vocab: int) -> RolloutConfig:
    """Greedy, no monitor, no stop token."""
    automaton = StepAutomaton(jnp.zeros((1, vocab), jnp.int32), jnp.zeros((1, vocab), bool))
    real = jnp.float32(0)
    return RolloutConfig(
        automaton,
        jnp.array([-1]),
        real,
        real,
        vocab_size=vocab,
        max_new_tokens=NEW,
        sampling=SamplingSpec(temperature=0.0),
        monitor=MonitorSpec(enabled=False),
    )


def torch_child(folder: str) -> None:
    """The rival's process: answers generate(rows, new) with seconds and the first row's tokens."""
    import time

    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def generate(rows: int, new: int):
        ids = torch.arange(100, 100 + PROMPT).repeat(rows, 1)
        start = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=new, max_new_tokens=new,
                pad_token_id=0,
            )  # fmt: skip
        return time.perf_counter() - start, out[0, PROMPT:].tolist()

    bench.answer({"generate": generate})


def measure(model: Model, rival: bench.Worker, rows: int, runs: int) -> dict[str, float]:
    """Medians over rounds: milliseconds a token of ours and torch, the bandwidth, and the ratios."""
    numbers, key = settings(model.config.vocab_size), jax.random.key(0)
    memory = jnp.ones((128, 1 << 20), jnp.float32)
    add = jax.jit(jnp.sum)
    cache = 2 * 4 * model.config.num_layers * rows * model.config.num_kv_heads * model.config.head_dim
    moved = tree_bytes(model.params) + cache * (PROMPT + NEW / 2)

    def ours(new: int) -> float:
        return bench.seconds(lambda: run(model, None, prompt(rows, new), key, numbers).tokens)

    our_tokens = run(model, None, prompt(rows, NEW), key, numbers).tokens[0, :NEW].tolist()
    rounds = []
    for place in range(-WARM, runs):
        a = (ours(NEW) - ours(1)) / (NEW - 1)
        (long, theirs), (short, _) = rival("generate", rows=rows, new=NEW), rival("generate", rows=rows, new=1)
        floor = moved / (tree_bytes(memory) / min(bench.seconds(lambda: add(memory)) for _ in range(3)))
        if place >= 0:
            rounds.append((1e3 * a, 1e3 * (long - short) / (NEW - 1), 1e3 * floor, our_tokens == theirs))
    found = {
        "ours_ms": bench.median([r[0] for r in rounds]),
        "torch_ms": bench.median([r[1] for r in rounds]),
        "floor_ms": bench.median([r[2] for r in rounds]),
        "floor_fraction": bench.median([r[2] / r[0] for r in rounds]),
        "torch_ratio": bench.median([r[1] / r[0] for r in rounds]),
    }
    if not all(same for *_, same in rounds):
        print(f"batch {rows}: the texts differ")
    return found


def quantised(model: Model) -> float:
    """Mean KL(unquantised || int8) in nats a token on the model's own greedy text."""
    numbers = settings(model.config.vocab_size)
    text = run(model, None, prompt(1, NEW), jax.random.key(0), numbers).tokens[:, :NEW]
    tokens = jnp.concatenate([prompt(1, NEW).tokens, text], axis=1)
    small = Model(serve_params(load_pretrained(FOLDER)[0], model.config, scan_layers=False, int8=True), model.config)
    whole, rough = (jax.nn.log_softmax(forward(m.params, m.config, tokens)) for m in (model, small))
    return float(jnp.mean(jnp.sum(jnp.exp(whole) * (whole - rough), axis=-1)))


FOLDER = DEFAULT


def main() -> None:
    """Measure and print."""
    global FOLDER
    parser = bench.parser(__doc__)
    parser.add_argument("model", nargs="?", default=DEFAULT, help="a Hugging Face folder")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--torch", action="store_true", help="(the rival's process)")
    arguments = parser.parse_args()
    if arguments.torch:
        torch_child(arguments.model)
        return
    FOLDER = arguments.model
    params, shape = load_pretrained(arguments.model)
    model = Model(serve_params(params, shape, scan_layers=False), shape)
    rows, figures = [], {}
    with bench.Worker([sys.executable, __file__, arguments.model, "--torch"]) as rival:
        for batch in arguments.batch:
            found = measure(model, rival, batch, arguments.runs)
            rows.append([f"batch {batch}", *found.values()])
            figures |= {f"{name}_b{batch}": value for name, value in found.items()}
    figures["int8_kl"] = quantised(model)
    columns = ["", "ours ms/token", "torch ms/token", "floor ms/token", "floor / ours", "torch / ours"]
    bench.show(f"{arguments.model}, float32, {NEW} tokens", columns, rows)
    print(f"int8 weights: KL(float32 || int8) {figures['int8_kl']:.2e} nats a token")
    bench.save(arguments.json, figures)


if __name__ == "__main__":
    main()
