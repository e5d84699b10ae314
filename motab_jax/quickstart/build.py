"""Makes the shipped pair: a teacher that solves both shipped tasks, and a student that has begun to learn arithmetic.

    python -m motab_jax.quickstart.build [--out FOLDER] [--seed N] [--only teacher|student]

Both learn golden chains (data/arithmetic.py, the teacher data/pointers.py too) by next-token cross-entropy on the
completion, with AdamW in float32, short chains first. The teacher trains to the end of its plan, in rounds. The student
stops while it is still poor: whenever a measurement has overshot the wanted range, training goes back to the last one
and measures more often.
Left out: distillation, which is what the pair is for, and machines with several devices.
"""

import argparse
import dataclasses
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from motab_jax.config import UserError
from motab_jax.data.steps import compile_delimiter
from motab_jax.data.tasks import arithmetic
from motab_jax.data.tokenizer import load_tokenizer, token_bytes
from motab_jax.distill.optimizer import make_optimizer, make_schedule
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.hf.pretrained import save_pretrained
from motab_jax.models.transformer import Model, Params, forward, init
from motab_jax.quickstart.plans import PLANS, Part, Plan, Round, Stage
from motab_jax.rollout import MonitorSpec, Prompts, RolloutConfig, SamplingSpec, rollout

DELIMITER = "\n"  # a line is a step
MAX_NEW_TOKENS = 96  # the longest golden completion has 84
PROMPT_COLUMNS = 40  # the longest prompt of both tasks: <bos>, twelve arrows and their commas, key, hops, =
REPORT_PROMPTS, CHECK_PROMPTS = 1000, 256
REPORT_SEED, CHECK_SEED = 1, 2  # of the held-out prompts
EVAL_ROWS = 256
SAY_EVERY = 50  # steps


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Of greedy completions: the share with the right final answer, with every line right, and the longest one."""

    answer: float
    chain: float
    tokens: int  # the stop token included
    prompts: int

    def __str__(self) -> str:
        return (
            f"answers {self.answer:.2%}, whole chains {self.chain:.2%} of {self.prompts} held-out prompts, "
            f"longest completion {self.tokens} tokens"
        )


Group = tuple[np.ndarray, np.ndarray]  # tokens i32[B,T] and which of them are trained on, bool[B,T]


def batches(stages: tuple[Stage, ...], tokenizer: Any, seed: str) -> Iterator[tuple[Group, ...]]:
    """Training batches of a round, a group for each part of the stage.

    Problems are drawn anew for every batch; those of the held-out split are thrown away.
    """
    rng = random.Random(seed)
    for stage in stages:
        for _ in range(stage.steps):
            yield tuple(group(part, tokenizer, rng) for part in stage.parts)


def group(part: Part, tokenizer: Any, rng: random.Random) -> Group:
    """Texts of a batch's part: <bos> text <eos>, padded on the right; the end token is trained on."""
    tokens = np.full((part.rows, part.columns), tokenizer.pad_token_id, np.int32)
    trained = np.zeros((part.rows, part.columns), bool)
    for row in range(part.rows):
        text, wanted = part.text(rng)
        ids = [*tokenizer.encode(text), tokenizer.eos_token_id]
        tokens[row, : len(ids)], trained[row, 1 : len(ids)] = ids, [*wanted, True]
    return tokens, trained


def loss(params: Params, config: ModelConfig, groups: tuple[Group, ...]) -> jax.Array:
    """Mean cross-entropy of all trained tokens."""
    total = count = jnp.float32(0.0)
    for tokens, trained in groups:
        logits, targets, weight = forward(params, config, tokens[:, :-1]), tokens[:, 1:], trained[:, 1:]
        total += jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, targets) * weight)
        count += jnp.sum(weight)
    return total / count


class Learner:
    """A model in training: parameters, optimizer state, and the jitted step. Snapshots are plain references."""

    def __init__(self, config: ModelConfig, seed: int):
        self.config = config
        self.params = init(config, jax.random.key(seed), std=0.04)

    def begin(self, plan: Round) -> None:
        """Start a round: a new schedule and an optimizer that remembers nothing."""
        schedule = make_schedule(plan.schedule, peak=plan.learning_rate, floor=0.0, steps=plan.steps, warmup_ratio=0.05)
        optimizer = make_optimizer(schedule, weight_decay=0.01, clip=1.0, beta1=0.9, beta2=0.98)
        self.optimizer_state = optimizer.init(self.params)

        @jax.jit
        def step(params, optimizer_state, groups):
            value, gradient = jax.value_and_grad(loss)(params, self.config, groups)
            change, optimizer_state = optimizer.update(gradient, optimizer_state, params)
            return optax.apply_updates(params, change), optimizer_state, value

        self._step = step

    @property
    def model(self) -> Model:
        return Model(self.params, self.config)

    def learn(self, groups: tuple[Group, ...]) -> jax.Array:
        """One update; the batch's loss before it, f32[]."""
        self.params, self.optimizer_state, value = self._step(self.params, self.optimizer_state, groups)
        return value

    def snapshot(self) -> tuple[Params, Any]:
        return self.params, self.optimizer_state

    def restore(self, snapshot: tuple[Params, Any]) -> None:
        self.params, self.optimizer_state = snapshot


