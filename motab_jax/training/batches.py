"""The batch that a step trains on: its prompts, and the completions where the data gives them.

In on-policy steps the student generates them. The others take the data's completions, or the teacher generates them.
"""

import dataclasses
import random
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from motab_jax.config import Config
from motab_jax.data.completions import encode_completions
from motab_jax.data.prompts import PromptStream
from motab_jax.rollout import Prompts
from motab_jax.rollout.off_policy import Completions
from motab_jax.runtime.mesh import local_row_indices, make_global_batch, padded_rows
from motab_jax.session.prompts import EncodedPrompts, pad_rows
from motab_jax.session.session import Session


@dataclasses.dataclass(frozen=True)
class EncodedCompletions:
    """The data's completions as token ids, truncated to rollout.max_new_tokens."""

    tokens: list[list[int]]
    width: int  # rollout.max_new_tokens
    truncated: int  # how many completions were longer
    longest: int  # tokens of the longest, before truncation

    def __str__(self) -> str:
        return (
            f"{self.truncated} of {len(self.tokens)} completions are longer than rollout.max_new_tokens={self.width}: "
            f"they are truncated and have no stop token; the longest needs {self.longest}"
        )

    def batch(self, indices: Sequence[int], mesh: Mesh) -> Completions:
        """The completions of these prompts on the devices, right-padded; each process fills in its own rows.

        Rows that are added until they divide over the devices have empty completions.
        """
        count, total = len(indices), padded_rows(mesh, len(indices))
        rows = [self.tokens[indices[row]] if row < count else [] for row in local_row_indices(mesh, total)]
        return Completions(*make_global_batch(mesh, total, pad_rows(rows, self.width, left=False)))


def training_completions(session: Session, prompts: EncodedPrompts) -> EncodedCompletions | None:
    """The prompts' completions, truncated to rollout.max_new_tokens; None where no step trains on them."""
    config = session.config
    if config.rollout.on_policy == 1 or config.rollout.off_policy != "data":
        return None
    tokens = encode_completions(
        prompts.prompts,
        prompts.tokens,
        session.tokenizer,
        stop=session.stop_id,
        stop_ids=session.rollout_config.stop_ids.tolist(),
        path=config.data.path,
    )
    session.shared.check(tokens, [f"the completion of prompt '{prompt.id}'" for prompt in prompts.prompts])
    width, longest = config.rollout.max_new_tokens, max(len(ids) for ids in tokens)
    truncated = sum(len(ids) > width for ids in tokens)
    return EncodedCompletions([ids[:width] for ids in tokens], width, truncated, longest)


@dataclasses.dataclass(frozen=True)
class Batch:
    """The batch of one step, on the devices."""

    indices: list[int]  # of the prompts, before they are repeated for samples_per_prompt
    prompts: Prompts
    on_policy: bool
    completions: Completions | None  # the data's; None where student or teacher generate
    key: jax.Array  # the step's PRNG key
    stream: dict[str, int]  # the stream's state after this batch
    epoch: int


@dataclasses.dataclass(frozen=True)
class Batches:
    """A run's batches, one for each step, in the stream's order."""

    session: Session
    prompts: EncodedPrompts
    completions: EncodedCompletions | None
    stream: PromptStream

    def draw(self, step: int) -> Batch:
        """The next prompts of the stream, for `step`."""
        config, mesh, indices = self.session.config, self.session.mesh, next(self.stream)
        rows = [index for index in indices for _ in range(config.rollout.samples_per_prompt)]
        on_policy = is_on_policy(config, step)
        return Batch(
            indices=indices,
            prompts=self.prompts.batch(rows, range(len(rows)), mesh),
            on_policy=on_policy,
            completions=None if on_policy or self.completions is None else self.completions.batch(rows, mesh),
            key=jax.random.fold_in(jax.random.key(config.run.seed), step - 1),
            stream=self.stream.get_state(),
            epoch=self.stream.epoch,
        )


def open_batches(session: Session, prompts: EncodedPrompts) -> Batches:
    """The batches of a run over these prompts, from the beginning of the stream."""
    config = session.config
    stream = PromptStream(len(prompts.prompts), fresh_prompts(config), config.data.shuffle_seed)
    return Batches(session, prompts, training_completions(session, prompts), stream)


def is_on_policy(config: Config, step: int) -> bool:
    """Whether the student generates in this step: drawn for the whole batch (GKD, arXiv 2306.13649, algorithm 1).

    A fixed function of run.seed and the step, so that a resumed run draws as an uninterrupted one does.
    """
    # A text seed is hashed the same way on every platform.
    return random.Random(f"policy/{config.run.seed}/{step}").random() < config.rollout.on_policy


def fresh_prompts(config: Config) -> int:
    """How many prompts a step takes from the stream."""
    return config.rollout.batch_size // config.rollout.samples_per_prompt


def with_steps(config: Config, prompts: int) -> Config:
    """The configuration with run.steps set for run.epochs passes over so many prompts; unchanged without run.epochs."""
    if config.run.epochs is None:
        return config
    steps = -(-config.run.epochs * prompts // fresh_prompts(config))
    return config.model_copy(update={"run": config.run.model_copy(update={"steps": steps})})
