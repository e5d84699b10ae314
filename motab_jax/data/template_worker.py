"""The script of a process that renders chat templates; `templates.py` starts it.

It is run by its path. It reads a JSON object with the template and its variables, then a request per line, and answers
each with a line, the rendered text. A template is a program of the model's author: it may loop, fill the memory or
fail in any way. Then this process ends, not the run, and its last words say why.
"""

import contextlib
import datetime
import json
import sys
from collections.abc import Iterator
from typing import Any

MEMORY_LIMIT = 8 << 30  # bytes of address space


@contextlib.contextmanager
def clock_at(date: str | None) -> Iterator[None]:
    """While the block runs, templates that print the date print this one (YYYY-MM-DD); None: today's."""
    from transformers.utils import chat_template_utils

    if date is None:
        yield
        return
    moment = datetime.datetime.fromisoformat(date)

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return moment

    before = chat_template_utils.datetime
    chat_template_utils.datetime = Clock
    try:
        yield
    finally:
        chat_template_utils.datetime = before


def say_why(kind: type[BaseException], error: BaseException, _: Any) -> None:
    """One line about what ended this process."""
    print(" ".join(f"{kind.__name__}: {error}".split())[:300], file=sys.stderr)


def main() -> None:
    """Render each line [messages, add_generation_prompt, date] until the input ends."""
    from transformers.utils.chat_template_utils import render_jinja_template

    sys.excepthook = say_why
    with contextlib.suppress(ImportError, ValueError, OSError):  # not every platform can limit memory
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, resource.getrlimit(resource.RLIMIT_AS)[1]))
    task = json.loads(sys.stdin.readline())
    for line in sys.stdin:
        messages, add_generation_prompt, date = json.loads(line)
        with clock_at(date):
            rendered: Any = render_jinja_template(
                conversations=[messages],
                chat_template=task["template"],
                add_generation_prompt=add_generation_prompt,
                **task["variables"],
            )
        print(json.dumps(rendered[0][0]), flush=True)


if __name__ == "__main__":
    main()
