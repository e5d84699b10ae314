"""From prompts to token ids: chat templates, rendered within limits, and what is worth knowing of a template, said.

Templates are rendered by transformers in a process of their own (template_worker.py). Left out: what a template is
for, and tools; the messages come from the data as they are.
"""

import dataclasses
import datetime
import json
import os
import re
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from motab_jax.config import UserError
from motab_jax.data.template_worker import clock_at
from motab_jax.runtime.notices import notice

TIME_LIMIT = 30.0  # seconds for one prompt, which takes milliseconds
START_LIMIT = 180.0  # seconds for the process's imports, on a busy machine
THOUGHT = "<think>"
CLOCK = "strftime_now"  # what templates call for the date
_TWO_DATES = ("2001-02-03", "2012-11-24")

Chat = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class PromptForm:
    """The form that the models are given prompts in: the keys of `data` that say so."""

    chat_template: bool = False  # a text becomes one user message, followed by the header of the assistant's message
    thinking: bool | None = None  # the template's `enable_thinking`; None for its default
    template_args: dict[str, Any] = dataclasses.field(default_factory=dict)  # other variables of the template


def encode_prompts(
    tokenizer: Any, prompts: Sequence[str | Chat], form: PromptForm, names: Sequence[str] | None = None
) -> list[list[int]]:
    """Token ids of prompts, special tokens included, ready for the completions to follow.

    Args:
      tokenizer: of transformers.
      prompts: texts, or lists of chat messages.
      form: how they become text.
      names: of the prompts, for errors.

    Raises:
      UserError: the template is missing, lacks a variable that `form` sets, or fails, in whatever way, for a prompt;
          messages without a template; a prompt without a token.
    """
    names = [f"prompt {number}" for number in range(1, len(prompts) + 1)] if names is None else names
    if form.chat_template:
        encoded = _encode_chats(tokenizer, [_chat(prompt) for prompt in prompts], form, names)
    else:
        for prompt, name in zip(prompts, names, strict=True):
            if not isinstance(prompt, str):
                raise UserError(f"{name}: a prompt is a list of chat messages; set data.chat_template=true")
        encoded = _encode_texts(tokenizer, [str(prompt) for prompt in prompts])
    for ids, name in zip(encoded, names, strict=True):
        if not ids:
            raise UserError(f"{name}: a prompt encodes to no token at all")
    return encoded