def measure_accuracy(model: Model, tokenizer: Any, count: int, seed: int, task: ModuleType = arithmetic) -> Accuracy:
    """Greedy accuracy over `count` held-out problems of a task's own lengths; the task is a module of data/."""
    problems = task.problems(count, seed=seed, split="held_out")
    written: list[tuple[str, int]] = []
    for start in range(0, count, EVAL_ROWS):
        written += complete(model, tokenizer, problems[start : start + EVAL_ROWS])
    right = [arithmetic.final_answer(text) == p.answer for p, (text, _) in zip(problems, written, strict=True)]
    exact = [text == task.solution(p) for p, (text, _) in zip(problems, written, strict=True)]
    return Accuracy(float(np.mean(right)), float(np.mean(exact)), max(n for _, n in written), count)


def complete(model: Model, tokenizer: Any, problems: list[Any]) -> list[tuple[str, int]]:
    """Greedy completions: each one's text and its number of tokens. Batches are filled up, so as to compile once."""
    rows = min(EVAL_ROWS, 1 << (len(problems) - 1).bit_length())
    tokens, lengths = np.zeros((rows, PROMPT_COLUMNS), np.int32), np.ones(rows, np.int32)
    for row, problem in enumerate(problems):
        ids = tokenizer.encode(problem.prompt)
        tokens[row, PROMPT_COLUMNS - len(ids) :], lengths[row] = ids, len(ids)
    prompts = Prompts(jnp.asarray(tokens), jnp.asarray(lengths), jnp.arange(rows, dtype=jnp.int32))
    log = jax.device_get(_rollout(model, None, prompts, jax.random.key(0), _greedy(tokenizer)))
    used = [log.tokens[row, : log.length[row]].tolist() for row in range(len(problems))]
    return [(tokenizer.decode(ids, skip_special_tokens=True), len(ids)) for ids in used]


_rollout = jax.jit(rollout)


def _greedy(tokenizer: Any) -> RolloutConfig:
    zero = jnp.float32(0.0)
    return RolloutConfig(
        compile_delimiter(DELIMITER, token_bytes(tokenizer)),
        stop_ids=jnp.asarray([tokenizer.eos_token_id]),
        eps0=zero,
        theta=zero,
        vocab_size=len(tokenizer),
        max_new_tokens=MAX_NEW_TOKENS,
        sampling=SamplingSpec(temperature=0.0),
        monitor=MonitorSpec(enabled=False),
    )


def train(name: str, plan: Plan, tokenizer: Any, seed: int) -> Model:
    """Train one model by its plan, with a line of progress now and then; returns it as it is when the plan ends."""
    learner = Learner(plan.config, seed)
    print(f"{name}: {sum(w.size for w in jax.tree.leaves(learner.params)):,} parameters, seed {seed}", flush=True)
    for number, part in enumerate(plan.rounds):
        learner.begin(part)
        if train_round(name, plan, part, learner, tokenizer, f"{name}/{seed}" + "/1" * number):
            break
    return learner.model


def train_round(name: str, plan: Plan, part: Round, learner: Learner, tokenizer: Any, seed: str) -> bool:
    """Train one round; True if it ended early because the accuracy lies in the wanted range."""
    began = time.monotonic()
    every, safe, since = plan.check_every, learner.snapshot(), 0
    for number, groups in enumerate(batches(part.stages, tokenizer, seed), 1):
        value, since = learner.learn(groups), since + 1
        if number % SAY_EVERY == 0 or number == part.steps:
            print(f"{name}: step {number}, loss {float(value):.4f}, {time.monotonic() - began:.0f} s", flush=True)
        if plan.wanted is None or since < every:
            continue
        since, share = 0, measure_accuracy(learner.model, tokenizer, CHECK_PROMPTS, CHECK_SEED).answer
        print(f"{name}: step {number}, greedy answers {share:.1%}", flush=True)
        if share > plan.wanted[1]:
            learner.restore(safe)
            every = max(every // 2, 1)
        elif share >= plan.wanted[0]:
            return True
        safe = learner.snapshot()
    return False


def make_tokenizer() -> Any:
    """The tokenizer of both tasks, loaded as from a model's folder."""
    with tempfile.TemporaryDirectory() as scratch:
        arithmetic.write_tokenizer(scratch)
        return load_tokenizer(scratch)


def save(folder: Path, model: Model, tokenizer: Any) -> None:
    """Write a model's folder: weights, configuration, special tokens, tokenizer."""
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    save_pretrained(folder, model.params, model.config, generation_config=ids)
    arithmetic.write_tokenizer(folder)


def build(name: str, folder: Path, seed: int) -> dict[str, Accuracy]:
    """Train a model of the pair, measure it, and write its folder `folder/name`. UserError if it can't be written."""
    began = time.monotonic()
    tokenizer = make_tokenizer()
    model = train(name, PLANS[name], tokenizer, seed)
    found = {
        task.__name__.rpartition(".")[2]: measure_accuracy(model, tokenizer, REPORT_PROMPTS, REPORT_SEED, task)
        for task in PLANS[name].tasks
    }
    save(folder / name, model, tokenizer)
    size = (folder / name / "model.safetensors").stat().st_size
    for task, accuracy in found.items():
        print(f"{name}, {task}: {accuracy}", flush=True)
    print(f"{name}: {size:,} bytes, {time.monotonic() - began:.0f} s; written to {folder / name}", flush=True)
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m motab_jax.quickstart.build", description="Train the shipped pair.")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart_pair"), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=sorted(PLANS), help="train one of the two")
    given = parser.parse_args(arguments)
    try:
        for name in [given.only] if given.only else PLANS:
            build(name, given.out, given.seed)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
