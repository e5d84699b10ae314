"""Tokenizers: load one, encode prompts, and find each token's bytes, the stop ids and the vocabulary's size.

Templates and encoding are transformers'. `token_bytes` reads the tokenizer's own decoder description, and covers
byte-level BPE (Qwen, Llama 3, SmolLM2), SentencePiece style with byte fallback (Llama 2, Gemma) and plain characters.
Left out: WordPiece and other decoders (refused by name), tokenizers that need remote code.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from motab_jax.config import UserError
from motab_jax.runtime.hub import TOKENIZER_FILES, find_folder, load_generation_config, read_json

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_NO_EFFECT = ("Fuse", "Strip")  # they join pieces, or trim the very first one: not a token's own bytes
_SHOWN = 3  # differing tokens in an error message


def load_tokenizer(path_or_hub_id: str | Path) -> Any:
    """The transformers tokenizer of a folder or a hub id. UserError if there is none or it is damaged."""
    from transformers import AutoTokenizer

    folder = find_folder(path_or_hub_id, TOKENIZER_FILES)
    _check_folder(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path_or_hub_id}: its tokenizer files cannot be loaded: {reason}") from None
    if not tokenizer.is_fast:
        raise UserError(f"{path_or_hub_id}: the tokenizer has no tokenizer.json form, which step detection needs")
    tokenizer.name_or_path = str(path_or_hub_id)  # what messages about it name
    return tokenizer


def encode_prompt(tokenizer: Any, prompt: str | list[dict], *, chat_template: bool, thinking: bool | None) -> list[int]:
    """Token ids of one prompt, special tokens included, ready for the completion to follow.

    Args:
      tokenizer: of transformers.
      prompt: a text, or chat messages.
      chat_template: a text becomes one user message, followed by the header of the assistant's message.
      thinking: the template's `enable_thinking`; None for its default.

    Raises:
      UserError: the template is missing, lacks `enable_thinking` or refuses the messages; messages without a
          template; a prompt without a token.
    """
    if chat_template:
        ids = _apply_template(tokenizer, prompt, thinking)
    elif isinstance(prompt, str):
        ids = tokenizer.encode(prompt, add_special_tokens=True)
    else:
        raise UserError("a prompt is a list of chat messages; set data.chat_template=true")
    if not ids:
        raise UserError("a prompt encodes to no token at all")
    return [int(i) for i in ids]


def decode(tokenizer: Any, tokens: Sequence[int], *, special: bool = False) -> str:
    """The text of token ids, without cleaning up spaces; special tokens are left out unless `special`."""
    return tokenizer.decode(list(tokens), skip_special_tokens=not special, clean_up_tokenization_spaces=False)


def stop_ids(tokenizer: Any, path_or_hub_id: str | Path) -> tuple[int, ...]:
    """Ids that end a completion: the tokenizer's end token first, then those of generation_config.json.

    Raises:
      UserError: generation_config.json is damaged, or there is no stop id.
    """
    ids = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    listed = load_generation_config(path_or_hub_id).get("eos_token_id")
    listed = listed if isinstance(listed, list) else [listed]
    for value in listed:
        if isinstance(value, int) and value not in ids:
            ids.append(value)
    if not ids:
        raise UserError(f"{path_or_hub_id}: neither the tokenizer nor generation_config.json names an end token")
    return tuple(ids)


def vocab_size(tokenizer: Any) -> int:
    """Highest token id + 1, added tokens included; a model's padded vocabulary may be larger."""
    return max(tokenizer.get_vocab().values()) + 1


def token_bytes(tokenizer: Any) -> list[bytes]:
    """The bytes that each id contributes to the text, V of them; special tokens and unused ids contribute b"".

    Raises:
      UserError: for a decoder that is not implemented.
    """
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    decoders = _flatten(description.get("decoder"))
    added = tokenizer.added_tokens_decoder
    pieces = [b""] * vocab_size(tokenizer)
    for piece, index in tokenizer.get_vocab().items():
        if index in added:  # added tokens stand for their own text, whatever the decoder
            pieces[index] = b"" if added[index].special else piece.encode()
        else:
            pieces[index] = _decode_piece(piece, decoders)
    return pieces