def _chat(prompt: str | Chat) -> Chat:
    """The prompt's messages, without fields that are null, such as a parquet file fills in."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


def _encode_texts(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    encoded = [list(ids) for ids in tokenizer(texts, add_special_tokens=True)["input_ids"]]
    begin, text = tokenizer.bos_token_id, tokenizer.bos_token
    twice = [ids for ids in encoded if begin is not None and ids[:2] == [begin, begin]]
    for ids in twice:
        del ids[0]
    if twice:
        notice(f"{len(twice)} of {len(texts)} prompts begin with {text} themselves: the tokenizer's own is left out")
    return encoded


def _encode_chats(tokenizer: Any, chats: list[Chat], form: PromptForm, names: Sequence[str]) -> list[list[int]]:
    template = _template(tokenizer)
    variables, date = _variables(tokenizer, template, form)
    requests = [(chat, True, date) for chat in chats]
    # The first prompt once more, without the assistant's header, and on two days: what changes?
    probes = [(chats[0], False, date), *((chats[0], True, day) for day in _TWO_DATES if date is None)]
    texts, failure = _render(template, {**_special_tokens(tokenizer), **variables}, [*requests, *probes])
    if len(texts) < len(chats):
        raise UserError(f"{names[len(texts)]}: {tokenizer.name_or_path}: the chat template fails: {failure}")
    _say(tokenizer, texts[0], texts[len(chats) :])
    texts = texts[: len(chats)]
    # A template writes its own special tokens, so the text is encoded without adding any.
    encoded = [list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    control = re.compile("|".join(re.escape(t.content) for t in tokenizer.added_tokens_decoder.values() if t.special))
    typed = [n for n, chat in enumerate(chats) if control.pattern and _find(control, chat)]
    for number in typed:
        with clock_at(date):
            encoded[number] = tokenizer.apply_chat_template(
                chats[number],
                chat_template=template,
                add_generation_prompt=True,
                return_dict=False,
                sanitize_control_tokens=True,
                **variables,
            )
    if typed:
        example = _find(control, chats[typed[0]])
        notice(f"{len(typed)} of {len(chats)} prompts hold the text of a special token ({example}): it stays text")
    return encoded


def _find(pattern: re.Pattern[str], value: Any) -> str | None:
    """The first match in the texts of a message, wherever they are in it."""
    if isinstance(value, str):
        match = pattern.search(value)
        return match and match.group()
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for found in (_find(pattern, item) for item in inner) if found), None)


def _template(tokenizer: Any) -> str:
    if not tokenizer.chat_template:
        raise UserError(f"{tokenizer.name_or_path}: the tokenizer has no chat template; set data.chat_template=false")
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:  # several templates, none of them the default
        raise UserError(f"{tokenizer.name_or_path}: {' '.join(str(error).split())}") from None


def _variables(tokenizer: Any, template: str, form: PromptForm) -> tuple[dict[str, Any], str | None]:
    """The template's variables, and the date that it prints; None for today's."""
    if form.thinking is not None and "enable_thinking" not in template:
        raise UserError(
            f"{tokenizer.name_or_path}: the chat template has no thinking switch (enable_thinking); set "
            "data.thinking=null. A switch of another name goes into data.template_args"
        )
    for name in form.template_args:
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise UserError(f"data.template_args: the chat template of {tokenizer.name_or_path} has no '{name}'")
    variables = {key: value for key, value in form.template_args.items() if key != CLOCK}
    if form.thinking is not None:
        variables["enable_thinking"] = form.thinking
    return variables, form.template_args.get(CLOCK)


def _special_tokens(tokenizer: Any) -> dict[str, Any]:
    """What transformers gives a template beside the messages: bos_token and its like."""
    return {
        key: value if isinstance(value, list) else str(value) for key, value in tokenizer.special_tokens_map.items()
    }


def _say(tokenizer: Any, text: str, probes: Sequence[str]) -> None:
    """Say what a user should know of the template: about its header, its thought, its date."""
    name = f"{tokenizer.name_or_path}: the chat template"
    if text.rstrip().endswith(THOUGHT):
        notice(f"{name} opens {THOUGHT}: completions begin inside a thought")
    if probes and probes[0] == text:
        notice(f"{name} ignores add_generation_prompt: completions follow without a header of the assistant's message")
    if len(probes) == 3 and probes[1] != probes[2]:
        today = datetime.date.today().isoformat()
        notice(
            f"{name} prints today's date, so prompts differ from one day to the next; "
            f"data.template_args={{{CLOCK}: '{today}'}} keeps this one"
        )


def _render(template: str, variables: dict[str, Any], requests: Sequence[tuple]) -> tuple[list[str], str]:
    """The texts of all requests up to the first that fails, and why it failed."""
    script = Path(__file__).with_name("template_worker.py")
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as errors:
        for line in ({"template": template, "variables": variables}, *requests):
            asked.write(json.dumps(line).encode() + b"\n")
        asked.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-P", str(script)],
            stdin=asked,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        texts: list[str] = []
        try:
            for line in _lines(process):
                texts.append(json.loads(line))
            code = process.wait()
        except TimeoutError:
            return texts, f"it takes more than {TIME_LIMIT:.0f} s"
        finally:
            process.kill()
            process.communicate()
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
        return texts, said[-1] if said else f"its process ended with status {code}"


def _lines(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """The lines that a process writes. TimeoutError if the next one doesn't come in time."""
    assert process.stdout is not None
    buffer, limit = b"", START_LIMIT
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(limit):
                raise TimeoutError
            if not (chunk := os.read(process.stdout.fileno(), 1 << 16)):
                return
            *lines, buffer = (buffer + chunk).split(b"\n")
            limit = TIME_LIMIT if lines else limit
            yield from lines
