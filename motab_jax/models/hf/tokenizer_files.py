"""The files of a tokenizer in a model's folder: copied as they are from another folder, or written by transformers.

What transformers 5 writes, version 4 cannot read: `portable` rewrites those keys, which both then understand.
"""

import shutil
from pathlib import Path
from typing import Any

from motab_jax.runtime.hub import TOKENIZER_FILES, find_folder, read_json, write_json

# A model's folder holds other JSON and text files too, which may not be true of another model.
NAMES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model"),
    *("chat_template.jinja", "chat_template.json"),
)
_CONFIG = "tokenizer_config.json"
_ONLY_IN_5 = ("backend", "is_local", "local_files_only")  # of the loading, not of the tokenizer


def copy_tokenizer_files(source: str | Path, folder: Path, chat_template: str | None = None) -> None:
    """Copy the tokenizer's files, byte for byte.

    Args:
      source: the folder or hub id that has them.
      folder: where to.
      chat_template: written beside them where they have none.

    Raises:
      UserError: there is no such folder.
    """
    found = find_folder(source, TOKENIZER_FILES)
    for path in [found / name for name in NAMES if (found / name).is_file()]:
        shutil.copyfile(path, folder / path.name)
    config = folder / _CONFIG
    own = any((folder / name).is_file() for name in NAMES if name.startswith("chat_template"))
    if chat_template and not own and not (config.is_file() and read_json(config).get("chat_template")):
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def write_tokenizer_files(tokenizer: Any, folder: Path) -> None:
    """Have transformers write a tokenizer's files, in a form that its versions 4 and 5 load."""
    tokenizer.save_pretrained(folder)
    if (folder / _CONFIG).is_file():
        write_json(folder / _CONFIG, portable(read_json(folder / _CONFIG)))


def portable(settings: dict[str, Any]) -> dict[str, Any]:
    """What tokenizer_config.json says, without the class and the keys that only transformers 5 knows.

    >>> portable({"tokenizer_class": "TokenizersBackend", "is_local": True, "extra_special_tokens": ["<a>"]})
    {'tokenizer_class': 'PreTrainedTokenizerFast', 'additional_special_tokens': ['<a>']}
    """
    settings = {key: value for key, value in settings.items() if key not in _ONLY_IN_5}
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    return settings
