"""Completions that come with the data: their token ids, which follow the prompt's.

A completion continues the prompt as its model would: a <think> that the chat template has opened is not opened again,
and a text that ends in a stop token has no second one. Left out: completions that are chat messages.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from motab_jax.config import UserError
from motab_jax.data.records import Prompt
from motab_jax.data.templates import THOUGHT
from motab_jax.data.tokenizer import decode, opens_thought
from motab_jax.runtime.notices import notice

THOUGHT_END = "</think>"


def encode_completions(
    prompts: Sequence[Prompt],
    prompt_tokens: Sequence[Sequence[int]],
    tokenizer: Any,
    *,
    stop: int,
    stop_ids: Sequence[int],
    path: str | Path | None,
) -> list[list[int]]:
    """Token ids of every prompt's completion, with the stop token at the end.

    Args:
      prompts: the prompts, each with a completion.
      prompt_tokens: their token ids.
      tokenizer: of transformers.
      stop: the id of the stop token of texts that end in none.
      stop_ids: all ids that end a completion.
      path: the data file, for the error.

    Raises:
      UserError: naming the first prompt that has no completion, or a blank one.
    """
    added = tokenizer.added_tokens_decoder
    stops = {added[int(index)].content: int(index) for index in stop_ids if int(index) in added}
    encoded, repeated, unclosed = [], 0, 0
    for prompt, ids in zip(prompts, prompt_tokens, strict=True):
        text = prompt.completion or ""
        if not text.strip():
            where = f"{path}: prompt '{prompt.id}'" if path else f"prompt '{prompt.id}'"
            raise UserError(
                f"{where} has no completion, which steps with rollout.off_policy=data train on; data.fields.completion "
                "says which field holds it. Drop the prompt, or let the teacher generate: rollout.off_policy=teacher"
            )
        if opens_thought(tokenizer, ids):
            unclosed += THOUGHT_END not in text
            if text.lstrip().startswith(THOUGHT):
                space = decode(tokenizer, ids, special=True).rpartition(THOUGHT)[2]
                text, repeated = text.lstrip().removeprefix(THOUGHT).removeprefix(space), repeated + 1
        text, end = _without_stop(text, stops)
        encoded.append([*map(int, tokenizer.encode(text, add_special_tokens=False)), stop if end is None else end])
    if repeated:
        notice(f"{repeated} completions begin with {THOUGHT}, which the chat template has opened already: left out")
    if unclosed:
        notice(f"{unclosed} completions have no {THOUGHT_END}, though the chat template opens a thought")
    return encoded


def _without_stop(text: str, stops: dict[str, int]) -> tuple[str, int | None]:
    """The text without the stop token at its end, and that token's id; None where it ends in none."""
    trimmed = text.rstrip()
    for content, index in stops.items():
        if trimmed.endswith(content):
            return trimmed.removesuffix(content), index
    return text, None
