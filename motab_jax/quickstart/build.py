"""Trains the shipped pair: a teacher that solves both shipped tasks, and a student that solves some arithmetic.

    python -m motab_jax.quickstart.build [--out FOLDER] [--seed N] [--only teacher|student]

Both train on golden completions (of data/tasks/arithmetic.py, the teacher of data/tasks/pointers.py too) by next-token
cross-entropy, with AdamW in float32, short problems first. The teacher trains to the end of its plan, in rounds. The
student stops in a range of low accuracy: where a measurement is above the range, training returns to the last
measurement and measures more often.
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
from jaxtyping import Array, Bool, Float32, Int32

from motab_jax.config import UserError
from motab_jax.data.steps import compile_delimiter
from motab_jax.data.tasks import arithmetic
from motab_jax.data.tokenizer import load_tokenizer, token_bytes
from motab_jax.distill.optimizer import make_optimizer, make_schedule
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.hf.pretrained import save_pretrained
from motab_jax.models.transformer import Model, Params, forward, init
from motab_jax.quickstart.plans import PLANS, Plan, Round, RowsPlan, Stage
from motab_jax.rollout import MonitorSpec, Prompts, RolloutConfig, SamplingSpec, rollout

DELIMITER = "\n"  # a line is a step
MAX_NEW_TOKENS = 96  # the longest golden completion has 84
PROMPT_COLUMNS = 40  # the longest prompt of both tasks: <bos>, twelve arrows and their commas, key, hops, =
REPORT_PROMPTS, CHECK_PROMPTS = 1000, 256
REPORT_SEED, CHECK_SEED = 1, 2  # of the held-out prompts
EVAL_ROWS = 256
REPORT_EVERY = 50  # steps


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Shares of greedy completions with a correct answer, and with every line correct; the longest completion."""

    answer: float
    chain: float
    tokens: int  # the stop token included
    prompts: int

    def __str__(self) -> str:
        return (
            f"answers {self.answer:.2%}, whole chains {self.chain:.2%} of {self.prompts} held-out prompts, "
            f"longest completion {self.tokens} tokens"
        )


# Tokens, and which of them are trained on.
Group = tuple[Int32[np.ndarray, "N T"], Bool[np.ndarray, "N T"]]


def batches(stages: tuple[Stage, ...], tokenizer: Any, seed: str) -> Iterator[tuple[Group, ...]]:
    """Training batches of a round: for each update, a group of rows for each entry of its stage.

    Problems are drawn anew for every batch, from the split `train`.
    """
    rng = random.Random(seed)
    for stage in stages:
        for _ in range(stage.steps):
            yield tuple(make_group(rows, tokenizer, rng) for rows in stage.rows)


def make_group(plan: RowsPlan, tokenizer: Any, rng: random.Random) -> Group:
    """Rows <bos> text <eos>, padded on the right; the end token is trained on."""
    tokens = np.full((plan.rows, plan.columns), tokenizer.pad_token_id, np.int32)
    trained = np.zeros((plan.rows, plan.columns), bool)
    for row in range(plan.rows):
        text, marked = plan.sample(rng)
        ids = [*tokenizer.encode(text), tokenizer.eos_token_id]
        tokens[row, : len(ids)], trained[row, 1 : len(ids)] = ids, [*marked, True]
    return tokens, trained


def loss(params: Params, config: ModelConfig, groups: tuple[tuple[jax.Array, jax.Array], ...]) -> Float32[Array, ""]:
    """Mean cross-entropy of all trained tokens, in nats."""
    total = count = jnp.float32(0.0)
    for tokens, trained in groups:
        logits, targets, weight = forward(params, config, tokens[:, :-1]), tokens[:, 1:], trained[:, 1:]
        total += jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, targets) * weight)
        count += jnp.sum(weight)
    return total / count


class Learner:
    """A model in training: parameters, optimizer state, and the jitted update. Snapshots are references."""

    def __init__(self, config: ModelConfig, seed: int):
        self.config = config
        self.params = init(config, jax.random.key(seed), std=0.04)

    def begin(self, plan: Round) -> None:
        """Start a round: a new schedule and a new optimizer state."""
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
        """The parameters of now, with their shape."""
        return Model(self.params, self.config)

    def update(self, groups: tuple[Group, ...]) -> Float32[Array, ""]:
        """One update; returns the batch's loss before it."""
        self.params, self.optimizer_state, value = self._step(self.params, self.optimizer_state, groups)
        return value

    def snapshot(self) -> tuple[Params, Any]:
        """What `restore` needs to come back to this update."""
        return self.params, self.optimizer_state

    def restore(self, snapshot: tuple[Params, Any]) -> None:
        """Go back to the update of a snapshot."""
        self.params, self.optimizer_state = snapshot


