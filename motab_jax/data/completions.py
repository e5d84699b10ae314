"""Completions that come with the data: their token ids, which follow the prompt's.

Left out: completions that are chat messages. With a chat template the text continues the assistant's opened message.
"""

from pathlib import Path
from typing import Any

from motab_jax.config import UserError
from motab_jax.data.records import Prompt


def encode_completions(prompts: list[Prompt], tokenizer: Any, *, stop: int, path: str | Path | None) -> list[list[int]]:
    """Token ids of every prompt's completion, with the stop token at the end.

    Args:
      prompts: the prompts, each with a completion.
      tokenizer: of transformers.
      stop: the id of the stop token.
      path: the data file, for the error.

    Raises:
      UserError: naming the first prompt that has no completion, or a blank one.
    """
    encoded = []
    for prompt in prompts:
        if not (prompt.completion or "").strip():
            where = f"{path}: prompt '{prompt.id}'" if path else f"prompt '{prompt.id}'"
            raise UserError(
                f"{where} has no completion, which steps with rollout.off_policy=data train on; data.fields.completion "
                "says which field holds it. Drop the prompt, or let the teacher generate: rollout.off_policy=teacher"
            )
        encoded.append([*map(int, tokenizer.encode(prompt.completion, add_special_tokens=False)), stop])
    return encoded
