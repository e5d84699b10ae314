"""Temporary memory of the loss and its gradient: all logits at once against a chunk of them at a time.

    python benchmarks/memory.py [--json FILE] [--tpu]

From hidden states to the loss and its gradient in the student's states and head, both heads of Qwen3 shapes (student
2560 wide, teacher 5120, vocabulary 151,936): what the update does for each micro-batch. Nothing is run: XLA says what
the compiled programs need besides arguments and results, on this CPU (all in float32) and, where libtpu is installed
(the extra [tpu]; --tpu insists on it), on a TPU v5p, which unlike smaller chips has room for the naive one (teacher in
bfloat16, student as named). The TPU's copy of a float32 head in bfloat16 is among the temporaries.
"""

import functools
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no device is opened, so there is nothing to lock

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

sys.path.insert(0, str(Path(__file__).parent))
import bench

from motab_jax.config import UserError
from motab_jax.distill import Objective, TargetBatch, TokenLoss
from motab_jax.distill.objective import objective_loss_sums, token_losses, tokens_per_chunk
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.transformer import Model, unembed
from motab_jax.planning.topologies import topology_devices

TOKENS, VOCAB, STUDENT, TEACHER = 8192, 151_936, 2560, 5120
LOSS = "reverse_kl"
CASES = {  # tokens, vocabulary, the student's dtype
    "float32": (TOKENS, VOCAB, jnp.float32),
    "float32, more tokens": (4 * TOKENS, VOCAB, jnp.float32),
    "float32, smaller vocabulary": (TOKENS, VOCAB // 4, jnp.float32),
    "bfloat16": (TOKENS, VOCAB, jnp.bfloat16),
}
KEYS = {("tpu", "float32"): "", ("tpu", "bfloat16"): "_bfloat16", ("cpu", "float32"): "_cpu"}


def shape_of(vocab: int, width: int) -> ModelConfig:
    """A model of which only the tied head matters."""
    return ModelConfig("qwen3", vocab, width, width, 1, 2, 2, 2, 8, tied=True)


def arguments(tokens: int, vocab: int, dtype, judged, place) -> tuple:
    """Student's head and states, teacher's head, batch and weights, all abstract and on one device."""

    def array(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    whole, row = array((1, tokens), jnp.int32), array((1, tokens), jnp.float32)
    batch = TargetBatch(whole, whole, whole, array((1, tokens, TEACHER), judged))
    heads = (array((vocab, width), kind) for width, kind in ((STUDENT, dtype), (TEACHER, judged)))
    student, teacher = ({"embed": head} for head in heads)
    return student, array((1, tokens, STUDENT), dtype), Model(teacher, shape_of(vocab, TEACHER)), batch, row


def naive(objective: Objective, head, hidden, teacher: Model, batch: TargetBatch, weight):
    """All logits, and differentiation."""

    def loss(head, hidden):
        ours = unembed(head, shape_of(objective.vocab_size, STUDENT), hidden[:, :-1])
        theirs = unembed(teacher.params, teacher.config, batch.teacher_hidden[:, 1:])
        each = token_losses(ours, theirs, batch.tokens[:, 1:], batch.kinds[:, 1:], objective)
        return jnp.sum(each * weight[:, 1:])

    return jax.value_and_grad(loss, argnums=(0, 1))(head, hidden)


def chunked(objective: Objective, platform: str, head, hidden, teacher: Model, batch: TargetBatch, weight):
    """As the update does it."""
    chunk, student = tokens_per_chunk(objective.vocab_size, platform), shape_of(objective.vocab_size, STUDENT)
    zeros = jnp.zeros((1, *head["embed"].shape), jnp.float32)
    return objective_loss_sums(student, objective, chunk, head, hidden, teacher, batch, weight, zeros)


def temporaries(platform: str, device, tokens: int, vocab: int, dtype) -> tuple[int, int]:
    """Bytes of temporaries, naive and ours."""
    objective = Objective(*(4 * [TokenLoss(LOSS)]), vocab_size=vocab)
    contestants = functools.partial(naive, objective), functools.partial(chunked, objective, platform)
    judged = jnp.float32 if platform == "cpu" else jnp.bfloat16
    given = arguments(tokens, vocab, dtype, judged, SingleDeviceSharding(device))
    compiled = (jax.jit(one).lower(*given).compile() for one in contestants)
    return tuple(one.memory_analysis().temp_size_in_bytes for one in compiled)


def devices(insist: bool) -> dict:
    """Platform -> a device to compile for."""
    found = {"cpu": jax.devices("cpu")[0]}
    try:
        found["tpu"] = topology_devices("v5p:2x2x1")[0]
    except UserError as error:
        if insist:
            raise
        print(f"no TPU figures: {error}", file=sys.stderr)
    return found


def main() -> None:
    """Compile and print."""
    parser = bench.parser(__doc__)
    parser.add_argument("--tpu", action="store_true", help="fail without libtpu")
    options = parser.parse_args()
    table, figures = [], {}
    for platform, device in devices(options.tpu).items():
        for name, (tokens, vocab, dtype) in CASES.items():
            if platform == "cpu" and dtype == jnp.bfloat16:
                continue
            plain, ours = temporaries(platform, device, tokens, vocab, dtype)
            sizes = f"{tokens:,}", f"{vocab:,}", f"{plain / 2**20:,.0f}", f"{ours / 2**20:,.0f}"
            table.append([f"{platform}, {name}", *sizes, ours / plain])
            if (platform, name) in KEYS:
                key = KEYS[platform, name]
                figures |= {f"loss_fraction_of_naive{key}": ours / plain, f"loss_temp_bytes{key}": ours}
    bench.show("Temporaries of the loss", ["", "tokens", "vocabulary", "naive MiB", "ours MiB", "of naive"], table)
    bench.save(options.json, figures)


if __name__ == "__main__":
    main()
