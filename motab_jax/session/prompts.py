"""A session's prompts: read, encoded, and put on the devices batch by batch.

Left out: where prompts come from (data/prompts.py), completions that the data gives (training/batches.py).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32

from motab_jax.config import Config
from motab_jax.config.prompts import EvalSection
from motab_jax.data.prompts import encode_all, has_held_out, load_prompts
from motab_jax.data.records import Prompt
from motab_jax.data.templates import PromptForm
from motab_jax.rollout import Prompts
from motab_jax.rollout.config import UNLIMITED
from motab_jax.runtime.mesh import local_row_indices, make_global_batch, padded_rows
from motab_jax.session.session import Session


@dataclasses.dataclass(frozen=True)
class EncodedPrompts:
    """Prompts and their token ids, in the same order."""

    prompts: list[Prompt]
    tokens: list[list[int]]

    @property
    def width(self) -> int:
        """Columns of a batch: the length of the longest prompt."""
        return max(len(ids) for ids in self.tokens)

    def batch(self, indices: Sequence[int], row_ids: Sequence[int], mesh: Mesh, rows: int | None = None) -> Prompts:
        """A batch of prompts on the devices, left-padded; each process fills in its own rows.

        Rows are added until they divide over the devices: copies of the last prompt in which nothing is generated.

        Args:
          indices: which prompts, one for each row.
          row_ids: what the sampling keys of each row fold.
          mesh: the devices.
          rows: the least number of rows; None: as many as there are indices.
        """
        count, total = len(indices), padded_rows(mesh, rows or len(indices))
        local = local_row_indices(mesh, total)
        given = np.minimum(local, count - 1)
        tokens, lengths = pad_rows([self.tokens[indices[row]] for row in given], self.width, left=True)
        ids = np.array(row_ids, np.int32)[given]
        limits = np.where(local < count, UNLIMITED, 0).astype(np.int32)
        return Prompts(*make_global_batch(mesh, total, (tokens, lengths, ids, limits)))


def pad_rows(
    rows: Sequence[Sequence[int]], width: int, *, left: bool
) -> tuple[Int32[np.ndarray, "R W"], Int32[np.ndarray, "R"]]:
    """Rows of token ids as one table.

    Args:
      rows: R rows, none longer than `width`.
      width: W, columns of the table.
      left: pad on the left; otherwise on the right.

    Returns:
      The table i32[R, W], padded with zeros, and the rows' lengths i32[R].

    >>> pad_rows([[7], [8, 9]], 3, left=True)[0].tolist()
    [[0, 0, 7], [0, 8, 9]]
    """
    table = np.zeros((len(rows), width), np.int32)
    for row, ids in zip(table, rows, strict=True):
        row[width - len(ids) if left else 0 :][: len(ids)] = ids
    return table, np.array([len(ids) for ids in rows], np.int32)


def read_prompts(config: Config) -> list[Prompt]:
    """The training split as its source gives it; no model is needed."""
    return load_prompts(config.data, split="train", count=config.data.count, seed=config.data.shuffle_seed)


def training_prompts(session: Session, prompts: list[Prompt] | None = None) -> EncodedPrompts:
    """The training split, encoded; `prompts` is what `read_prompts` gave, where that was called before."""
    prompts = read_prompts(session.config) if prompts is None else prompts
    return _encode(session, prompts, session.config.data.path)


def held_out_prompts(session: Session, section: EvalSection) -> EncodedPrompts | None:
    """The prompts of an evaluation, encoded; None where neither `section` nor `data` has any.

    Args:
      session: gives the tokenizer and the data section.
      section: the evaluation; without a source of its own it takes the held-out split of `data`.
    """
    data = session.config.data
    if section.source is None:
        if not has_held_out(data.source):
            return None
        prompts = load_prompts(data, split="held_out", count=section.prompts, seed=data.shuffle_seed)
        return _encode(session, prompts, data.path)
    prompts = load_prompts(section, split=section.split, count=section.prompts, seed=data.shuffle_seed)
    return _encode(session, prompts, section.path)


def _encode(session: Session, prompts: list[Prompt], path: str | None) -> EncodedPrompts:
    data = session.config.data
    tokens = encode_all(
        prompts,
        session.tokenizer,
        PromptForm(data.chat_template, data.thinking, data.template_args),
        max_prompt_tokens=data.max_prompt_tokens,
        path=path,
    )
    session.shared.check(tokens, [f"prompt '{prompt.id}'" for prompt in prompts])
    return EncodedPrompts(prompts, tokens)
