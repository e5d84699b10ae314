"""Chat templates: the prompt that they make, what is said of them, and that none of them stops a run."""

import datetime

import pytest
from transformers import PreTrainedTokenizerFast

from motab_jax.config import UserError, load_config
from motab_jax.data import templates
from motab_jax.data.templates import PromptForm, encode_prompts
from motab_jax.runtime.notices import notice
from tests.data.test_tokenizer import byte_level

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
THINKING = TEMPLATE + "{% if enable_thinking is defined and not enable_thinking %}no{% endif %}"
CHAT = PromptForm(chat_template=True)
# What a template may do to its reader, and the word that the error has for it.
FAILURES = {
    "refuses": ("{{ raise_exception('no system role') }}", "no system role"),
    "type": ("{{ messages[0].content + 1 }}", "TypeError"),
    "overflow": ("{{ 10.0 ** 999 }}", "OverflowError"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "memory": ("{{ 'a' * 10 ** 11 }}", "MemoryError"),
    "loop": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 2 s"),
}


@pytest.fixture(autouse=True)
def fresh_notices():
    notice.cache_clear()


def encode(template, prompt, form=CHAT) -> list[int]:
    return encode_prompts(byte_level(chat_template=template), [prompt], form)[0]


def decoded(template, prompt, form=CHAT) -> str:
    return str(byte_level().decode(encode(template, prompt, form)))


def test_the_template_opens_the_assistants_turn():
    assert decoded(THINKING, "hi") == "[user]hi[assistant]"
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u", "tool_calls": None}]
    assert decoded(THINKING, messages, PromptForm(True, thinking=False)) == "[system]s[user]u[assistant]no"
    assert decoded("{{ 'tool_calls' in messages[1] }}", messages) == "False", "a field that is null is no field"
    assert encode(None, "a", PromptForm()) == byte_level().encode("a")


def test_many_prompts_are_what_transformers_makes_of_each():
    tokenizer = byte_level(chat_template=TEMPLATE)
    prompts = [f"{n} is\n\nodd" for n in range(300)]
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    theirs = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]
    assert encode_prompts(tokenizer, prompts, CHAT) == theirs


@pytest.mark.parametrize(
    ("template", "prompt", "form", "message"),
    [
        (None, "hi", CHAT, "no chat template"),
        (TEMPLATE, "hi", PromptForm(True, thinking=True), r"no thinking switch .*template_args"),
        (TEMPLATE, "hi", PromptForm(True, template_args={"effort": "low"}), "template_args: .* has no 'effort'"),
        (TEMPLATE, [{"role": "user", "content": "x"}], PromptForm(), "chat_template=true"),
        (TEMPLATE, "", PromptForm(), "no token"),
        ("", "", PromptForm(), "no token"),
    ],
)
def test_prompts_that_cannot_be_encoded(template, prompt, form, message):
    with pytest.raises(UserError, match=f"prompt 1: .*{message}|{message}"):
        encode(template, prompt, form)


@pytest.mark.parametrize("kind", FAILURES)
def test_a_template_that_fails_is_one_line_that_names_the_prompt(kind, monkeypatch):
    template, reason = FAILURES[kind]
    monkeypatch.setattr(templates, "TIME_LIMIT", 2.0)
    tokenizer = byte_level(
        chat_template="{% if messages[0].content == 'good' %}good{% else %}" + template + "{% endif %}"
    )
    with pytest.raises(UserError, match=f"^second: .*the chat template fails: .*{reason}") as raised:
        encode_prompts(tokenizer, ["good", "bad"], CHAT, ["first", "second"])
    assert "\n" not in str(raised.value)


def test_a_template_that_is_none():
    with pytest.raises(UserError, match=r"prompt 1: .*the chat template fails: TemplateSyntaxError"):
        encode("{% if %}", "hi")


def test_variables_of_the_template():
    form = PromptForm(True, template_args={"effort": "low"})
    assert decoded(TEMPLATE + "{{ effort }}", "hi", form) == "[user]hi[assistant]low"


def test_a_template_that_prints_the_date_is_said_and_can_be_kept(capsys):
    template = TEMPLATE + "{{ strftime_now('%d %b %Y') }}"
    assert decoded(template, "hi") == f"[user]hi[assistant]{datetime.datetime.now():%d %b %Y}"
    said = capsys.readouterr().err
    assert "prints today's date" in said and f"strftime_now: '{datetime.date.today()}'" in said
    kept = PromptForm(True, template_args={"strftime_now": "2026-11-27"})
    assert decoded(template, "<eos>", kept).endswith("[assistant]27 Nov 2026"), "of texts with special tokens too"
    assert "date" not in capsys.readouterr().err
    assert load_config(None, ["data.template_args={strftime_now: 2026-11-27}"]).data.template_args == kept.template_args
    with pytest.raises(UserError, match=r"data\.template_args.*YYYY-MM-DD"):
        load_config(None, ["data.template_args={strftime_now: yesterday}"])


@pytest.mark.parametrize(
    ("template", "note"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "ignores add_generation_prompt"),
        (TEMPLATE + "<think>\n", "opens <think>"),
        (TEMPLATE, ""),
    ],
)
def test_what_a_template_does_is_said_once(template, note, capsys):
    for _ in range(2):
        encode(template, "hi")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == bool(note) and all(note in line for line in lines)


def test_special_tokens_that_are_typed_stay_text(capsys):
    ids = encode("{{ messages[0].content }}<eos>", "a<eos>b")
    end = int(str(byte_level().eos_token_id))
    assert ids.count(end) == 1 and ids[-1] == end and byte_level().decode(ids) == "a<eos>b<eos>"
    assert "1 of 1 prompts hold the text of a special token (<eos>): it stays text" in capsys.readouterr().err


def test_a_text_that_begins_with_the_beginning_has_it_once(capsys):
    tokenizer = with_beginning()
    assert encode_prompts(tokenizer, ["a", "<eos>a"], PromptForm()) == [tokenizer.encode("a")] * 2
    assert "1 of 2 prompts begin with <eos>" in capsys.readouterr().err


def with_beginning() -> PreTrainedTokenizerFast:
    """A tokenizer that puts a token before every text."""
    from tokenizers import processors

    backend = byte_level().backend_tokenizer
    end = backend.token_to_id("<eos>")
    backend.post_processor = processors.TemplateProcessing("<eos> $A", None, [("<eos>", end)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<eos>")
