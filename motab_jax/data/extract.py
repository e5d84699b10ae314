"""The final answer in a completion: a boxed one, a tagged one, a stated one, or a letter of a multiple choice.

Left out: judging it (`answers.py`).
"""

import re

_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_ANSWER_IS = re.compile(r"answer(?:\s+is|\s*:)\s*:?\s*([^\n]+)", re.IGNORECASE)
# The sign counts only where it isn't a minus between two terms; a comma only before three digits.
_NUMBER = re.compile(r"(?:(?<![\w)])-)?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?")
_SENTENCE_END = re.compile(r"\.\s")
_UNBRACED = re.compile(r"\\boxed\s+([^\s{}$\\]+)")
_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)

_FONT = re.compile(r"\\(?:text|mathrm|mathbf|mathsf|mathit)\w*\s*\{([^{}]*)\}")
_MARKUP = re.compile(r"\\[()\[\],;! ]|[*$`_]")
_CHOICE = re.compile(r"\(?([A-H])(?:\)?$|[).:]\s.*)", re.DOTALL)
_CHOICE_IS = re.compile(
    r"(?i:answer\s*:|(?:answer|choice|option)\s+is\b\s*:?)\s*(?i:(?:option|choice|letter)\s+)?"
    r"\(?([A-H])(?![\w'])(?!\s*=)"
)


def extract_answer(completion: str) -> str:
    r"""The final answer in a completion, thinking left out, and "" if there is none.

    The last \boxed{...} that isn't empty; else the last <answer>...</answer>; else what follows the last "answer is" or
    "answer:" (to the end of its sentence); else the last number; else the last line. A completion that ends inside its
    only box has no answer.
    """
    text = after_thinking(completion)
    boxed, is_open = _last_box(text)
    if (given := last_tagged(text) if boxed is None else boxed) is not None:
        return given.strip()
    if is_open:
        return ""
    if stated := _ANSWER_IS.findall(text):
        return _tidy(_SENTENCE_END.split(stated[-1])[0])
    if numbers := _NUMBER.findall(text):
        return numbers[-1]
    lines = text.strip().splitlines()
    return _tidy(lines[-1]) if lines else ""


def extract_choice(completion: str) -> str:
    r"""The letter (A to H) that a completion chooses, thinking left out, and "" if there is none.

    What the last \boxed{...} that isn't empty holds, "B" or "B) 10 eV"; else the last <answer>...</answer> likewise;
    else the last of "Answer: B", "the answer is (B)", "the right option is B"; else a last line that is but a letter.
    """
    text = after_thinking(completion)
    held, is_open = _last_box(text)
    held = last_tagged(text) if held is None else held
    if held is not None:
        held = _bare(held).rstrip(".")
        found = _CHOICE.fullmatch(held.upper() if len(held.strip("()")) == 1 else held)
        return found[1] if found else ""
    text = _bare(text)
    if is_open or not text:
        return ""
    if stated := _CHOICE_IS.findall(text):
        return stated[-1]
    alone = _CHOICE.fullmatch(text.splitlines()[-1].strip().rstrip("."))
    return alone[1] if alone else ""


def after_thinking(text: str) -> str:
    """What follows the thinking, or "" if a thought was opened and never closed: no answer was given."""
    before, closed, after = text.rpartition("</think>")
    if closed:
        return after
    return "" if before == "" and "<think>" in text else text


def last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...} or \fbox{...} that is closed and not empty, the inner of two; else None.

    With none such, what follows the last bare \boxed, as in \boxed 2.
    """
    return _last_box(text)[0]


def last_tagged(text: str) -> str | None:
    """The content of the last <answer>...</answer>; None without one."""
    found = _ANSWER_TAG.findall(text)
    return found[-1] if found else None


def _last_box(text: str) -> tuple[str | None, bool]:
    """(content of the last box that is closed and not empty, whether a box is open at the end); one pass."""
    opened: list[int | None] = []  # of each open brace: where its box's content starts, None if it is no box
    begin, end = -1, -1
    for brace in _BRACE.finditer(text):
        if brace[0] == "}":
            start = opened.pop() if opened else None
            if start is not None and start > begin and text[start : brace.start()].strip():
                begin, end = start, brace.start()
        elif brace[0][-1] == "{" and brace[0] != "\\{":  # a brace behind a backslash is a sign, not a brace
            opened.append(brace.end() if len(brace[0]) > 1 else None)
    is_open = any(start is not None for start in opened)
    if begin < 0 and not is_open and (bare := _UNBRACED.findall(text)):
        return bare[-1], False
    return (None if begin < 0 else text[begin:end]), is_open


def _bare(text: str) -> str:
    """Text without the commands and signs that dress a letter up."""
    return _MARKUP.sub("", _FONT.sub(r"\1", _FONT.sub(r"\1", text))).strip()


def _tidy(text: str) -> str:
    return text.strip().strip("*$`\"' ").rstrip(".").strip("*$`\"' ")
