r"""Whether two mathematical answers have the same value: math-verify's judgement, made exact where it rounds.

math-verify takes 2^{-99} for 2^{-98}, because it compares fifteen decimal places, and reads only the end of a list with
an ellipsis. It does not read the letters of Unicode, and calls \sqrt{1/n} and 1/\sqrt{n} different, because they differ
where neither is real. It runs in a grading process (worker.py). Left out: finding the answer in a text
(data/extract.py).
"""

import re
import unicodedata
from typing import Any

import sympy
from math_verify import grader as library
from math_verify import parse, verify

from motab_jax.grading.rationals import rational

DIGITS = 5e-5  # the largest relative difference of a decimal and the number that it rounds
LONGEST_LIST = 40  # elements of a list with an ellipsis that are compared by value
TOLERATED = (ArithmeticError, AttributeError, LookupError, NotImplementedError, RecursionError, TypeError, ValueError)

_ELLIPSIS = re.compile(r"\\(?:ldots|cdots|dots[cbmio]?)(?![a-zA-Z])|…|⋯|\.{3}")
_ENDLESS_DECIMAL = re.compile(r"[^,;:]*\.\d+\s*(?:\\(?:ldots|cdots|dots)|…|\.{3})\s*\$?\s*")
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿ", "0123456789+-=()n", strict=True))
_RAISED = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_ROOT = re.compile(r"√\s*(?:(\d+|[a-zA-Z])|\(([^()]*)\)|\{([^{}]*)\})")
_SIGNS = str.maketrans({"⁄": "/", "∕": "/", "÷": "/", "−": "-", "≤": r"\le ", "≥": r"\ge ", "∞": r"\infty "})


def same_value(gold: str, answer: str, readable: str, *, seconds: int) -> bool:
    """Whether an answer is the correct one: as text, as a number, element by element, or according to math-verify.

    Args:
      gold: the correct answer, with or without markup.
      answer: the answer as it was extracted.
      readable: what math-verify reads it from: the answer in a box, or the end of the text.
      seconds: the limit of each of math-verify's steps, which it keeps by signal; 0 for none.
    """
    gold, answer, readable = (spelled_out(text) for text in (gold, answer, readable))
    if _plain(answer) == _plain(gold):
        return True
    # Numbers are compared here first, because math-verify rounds and does not read every form of them.
    value = rational(answer)
    if value is not None and value == rational(gold):
        return True
    if _is_list(gold) or _is_list(answer):
        return _is_same_list(gold, answer, seconds)
    return _verified(gold, readable, seconds)


def spelled_out(text: str) -> str:
    r"""The text with Unicode's fractions, powers and roots as LaTeX.

    >>> spelled_out("2½"), spelled_out("x²"), spelled_out("√2")
    ('2\\frac{1}{2}', 'x^{2}', '\\sqrt{2}')
    """
    text = "".join(_fraction(character) for character in text)
    text = _RAISED.sub(lambda run: "^{" + "".join(_SUPERSCRIPTS[sign] for sign in run[0]) + "}", text)
    return _ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2] or root[3]}}}", text).translate(_SIGNS)


def _fraction(character: str) -> str:
    if character.isascii() or not unicodedata.decomposition(character).startswith("<fraction>"):
        return character
    numerator, _, denominator = unicodedata.normalize("NFKC", character).partition("⁄")
    return rf"\frac{{{numerator}}}{{{denominator}}}" if denominator else f"{numerator}/"  # ⅟ is a numerator alone


def _plain(text: str) -> str:
    return "".join(text.replace("$", "").split())


def _is_list(text: str) -> bool:
    """Whether an ellipsis leaves out elements, and not the digits of a decimal."""
    return _ELLIPSIS.search(text) is not None and _ENDLESS_DECIMAL.fullmatch(text) is None


