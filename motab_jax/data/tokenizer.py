"""Tokenizers: load one, and find each token's bytes and the vocabulary's size.

`token_bytes` reads the tokenizer's own decoder description, and covers
byte-level BPE (Qwen, Llama 3, SmolLM2), SentencePiece style with byte fallback (Llama 2, Gemma) and plain characters.
Left out: WordPiece and other decoders (refused by name), tokenizers that need remote code.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from motab_jax.config import UserError
from motab_jax.runtime.hub import TOKENIZER_FILES, find_folder, read_json

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_NO_EFFECT = ("Fuse", "Strip")  # they join pieces, or trim the very first one: not a token's own bytes
# Words, contractions, digits, blank lines, tabs, several scripts: where descriptions of tokenizers differ.
PROBE = "It's 12,345.678 + 9² = x;  we'll see.\n\nSo\tn = -3 (α∈ℝ), naïve 你好 café 🙂!\r\n\n\n  if n>=10: return 'ok'"
_THOUGHT_TAGS = ("<think>", "</think>")
_TAIL = 16  # tokens at a prompt's end that may hold an opening tag and white space after it


def load_tokenizer(path_or_hub_id: str | Path) -> Any:
    """The transformers tokenizer of a folder or a hub id.

    It is what tokenizer.json describes. transformers' classes of single models, which tokenizer_config.json or
    config.json may name, rebuild parts of that description, so they are used only where there is no tokenizer.json.

    Raises:
      UserError: there is no tokenizer, its files are damaged, or it does not tokenise as its tokenizer.json does.
    """
    folder = find_folder(path_or_hub_id, TOKENIZER_FILES)
    _check_folder(folder)
    described = (folder / "tokenizer.json").is_file()
    tokenizer = _loaded(folder, path_or_hub_id, described)
    if not tokenizer.is_fast:
        raise UserError(f"{path_or_hub_id}: the tokenizer has no tokenizer.json form, which step detection needs")
    if described:
        _check_probe(tokenizer, folder / "tokenizer.json")
    tokenizer.name_or_path = str(path_or_hub_id)  # what messages about it name
    return tokenizer


def _loaded(folder: Path, path_or_hub_id: str | Path, described: bool) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    with _LoadErrors(path_or_hub_id):
        if described:
            return PreTrainedTokenizerFast.from_pretrained(str(folder))
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)


class _LoadErrors:
    """Makes a UserError of what the libraries raise for damaged files."""

    def __init__(self, path_or_hub_id: str | Path):
        self.name = path_or_hub_id

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        kinds = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, StrictDataclassError)
        # The tokenizers library raises Exception itself, no class of its own.
        if kind is not None and (kind is Exception or issubclass(kind, kinds)):
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{self.name}: its tokenizer files cannot be loaded: {reason}") from None


def _check_probe(tokenizer: Any, path: Path) -> None:
    """UserError unless a text has the same tokens, and these the same text, as tokenizer.json alone gives them."""
    from tokenizers import Tokenizer

    alone = Tokenizer.from_file(str(path))
    ids = alone.encode(PROBE, add_special_tokens=False).ids
    if tokenizer.encode(PROBE, add_special_tokens=False) != ids or decode(tokenizer, ids) != alone.decode(ids):
        import transformers

        raise UserError(
            f"{path}: transformers {transformers.__version__} loads another tokenizer than this file describes (a text "
            "has other tokens); remove what contradicts it from tokenizer_config.json, or install another transformers"
        )


def decode(tokenizer: Any, tokens: Sequence[int], *, special: bool = False) -> str:
    """The text of token ids, without cleaning up spaces; special tokens are left out unless `special`.

    The tags of a thought stay where they are special tokens, too: they say where the answer begins.
    """
    texts, begin = [], 0
    tags = {} if special else _special_thought_tags(tokenizer)
    for position in [n for n, token in enumerate(tokens) if int(token) in tags] if tags else ():
        texts += [_decode(tokenizer, tokens[begin:position], special), tags[int(tokens[position])]]
        begin = position + 1
    return "".join([*texts, _decode(tokenizer, tokens[begin:], special)])


def _decode(tokenizer: Any, tokens: Sequence[int], special: bool) -> str:
    return tokenizer.decode(list(tokens), skip_special_tokens=not special, clean_up_tokenization_spaces=False)


@functools.lru_cache(maxsize=8)
def _special_thought_tags(tokenizer: Any) -> Mapping[int, str]:
    """The ids and texts of those tags that are special tokens."""
    added = tokenizer.added_tokens_decoder
    return {index: token.content for index, token in added.items() if token.special and token.content in _THOUGHT_TAGS}


def opens_thought(tokenizer: Any, prompt_tokens: Sequence[int]) -> bool:
    """Whether a prompt ends in <think>, as some chat templates do, so that its completion begins inside a thought."""
    return decode(tokenizer, prompt_tokens[-_TAIL:], special=True).rstrip().endswith(_THOUGHT_TAGS[0])


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
        is_special = index in added and added[index].special
        pieces[index] = b"" if is_special else _decode_piece(piece, decoders)
    return pieces


def _check_folder(folder: Path) -> None:
    names = ("tokenizer.json", "tokenizer_config.json")
    if not any((folder / name).is_file() for name in (*names, "tokenizer.model", "vocab.json")):
        raise UserError(f"{folder}: no tokenizer files in this folder (expected tokenizer.json)")
    for name in names:
        content = read_json(folder / name) if (folder / name).is_file() else {}
        # The tokenizers library reports a wrong layout with an exception of no type of its own, so look first.
        if (folder / name).is_file() and name == "tokenizer.json" and not isinstance(content.get("model"), dict):
            raise UserError(f"{folder / name}: not a tokenizer description (it has no 'model')")


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
            # A piece with any other character, as added tokens have, stands for itself.
            known = [_BYTE_OF.get(character) for character in piece]
            return piece.encode() if None in known else b"".join(byte for byte in known if byte is not None)
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
