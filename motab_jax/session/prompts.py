"""A session's prompts: read, encoded, put onto the devices batch by batch."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from motab_jax.config import Config
from motab_jax.config.prompts import EvalSection
from motab_jax.data.prompts import encode_all, has_held_out, load_prompts
from motab_jax.data.records import Prompt
from motab_jax.rollout import Prompts
from motab_jax.rollout.config import UNLIMITED
from motab_jax.runtime.mesh import local_row_indices, make_global_batch
from motab_jax.session.session import Session


@dataclasses.dataclass(frozen=True)
class EncodedPrompts:
    """Prompts with their token ids, and the width that fits all of them."""

    prompts: list[Prompt]
    tokens: list[list[int]]

    @property
    def width(self) -> int:
        """Columns of a prompt batch."""
        return max(len(ids) for ids in self.tokens)

    def batch(self, indices: Sequence[int], row_ids: Sequence[int], mesh) -> Prompts:
        """The prompts of these indices, left-padded, rows over the mesh's batch axes; a process fills in its own."""
        mine = local_row_indices(mesh, len(indices))
        table, lengths = padded([self.tokens[indices[row]] for row in mine], self.width, left=True)
        numbers = np.array(row_ids, np.int32)[mine]
        part = Prompts(table, lengths, numbers, np.full_like(lengths, UNLIMITED))
        return make_global_batch(mesh, len(indices), part)


def padded(rows: Sequence[Sequence[int]], width: int, *, left: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows of token ids as a table i32[R,width], zeros on the left or right of each, and their lengths i32[R]."""
    table = np.zeros((len(rows), width), np.int32)
    for row, ids in zip(table, rows, strict=True):
        row[width - len(ids) if left else 0 :][: len(ids)] = ids
    return table, np.array([len(ids) for ids in rows], np.int32)


def read_prompts(config: Config) -> list[Prompt]:
    """The training split as its source gives it; no model is needed."""
    return load_prompts(config.data, split="train", count=config.data.count, seed=config.data.shuffle_seed)


def training_prompts(session: Session, prompts: list[Prompt] | None = None) -> EncodedPrompts:
    """The training split, encoded; `prompts` is what `read_prompts` gave, where that was called before."""
    found = read_prompts(session.config) if prompts is None else prompts
    return _encode(session, found, session.config.data.path)


def held_out_prompts(session: Session, section: EvalSection) -> EncodedPrompts | None:
    """The prompts of an evaluation, encoded; None where neither its section nor `data` offers any."""
    data = session.config.data
    if section.source is None:
        if not has_held_out(data.source):
            return None
        found = load_prompts(data, split="held_out", count=section.prompts, seed=data.shuffle_seed)
        return _encode(session, found, data.path)
    found = load_prompts(section, split=section.split, count=section.prompts, seed=data.shuffle_seed)
    return _encode(session, found, section.path)


def _encode(session: Session, prompts: list[Prompt], path: str | None) -> EncodedPrompts:
    data = session.config.data
    tokens = encode_all(
        prompts,
        session.tokenizer,
        chat_template=data.chat_template,
        thinking=data.thinking,
        max_prompt_tokens=data.max_prompt_tokens,
        path=path,
    )
    return EncodedPrompts(prompts, tokens)
