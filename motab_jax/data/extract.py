"""The final answer in a completion: a boxed one, a tagged one, a stated one, or a letter of a multiple choice.

The time grows with a text's length, not with its square: a model that fails can generate thousands of newlines or tags.
Left out: grading it (`grading/grade.py`).
"""

import re

_OPEN_TAG, _CLOSE_TAG = "<answer>", "</answer>"
# `++` and `*+` never give back what they matched, so a run of white space is read once.
_ANSWER_IS = re.compile(r"answer(?:\s++is|\s*+:)\s*+:?\s*+([^\n]+)", re.IGNORECASE)
# The sign counts only where it isn't a minus between two terms; a comma only before three digits.
_NUMBER = re.compile(r"(?:(?<![\w)])-)?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?")
_SENTENCE_END = re.compile(r"\.\s")
_UNBRACED = re.compile(r"\\boxed\s+([^\s{}$\\]+)")
_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)

_FONT = re.compile(r"\\(?:text|mathrm|mathbf|mathsf|mathit)\w*\s*\{([^{}]*)\}")
_MARKUP = re.compile(r"\\[()\[\],;! ]|[*$`_]")
_CHOICE = re.compile(r"\(?([A-H])(?:\)?$|[).:]\s.*)", re.DOTALL)
_CHOICE_IS = re.compile(
    r"(?i:answer\s*+:|(?:answer|choice|option)\s++is\b\s*+:?)\s*+(?i:(?:option|choice|letter)\s++)?"
    r"\(?([A-H])(?![\w'])(?!\s*=)"
)


def extract_answer(completion: str, *, opened_thought: bool = False) -> str:
    r"""The final answer in a completion, or "" if there is none; thinking is skipped.

    It is the content of the last \boxed{...}; else of the last <answer>...</answer>; else what follows the last
    "answer is" or "answer:", up to the end of its sentence; else the last number; else the last line. A completion has
    no answer if its last box is never closed, or is empty after one that isn't.

    Args:
      completion: the text after the prompt.
      opened_thought: the prompt ends in a <think> that the completion has to close.

    >>> extract_answer(r"<think>Is it 3?</think> So it is \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> extract_answer("The answer is 7. I used 3 apples."), extract_answer("4 - 1 - 7 = -4"), extract_answer("")
    ('7', '-4', '')
    >>> extract_answer(r"Is it \boxed{3}? Wait", opened_thought=True)
    ''
    """
    text = after_thinking(completion, opened_thought=opened_thought)
    boxed, is_void = _last_box(text)
    if is_void:
        return ""
    marked = last_tagged(text) if boxed is None else boxed
    if marked is not None:
        return marked.strip()
    if stated := _ANSWER_IS.findall(text):
        return _tidy(_SENTENCE_END.split(stated[-1])[0])
    if numbers := _NUMBER.findall(text):
        return numbers[-1]
    lines = text.strip().splitlines()
    return _tidy(lines[-1]) if lines else ""


def extract_choice(completion: str, *, opened_thought: bool = False) -> str:
    r"""The letter (A to H) that a completion chooses, or "" if there is none; thinking is skipped.

    It is the content of the last \boxed{...}, such as "B" or "B) 10 eV"; else that of the last <answer>...</answer>;
    else the last of "Answer: B", "the answer is (B)", "the right option is B"; else a last line that is one letter.

    Args:
      completion: the text after the prompt.
      opened_thought: the prompt ends in a <think> that the completion has to close.

    >>> extract_choice(r"\boxed{\text{(C)}}"), extract_choice("The right option is B."), extract_choice("Caesium")
    ('C', 'B', '')
    """
    text = after_thinking(completion, opened_thought=opened_thought)
    boxed, is_void = _last_box(text)
    if is_void:
        return ""
    marked = last_tagged(text) if boxed is None else boxed
    if marked is not None:
        marked = _bare(marked).rstrip(".")
        choice = _CHOICE.fullmatch(marked.upper() if len(marked.strip("()")) == 1 else marked)
        return choice[1] if choice else ""
    text = _bare(text)
    if not text:
        return ""
    if stated := _CHOICE_IS.findall(text):
        return stated[-1]
    choice = _CHOICE.fullmatch(text.splitlines()[-1].strip().rstrip("."))
    return choice[1] if choice else ""


def after_thinking(text: str, *, opened_thought: bool = False) -> str:
    """A completion's text after the thinking; "" where a thought is never closed: such a completion has no answer.

    Args:
      text: the completion.
      opened_thought: the prompt ends in a <think> that the completion has to close.

    >>> after_thinking("so 3</think> It is 3.", opened_thought=True), after_thinking("so 3", opened_thought=True)
    (' It is 3.', '')
    """
    _, closed, after = text.rpartition("</think>")
    return "" if "<think>" in after or (opened_thought and not closed) else after


def last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...} or \fbox{...}; of nested boxes, the inner one.

    Without one, what follows the last \boxed without braces, as in \boxed 2. None where there is neither, and where the
    last box is empty or never closed.

    >>> last_boxed(r"\boxed{1}, no, \boxed{\{2, 3\}}"), last_boxed(r"\boxed{1}, no, \boxed{")
    ('\\{2, 3\\}', None)
    """
    return _last_box(text)[0]


def last_tagged(text: str) -> str | None:
    """The content of the last <answer>...</answer>; None without one."""
    end = text.rfind(_CLOSE_TAG)
    start = text.rfind(_OPEN_TAG, 0, max(end, 0))
    return None if start < 0 else text[start + len(_OPEN_TAG) : end]


def _last_box(text: str) -> tuple[str | None, bool]:
    r"""The last box that begins in a text, in one pass.

    Returns:
      Its content, None if it is empty or never closed; whether the text has no answer for that reason: an empty box
      without a filled one before it only names the form, as in "I shall use \boxed{}".
    """
    opened: list[int | None] = []  # for each open brace: where its box's content starts, None if it is no box
    last, content, has_filled = -1, None, False
    for brace in _BRACE.finditer(text):
        if brace[0] == "}":
            start = opened.pop() if opened else None
            if start is not None and start == last:
                content = text[start : brace.start()]
                has_filled = has_filled or bool(content.strip())
        elif brace[0][-1] == "{" and brace[0] != "\\{":  # a brace after a backslash is text
            is_box = len(brace[0]) > 1
            opened.append(brace.end() if is_box else None)
            if is_box:
                last, content = brace.end(), None
    if content is not None and content.strip():
        return content, False
    if last < 0 or (content is not None and not has_filled):
        bare = _UNBRACED.findall(text)
        return (bare[-1] if bare else None), False
    return None, True


def _bare(text: str) -> str:
    """Text without the commands and signs that format a letter."""
    return _MARKUP.sub("", _FONT.sub(r"\1", _FONT.sub(r"\1", text))).strip()


def _tidy(text: str) -> str:
    return text.strip().strip("*$`\"' ").rstrip(".").strip("*$`\"' ")
