"""The tokens that end a completion: what a model's folder says of them, in three places, and its end token's text.

generation_config.json and config.json have `eos_token_id`, an id or a list of them; the tokenizer has an end token.
Published models name different ones in each (Llama 3.1: three in one file, one in another), so their union counts.
"""

from pathlib import Path
from typing import Any

from motab_jax.config import UserError
from motab_jax.data.tokenizer import vocab_size
from motab_jax.runtime.hub import find_folder, read_json

_FILES = ("generation_config.json", "config.json")


def stop_ids(tokenizer: Any, path_or_hub_id: str | Path) -> tuple[int, ...]:
    """Ids that end a completion: the tokenizer's end token first, then those of the model's two JSON files.

    Args:
      tokenizer: the model's.
      path_or_hub_id: the model.

    Raises:
      UserError: a file is damaged or names what is no id of the tokenizer, or there is no stop id.
    """
    ids = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    folder, size = find_folder(path_or_hub_id, _FILES), vocab_size(tokenizer)
    for path in [folder / name for name in _FILES if (folder / name).is_file()]:
        listed = read_json(path).get("eos_token_id")
        for value in listed if isinstance(listed, list) else [] if listed is None else [listed]:
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < size:
                raise UserError(
                    f"{path}: eos_token_id {value!r} is no token id; the tokenizer has the ids 0 to {size - 1}"
                )
            if value not in ids:
                ids.append(value)
    if not ids:
        files = " nor ".join(_FILES)
        raise UserError(f"{path_or_hub_id}: neither the tokenizer nor {files} names an end token (eos_token_id)")
    return tuple(ids)
