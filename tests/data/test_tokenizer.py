"""Tokenizers of the three supported kinds, built here: bytes, templates, stop ids, and errors that name the cause."""

import json

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from motab_jax.config import UserError
from motab_jax.data.stop_tokens import stop_ids
from motab_jax.data.tasks import arithmetic
from motab_jax.data.tokenizer import (
    PROBE,
    decode,
    load_tokenizer,
    opens_thought,
    token_bytes,
    vocab_size,
)
from tests.data import fake_hub


def byte_level(**settings) -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges but for one, as in GPT-2, Qwen and Llama 3."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate([*alphabet, ".Ċ"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[(".", "Ċ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<eos>", special=True)])
    backend.add_tokens([AddedToken("<think> é", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", **settings)


def metaspace() -> PreTrainedTokenizerFast:
    """SentencePiece style with byte fallback, as in Llama 2."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {piece: index for index, piece in enumerate(["<unk>", *fallback, "▁", "a", "b", "▁a"])}
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[("▁", "a")], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@pytest.mark.parametrize("text", ["a.\n\nb é 漢 \x00\t", "b a a  b\né漢"])
@pytest.mark.parametrize("build", [byte_level, metaspace])
def test_bytes_of_the_tokens_are_the_bytes_of_the_text(build, text):
    tokenizer = build()
    pieces = token_bytes(tokenizer)
    assert len(pieces) == vocab_size(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(pieces[i] for i in ids) == text.encode()


def test_added_tokens_stand_for_their_text_and_special_ones_for_nothing():
    tokenizer = byte_level()
    pieces = token_bytes(tokenizer)
    assert pieces[tokenizer.get_vocab()["<eos>"]] == b""
    assert pieces[-1] == "<think> é".encode()


def test_unknown_decoder_is_refused_by_name():
    backend = Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(UserError, match="WordPiece"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_stop_ids_join_the_tokenizer_and_both_files(tmp_path):
    tokenizer = byte_level()
    end = tokenizer.eos_token_id
    assert stop_ids(tokenizer, tmp_path) == (end,)
    generation, config = tmp_path / "generation_config.json", tmp_path / "config.json"
    config.write_text(json.dumps({"eos_token_id": [7, end, 8]}))
    assert stop_ids(tokenizer, tmp_path) == (end, 7, 8), "config.json counts where there is no generation_config.json"
    assert stop_ids(metaspace(), tmp_path) == (7, end, 8), "and where the tokenizer has no end token"
    generation.write_text(json.dumps({"eos_token_id": 4}))
    assert stop_ids(tokenizer, tmp_path) == (end, 4, 7, 8)
    generation.write_text(json.dumps({"eos_token_id": None}))
    assert stop_ids(tokenizer, tmp_path) == (end, 7, 8)
    generation.write_text('{"eos_token_id": ')
    with pytest.raises(UserError, match="generation_config"):
        stop_ids(tokenizer, tmp_path)
    generation.unlink()
    config.unlink()
    with pytest.raises(UserError, match="end token"):
        stop_ids(metaspace(), tmp_path)


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("value", ["2", 2.0, [[2]], -1, [3, 999_999], True, {"id": 2}])
def test_a_stop_id_that_is_none_is_refused_by_file_and_key(tmp_path, name, value):
    (tmp_path / name).write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(UserError, match=rf"{name}: eos_token_id .* is no token id; .* 0 to 258"):
        stop_ids(byte_level(), tmp_path)


def test_a_tokenizer_and_its_stop_ids_come_from_the_hub(tmp_path, monkeypatch):
    arithmetic.write_tokenizer(tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": [3]}))
    (tmp_path / "model" / "model.safetensors").write_text("not downloaded")
    fake_hub.install_models(monkeypatch, {"someone/model": tmp_path / "model"}, tmp_path / "cache")
    here, there = load_tokenizer(tmp_path / "model"), load_tokenizer("someone/model")
    assert there.get_vocab() == here.get_vocab() and there.name_or_path == "someone/model"
    assert stop_ids(there, "someone/model") == stop_ids(here, tmp_path / "model") == (here.eos_token_id, 3)
    assert not (tmp_path / "cache" / "someone" / "model" / "model.safetensors").exists()
    with pytest.raises(UserError, match="someone/else: neither a folder here nor a model"):
        load_tokenizer("someone/else")


def test_damaged_and_missing_folders(tmp_path):
    with pytest.raises(UserError, match="no such model folder"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(UserError, match="no tokenizer files"):
        load_tokenizer(tmp_path)
    arithmetic.write_tokenizer(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_text()
    for damaged in (whole[: len(whole) // 2], "{}\n", '{"version": "1.0"}', "[]", ""):
        (tmp_path / "tokenizer.json").write_text(damaged)
        with pytest.raises(UserError, match=r"tokenizer\.json"):
            load_tokenizer(tmp_path)


def test_added_tokens_have_the_bytes_that_decoding_gives_them():
    """Gemma adds tokens of several spaces, written with the letter that its tokenizer writes for a space."""
    spaces = metaspace()
    spaces.backend_tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ("▁▁", "<0x41>")])
    letters = byte_level()
    letters.backend_tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ("Ġx", "ĠŁ漢")])
    for tokenizer in (spaces, letters):
        pieces = token_bytes(tokenizer)
        for index, token in tokenizer.added_tokens_decoder.items():
            if not token.special:
                first = tokenizer.get_vocab()["a"]  # the decoder may trim the very first token
                text = str(tokenizer.decode([first, index], clean_up_tokenization_spaces=False))
                assert pieces[index].decode() == text.removeprefix("a")
    assert token_bytes(spaces)[spaces.get_vocab()["▁▁"]] == b"  "


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ({"model_type": "qwen2"}, {"tokenizer_class": "Qwen2Tokenizer"}),
        ({"model_type": "llama"}, {"tokenizer_class": "LlamaTokenizerFast"}),
        ({"model_type": "qwen3"}, {}),
        ({"model_type": "qwen3", "max_window_layers": None, "use_cache": None}, {}),
        ({"model_type": "llama", "attention_bias": None, "max_position_embeddings": 512.0}, {}),
    ],
)
def test_a_tokenizer_is_what_its_file_describes(tmp_path, config, settings):
    """Whatever class of transformers the folder names, and whatever transformers thinks of its config.json."""
    backend = byte_level().backend_tokenizer
    digits = pre_tokenizers.Split(Regex(r"\p{N}{1,3}|\s+|[^\s\p{N}]+"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>", **settings}))
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    ids = backend.encode(PROBE, add_special_tokens=False).ids
    assert tokenizer.encode(PROBE, add_special_tokens=False) == ids
    assert b"".join(token_bytes(tokenizer)[i] for i in ids) == PROBE.encode()
    assert tokenizer.eos_token == "<eos>"


def test_a_tokenizer_that_contradicts_its_file_is_refused(tmp_path, monkeypatch):
    """As transformers 5.18 to 5.21 loaded some: they put another pre-tokenizer in."""
    byte_level().save_pretrained(tmp_path)
    loaded = byte_level()
    loaded.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    monkeypatch.setattr(PreTrainedTokenizerFast, "from_pretrained", lambda folder: loaded)
    with pytest.raises(UserError, match=r"tokenizer\.json: transformers .* loads another tokenizer"):
        load_tokenizer(tmp_path)


def test_a_model_that_the_tokenizers_library_does_not_know(tmp_path):
    byte_level().save_pretrained(tmp_path)
    description = json.loads((tmp_path / "tokenizer.json").read_text())
    description["model"]["type"] = "Telepathy"
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="its tokenizer files cannot be loaded"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("is_special", [True, False])
def test_the_tags_of_a_thought_stay_in_a_text_whatever_their_flag(is_special):
    tokenizer = byte_level()
    for tag in ("<think>", "</think>"):
        tokenizer.backend_tokenizer.add_tokens([AddedToken(tag, special=is_special)])
    text = "a é.\n<think>b</think><think>"
    ids = tokenizer.encode(f"{text}<eos>", add_special_tokens=False)
    assert decode(tokenizer, ids) == text
    assert decode(tokenizer, ids, special=True) == f"{text}<eos>"
    assert decode(tokenizer, []) == ""


@pytest.mark.parametrize("is_special", [True, False])
@pytest.mark.parametrize(
    ("end", "opened"),
    [
        ("<think>", True),
        ("<think>\n", True),
        ("<think>\n\n</think>\n\n", False),
        ("mention <think> here", False),
        ("", False),
    ],
)
def test_a_prompt_that_ends_in_an_opening_tag_opens_a_thought(is_special, end, opened):
    tokenizer = byte_level()
    for tag in ("<think>", "</think>"):
        tokenizer.backend_tokenizer.add_tokens([AddedToken(tag, special=is_special)])
    assert opens_thought(tokenizer, tokenizer.encode(f"a question{end}", add_special_tokens=False)) is opened
