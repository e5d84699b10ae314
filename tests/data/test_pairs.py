"""Pairs of tokenizers: which go together, what is left out of them, and whose template makes the prompts."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from motab_jax.config import UserError
from motab_jax.data.pairs import choose_template, common_vocab_size, open_tokenizer
from motab_jax.data.tokenizer import vocab_size
from motab_jax.runtime.notices import notice
from tests.data.test_tokenizer import byte_level


@pytest.fixture(autouse=True)
def fresh_notices():
    notice.cache_clear()


def with_more(*tokens: str, special: bool = False, **settings) -> PreTrainedTokenizerFast:
    tokenizer = byte_level(**settings)
    tokenizer.backend_tokenizer.add_tokens([AddedToken(token, special=special) for token in tokens])
    return tokenizer


def changed(change) -> PreTrainedTokenizerFast:
    """The tokenizer with its description changed."""
    description = json.loads(byte_level().backend_tokenizer.to_str())
    change(description)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(description)), eos_token="<eos>")


def test_equal_tokenizers_share_everything(capsys):
    assert common_vocab_size(byte_level(), byte_level()) == vocab_size(byte_level())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("longer", ["student", "teacher"])
def test_further_tokens_of_one_are_masked_and_said(longer, capsys):
    pair = {"student": byte_level(), "teacher": byte_level(), longer: with_more("<tool>", "</tool>")}
    assert common_vocab_size(pair["student"], pair["teacher"]) == vocab_size(byte_level())
    assert f"only the {longer}'s tokenizer has '<tool>', '</tool>': the ids from 259 on" in capsys.readouterr().err


def test_ids_that_mean_different_tokens_are_refused_with_the_first():
    with pytest.raises(UserError, match=r"\(1 ids differ\): id 259: student '<a>', teacher '<b>'"):
        common_vocab_size(with_more("<a>"), with_more("<b>", "<a>"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d["model"].update(merges=[]), "the merges of their tokens differ"),
        (lambda d: d.update(normalizer={"type": "Lowercase"}), r"cut a text differently \(normalizer"),
        (lambda d: d["pre_tokenizer"].update(add_prefix_space=True), r"cut a text differently \(pre_tokenizer"),
    ],
)
def test_the_same_tokens_by_other_rules_are_refused(change, reason):
    with pytest.raises(UserError, match=reason):
        common_vocab_size(byte_level(), changed(change))


def test_other_special_flags_are_said(capsys):
    common_vocab_size(with_more("<think>", special=True), with_more("<think>"))
    assert (
        "special tokens in the student's tokenizer, and ordinary ones in the other's: '<think>'"
        in capsys.readouterr().err
    )


def test_whose_template_makes_the_prompts(capsys):
    one, other, none = byte_level(chat_template="a"), byte_level(chat_template="b"), byte_level()
    assert choose_template(one, other, None, used=True) is one
    assert "the student's makes the prompts of both (data.template=teacher" in capsys.readouterr().err
    assert choose_template(one, other, "teacher", used=True) is other
    assert choose_template(none, other, None, used=True) is other, "a base model has none"
    capsys.readouterr()
    assert choose_template(one, other, None, used=False) is one
    assert choose_template(one, one, None, used=True) is one
    assert capsys.readouterr().err == "", "what makes no difference is not said"


def test_a_pair_of_folders(tmp_path):
    base, instruct = tmp_path / "base", tmp_path / "instruct"
    byte_level().save_pretrained(base)
    with_more("<end>", "<more>", special=True, chat_template="{{ messages[0].content }}").save_pretrained(instruct)
    (instruct / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 259]}))
    (base / "config.json").write_text(json.dumps({"eos_token_id": 5}))
    shared = open_tokenizer(base, instruct, chat_template=True)
    end = byte_level().get_vocab()["<eos>"]
    assert (shared.vocab_size, shared.stop_id, shared.stop_ids) == (259, end, tuple(sorted([end, 5, 7])))
    assert shared.tokenizer.chat_template == "{{ messages[0].content }}"
    shared.check([[3, 258]], ["one"])
    with pytest.raises(UserError, match=r"^two has the token '<more>', .*data\.template"):
        shared.check([[3], [260]], ["one", "two"])
