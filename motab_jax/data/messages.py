"""Chat messages in the forms that data sets have, as a list of messages with a role and a text.

A message says `role` and `content`, or ShareGPT's `from` and `value`. Content is a text, a list of text parts, or null
beside tool calls.
Left out: images and other parts that are not text, and what a template makes of the messages (tokenizer.py).
"""

from typing import Any

from motab_jax.config import UserError

SHAREGPT_ROLES = {
    **{"system": "system", "human": "user", "user": "user", "tool": "tool", "observation": "tool"},
    **dict.fromkeys(("gpt", "assistant", "model", "chatgpt"), "assistant"),
}
UNUSED = ("tool_calls", "reasoning_content", "reasoning", "thinking")  # of a completion, which is text alone


def read_messages(value: Any, where: str) -> list[dict[str, Any]]:
    """Messages with role and content; other keys are kept, except those that are null.

    Args:
      value: the field's value.
      where: what messages call the field.

    Raises:
      UserError: it is no list of messages, or one of them is not text.
    """
    if not isinstance(value, list) or not value:
        raise UserError(f"{where} is neither text nor a list of messages with role and content")
    messages = [_message(message, where) for message in value]
    if not any(message["content"].strip() for message in messages):
        raise UserError(f"{where} is empty: no message has any text")
    return messages


def _message(message: Any, where: str) -> dict[str, Any]:
    if isinstance(message, dict) and isinstance(message.get("from"), str) and "role" not in message:
        role = SHAREGPT_ROLES.get(message["from"])
        if role is None:
            known = ", ".join(SHAREGPT_ROLES)
            raise UserError(f"{where} has a message from '{message['from']}'; known are {known}")
        rest = {key: value for key, value in message.items() if key not in ("from", "value")}
        message = {"role": role, "content": message.get("value"), **rest}
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise UserError(f"{where} is neither text nor a list of messages with role and content")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_part(part, where) for part in content)
    if content is None and message.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        raise UserError(f"{where} is neither text nor a list of messages with role and content: the content is no text")
    kept = {key: value for key, value in message.items() if value is not None}
    return {**kept, "role": message["role"], "content": content}


def _part(part: Any, where: str) -> str:
    if isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, dict) else None
    raise UserError(
        f"{where} has a content part that is not text{f': {kind}' if kind else ''}; only text is implemented"
    )


def completion_of(messages: list[dict[str, Any]], where: str) -> str:
    """The text of a completion that is one message of the assistant's. UserError if it is anything else."""
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in messages[:4])
        raise UserError(f"{where} is a completion of other messages than one of the assistant's: {roles}")
    if used := next((key for key in UNUSED if messages[0].get(key)), None):
        raise UserError(f"{where} has {used}, which a completion can't have; write what is to be learnt as its content")
    return messages[0]["content"]
