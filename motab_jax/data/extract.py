"""The final answer in a completion: a boxed one, a tagged one, a stated one, or a letter of a multiple choice.

Left out: grading it (`grading/grade.py`).
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
    r"""The final answer in a completion, or "" if there is none; thinking is skipped.

    It is the last \boxed{...} that isn't empty; else the last <answer>...</answer>; else what follows the last
    "answer is" or "answer:", up to the end of its sentence; else the last number; else the last line. A completion that
    ends inside its only box has no answer.

    >>> extract_answer(r"<think>Is it 3?</think> So it is \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> extract_answer("The answer is 7. I used 3 apples."), extract_answer("4 - 1 - 7 = -4"), extract_answer("")
    ('7', '-4', '')
    """
    text = after_thinking(completion)
    boxed, is_open = _last_box(text)
    marked = last_tagged(text) if boxed is None else boxed
    if marked is not None:
        return marked.strip()
    if is_open:
        return ""
    if stated := _ANSWER_IS.findall(text):
        return _tidy(_SENTENCE_END.split(stated[-1])[0])
    if numbers := _NUMBER.findall(text):
        return numbers[-1]
    lines = text.strip().splitlines()
    return _tidy(lines[-1]) if lines else ""


def extract_choice(completion: str) -> str:
    r"""The letter (A to H) that a completion chooses, or "" if there is none; thinking is skipped.

    It is the content of the last \boxed{...} that isn't empty, such as "B" or "B) 10 eV"; else that of the last
    <answer>...</answer>; else the last of "Answer: B", "the answer is (B)", "the right option is B"; else a last line
    that is one letter.

    >>> extract_choice(r"\boxed{\text{(C)}}"), extract_choice("The right option is B."), extract_choice("Caesium")
    ('C', 'B', '')
    """
    text = after_thinking(completion)
    boxed, is_open = _last_box(text)
    marked = last_tagged(text) if boxed is None else boxed
    if marked is not None:
        marked = _bare(marked).rstrip(".")
        choice = _CHOICE.fullmatch(marked.upper() if len(marked.strip("()")) == 1 else marked)
        return choice[1] if choice else ""
    text = _bare(text)
    if is_open or not text:
        return ""
    if stated := _CHOICE_IS.findall(text):
        return stated[-1]
    choice = _CHOICE.fullmatch(text.splitlines()[-1].strip().rstrip("."))
    return choice[1] if choice else ""


def after_thinking(text: str) -> str:
    """The text after the thinking; "" if a completion that begins with <think> never closes it: it has no answer."""
    before, closed, after = text.rpartition("</think>")
    if closed:
        return after
    return "" if before == "" and "<think>" in text else text


def last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...} or \fbox{...} that is closed and not empty; of nested boxes, the inner one.

    Without one, what follows the last \boxed without braces, as in \boxed 2; else None.

    >>> last_boxed(r"\boxed{1}, no, \boxed{\{2, 3\}}, not \boxed{}")
    '\\{2, 3\\}'
    """
    return _last_box(text)[0]


def last_tagged(text: str) -> str | None:
    """The content of the last <answer>...</answer>; None without one."""
    contents = _ANSWER_TAG.findall(text)
    return contents[-1] if contents else None


def _last_box(text: str) -> tuple[str | None, bool]:
    """(content of the last box that is closed and not empty, whether a box is open at the end), in one pass."""
    opened: list[int | None] = []  # for each open brace: where its box's content starts, None if it is no box
    begin, end = -1, -1
    for brace in _BRACE.finditer(text):
        if brace[0] == "}":
            start = opened.pop() if opened else None
            if start is not None and start > begin and text[start : brace.start()].strip():
                begin, end = start, brace.start()
        elif brace[0][-1] == "{" and brace[0] != "\\{":  # a brace after a backslash is text
            opened.append(brace.end() if len(brace[0]) > 1 else None)
    is_open = any(start is not None for start in opened)
    if begin < 0 and not is_open and (bare := _UNBRACED.findall(text)):
        return bare[-1], False
    return (None if begin < 0 else text[begin:end]), is_open


def _bare(text: str) -> str:
    """Text without the commands and signs that format a letter."""
    return _MARKUP.sub("", _FONT.sub(r"\1", _FONT.sub(r"\1", text))).strip()


def _tidy(text: str) -> str:
    return text.strip().strip("*$`\"' ").rstrip(".").strip("*$`\"' ")