def measure_accuracy(model: Model, tokenizer: Any, count: int, seed: int, task: ModuleType = arithmetic) -> Accuracy:
    """Greedy accuracy of a model on held-out problems.

    Args:
      model: parameters and architecture.
      tokenizer: of both tasks.
      count: number of problems.
      seed: of the problems.
      task: a module of data/tasks/.
    """
    problems = task.problems(count, seed=seed, split="held_out")
    completions: list[tuple[str, int]] = []
    for start in range(0, count, EVAL_ROWS):
        completions += complete(model, tokenizer, problems[start : start + EVAL_ROWS])
    right = [arithmetic.final_answer(text) == p.answer for p, (text, _) in zip(problems, completions, strict=True)]
    exact = [text == task.solution(p) for p, (text, _) in zip(problems, completions, strict=True)]
    return Accuracy(float(np.mean(right)), float(np.mean(exact)), max(n for _, n in completions), count)


def complete(model: Model, tokenizer: Any, problems: list[Any]) -> list[tuple[str, int]]:
    """Greedy completions: the text and number of tokens of each. Batches are padded, to compile once."""
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
    """Train one model to the end of its plan, with lines of progress.

    Args:
      name: of the model, in the lines.
      plan: what it trains on.
      tokenizer: of both tasks.
      seed: of the initial weights and of the problems.

    Returns:
      The trained model.
    """
    learner = Learner(plan.config, seed)
    print(f"{name}: {sum(w.size for w in jax.tree.leaves(learner.params)):,} parameters, seed {seed}", flush=True)
    for number, round_plan in enumerate(plan.rounds):
        learner.begin(round_plan)
        if train_round(name, plan, round_plan, learner, tokenizer, f"{name}/{seed}" + "/1" * number):
            break
    return learner.model


def train_round(name: str, plan: Plan, round_plan: Round, learner: Learner, tokenizer: Any, seed: str) -> bool:
    """Train one round.

    Args:
      name: of the model, in the printed lines.
      plan: the model's.
      round_plan: the round.
      learner: the model in training; it is updated.
      tokenizer: of both tasks.
      seed: of the problems.

    Returns:
      True where it ended early because the accuracy is in the wanted range.
    """
    began = time.monotonic()
    every, snapshot, since = plan.check_every, learner.snapshot(), 0
    for number, groups in enumerate(batches(round_plan.stages, tokenizer, seed), 1):
        value, since = learner.update(groups), since + 1
        if number % REPORT_EVERY == 0 or number == round_plan.steps:
            print(f"{name}: step {number}, loss {float(value):.4f}, {time.monotonic() - began:.0f} s", flush=True)
        if plan.wanted is None or since < every:
            continue
        since, share = 0, measure_accuracy(learner.model, tokenizer, CHECK_PROMPTS, CHECK_SEED).answer
        print(f"{name}: step {number}, greedy answers {share:.1%}", flush=True)
        if share > plan.wanted[1]:
            learner.restore(snapshot)
            every = max(every // 2, 1)
        elif share >= plan.wanted[0]:
            return True
        snapshot = learner.snapshot()
    return False


def make_tokenizer() -> Any:
    """The tokenizer of both tasks, loaded by transformers."""
    with tempfile.TemporaryDirectory() as scratch:
        arithmetic.write_tokenizer(scratch)
        return load_tokenizer(scratch)


def save(folder: Path, model: Model, tokenizer: Any) -> None:
    """Write a model's folder: weights, configuration, special tokens, tokenizer."""
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    save_pretrained(folder, model.params, model.config, generation_config=ids)
    arithmetic.write_tokenizer(folder)


def build(name: str, folder: Path, seed: int) -> dict[str, Accuracy]:
    """Train a model of the pair, measure it and write it to `folder/name`.

    Args:
      name: `teacher` or `student`.
      folder: of the pair.
      seed: of the initial weights and of the problems.

    Returns:
      The accuracy on each of its tasks.

    Raises:
      UserError: if the folder can't be written.
    """
    began = time.monotonic()
    tokenizer = make_tokenizer()
    model = train(name, PLANS[name], tokenizer, seed)
    accuracies = {
        task.__name__.rpartition(".")[2]: measure_accuracy(model, tokenizer, REPORT_PROMPTS, REPORT_SEED, task)
        for task in PLANS[name].tasks
    }
    save(folder / name, model, tokenizer)
    size = (folder / name / "model.safetensors").stat().st_size
    for task, accuracy in accuracies.items():
        print(f"{name}, {task}: {accuracy}", flush=True)
    print(f"{name}: {size:,} bytes, {time.monotonic() - began:.0f} s; written to {folder / name}", flush=True)
    return accuracies


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m motab_jax.quickstart.build", description="Train the shipped pair.")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart_pair"), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=sorted(PLANS), help="train one of the two")
    args = parser.parse_args(arguments)
    try:
        for name in [args.only] if args.only else PLANS:
            build(name, args.out, args.seed)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