def check_same_tokenizer(student: Any, teacher: Any) -> None:
    """Raise UserError, with the first differing tokens, unless both map the same ids to the same tokens."""
    ours, theirs = ({index: piece for piece, index in t.get_vocab().items()} for t in (student, teacher))
    if ours == theirs:
        return
    differing = sorted(index for index in ours.keys() | theirs.keys() if ours.get(index) != theirs.get(index))
    shown = "; ".join(
        f"id {i}: student {_quote(ours.get(i))}, teacher {_quote(theirs.get(i))}" for i in differing[:_SHOWN]
    )
    raise UserError(
        f"student.path and teacher.path have different tokenizers ({len(differing)} ids differ): {shown}; "
        "choose a pair that shares one tokenizer"
    )


def _quote(piece: str | None) -> str:
    return "has none" if piece is None else repr(piece)


def _check_folder(folder: Path) -> None:
    names = ("tokenizer.json", "tokenizer_config.json")
    if not any((folder / name).is_file() for name in (*names, "tokenizer.model", "vocab.json")):
        raise UserError(f"{folder}: no tokenizer files in this folder (expected tokenizer.json)")
    for name in names:
        content = read_json(folder / name) if (folder / name).is_file() else {}
        # The tokenizers library reports a wrong layout with an exception of no type of its own, so look first.
        if (folder / name).is_file() and name == "tokenizer.json" and not isinstance(content.get("model"), dict):
            raise UserError(f"{folder / name}: not a tokenizer description (it has no 'model')")


def _apply_template(tokenizer: Any, prompt: str | list[dict], thinking: bool | None) -> list[int]:
    from jinja2 import TemplateError

    template = tokenizer.chat_template
    if not template:
        raise UserError(f"{tokenizer.name_or_path}: the tokenizer has no chat template; set data.chat_template=false")
    options = {} if thinking is None else {"enable_thinking": thinking}
    if options and "enable_thinking" not in str(template):
        raise UserError(f"{tokenizer.name_or_path}: the chat template has no thinking switch; set data.thinking=null")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    try:
        # A template writes its own special tokens, so the text is encoded without adding any.
        return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **options))
    except TemplateError as error:
        raise UserError(f"{tokenizer.name_or_path}: the chat template refuses a prompt: {error}") from None


def _flatten(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The decoder's parts in order; those of a sequence one by one. Raises UserError for a part that isn't known."""
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [part for inner in decoder["decoders"] for part in _flatten(inner)]
    literal = decoder["type"] == "Replace" and "String" in decoder["pattern"]
    if not literal and decoder["type"] not in ("ByteLevel", "Metaspace", "ByteFallback", *_NO_EFFECT):
        raise UserError(
            f"the tokenizer's decoder '{decoder['type']}' isn't supported (byte-level, metaspace, characters)"
        )
    return [decoder]


def _decode_piece(piece: str, decoders: list[dict[str, Any]]) -> bytes:
    for decoder in decoders:
        kind = decoder["type"]
        if kind == "ByteLevel":
            return b"".join(_BYTE_OF.get(character) or character.encode() for character in piece)
        if kind == "Metaspace":
            piece = piece.replace(decoder["replacement"], " ")
        elif kind == "Replace":
            piece = piece.replace(decoder["pattern"]["String"], decoder["content"])
        elif kind == "ByteFallback" and (match := _BYTE_PIECE.fullmatch(piece)):
            return bytes([int(match.group(1), 16)])
    return piece.encode()


def _byte_alphabet() -> dict[str, bytes]:
    """GPT-2's byte alphabet, inverted: printable Latin-1 stands for itself, the rest for 256, 257, ... in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): bytes([byte]) for byte in printable}
    return alphabet | {chr(256 + n): bytes([byte]) for n, byte in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()