def _is_same_list(gold: str, answer: str, seconds: int) -> bool:
    """Whether two lists show the same elements on the same sides of each ellipsis."""
    ours, theirs = ([_elements(run) for run in _ELLIPSIS.split(text)] for text in (gold, answer))
    if [len(run) for run in ours] != [len(run) for run in theirs]:
        return False
    pairs = [pair for runs in zip(ours, theirs, strict=True) for pair in zip(*runs, strict=True)]
    if len(pairs) > LONGEST_LIST:
        return all(_plain(one) == _plain(two) for one, two in pairs)
    return all(
        _plain(one) == _plain(two)
        or (rational(one) is not None and rational(one) == rational(two))
        or (bool(one and two) and _verified(one, rf"\boxed{{{two}}}", seconds))
        for one, two in pairs
    )


def _elements(text: str) -> list[str]:
    bare = text.replace("\\{", "").replace("\\}", "").strip(" \n\t,;:$")
    return [element.strip(" \n\t$+*") for element in re.split(r"[,;:]", bare)]


def _verified(gold: str, readable: str, seconds: int) -> bool:
    """math-verify's judgement."""
    is_marked_up = "\\boxed" in gold or gold.replace("\\$", "").count("$") >= 2
    gold = gold if is_marked_up else rf"\boxed{{{gold}}}"
    correct, given = (parse(text, parsing_timeout=seconds) for text in (gold, readable))
    # x <= 2 is as good an answer as (-oo, 2].
    return bool(verify(correct, given, timeout_seconds=seconds, allow_set_relation_comp=True))


def _differ(a: Any, b: Any) -> bool:
    """Whether two expressions that math-verify found equal to some decimal places differ for all that."""
    try:
        if any(isinstance(x, sympy.MatrixBase | sympy.MatrixExpr) or x.has(sympy.UnevaluatedExpr) for x in (a, b)):
            return False  # matrices come here element by element; 25\% is right for 25 and for 0.25
        a, b = a.doit(), b.doit()
        if a.has(sympy.Float) or b.has(sympy.Float):
            size = max(abs(sympy.N(a)), abs(sympy.N(b)))
            return bool(abs(sympy.N(a - b)) > DIGITS * size)
        return (a - b).evalf(15, strict=True) != 0
    except TOLERATED:  # PrecisionExhausted among them: no digit of the difference is known to be other than 0
        return False


def _agree_where_real(a: Any, b: Any) -> bool:
    r"""Whether two expressions of the same variables agree at all of some points at which both are real.

    Points have variables of both signs, so x is not |x|; at the points where \sqrt{1/n} is not real it is not compared.
    """
    try:
        if not (isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr)) or a.has(sympy.Float) or b.has(sympy.Float):
            return False
        variables: list[Any] = sorted(a.free_symbols, key=str)
        if not variables or a.free_symbols != b.free_symbols:
            return False
        compared = 0
        for point in _points(variables):
            at_a, at_b = a.subs(point), b.subs(point)
            if sympy.N(at_a).is_real and sympy.N(at_b).is_real:
                if not _is_zero(at_a - at_b):
                    return False
                compared += 1
        return compared >= 3
    except TOLERATED:
        return False


def _points(variables: list[Any]) -> list[list[tuple[Any, Any]]]:
    """Four points of positive variables, then eight of both signs."""
    points = []
    for number in range(12):
        values = [sympy.Rational(3 + 4 * number + 6 * n, 5 + 2 * number + n) for n in range(len(variables))]
        signs = [-1 if number >= 4 and (number - 3) >> n & 1 else 1 for n in range(len(variables))]
        points.append([(x, sign * value) for x, sign, value in zip(variables, signs, values, strict=True)])
    return points


def _is_zero(difference: Any) -> bool:
    try:
        return difference.evalf(15, strict=True) == 0
    except sympy.core.evalf.PrecisionExhausted:
        return True


def _correct_the_library() -> None:
    """Have math-verify's comparisons of two numbers and of two expressions, inside sets and tuples too, be exact."""
    numeric, symbolic = library.sympy_numeric_eq, library.sympy_symbolic_eq
    library.sympy_numeric_eq = lambda a, b, *rest: numeric(a, b, *rest) and not _differ(a, b)
    library.sympy_symbolic_eq = lambda a, b: symbolic(a, b) or _agree_where_real(a, b)


_correct_the_library()
