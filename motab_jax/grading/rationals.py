r"""Plain numbers as exact fractions: 1,234.50, 3/4, 2 1/2, \frac{3}{4}, 2\frac{1}{2}, 1.5e-3, 6.02\times10^{23}, \$18.

Left out: roots, constants, percents and units, which need a grader that knows mathematics.
"""

import re
from fractions import Fraction

LONGEST = 400  # characters, and the largest power of ten

_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+"
_SCIENTIFIC = re.compile(rf"({_DECIMAL})(?:(?:[eE]|\s*(?:\\times|\\cdot|[×·*])\s*10\s*\^\s*)\{{?([+-]?\d+)\}}?)?")
_RATIO = re.compile(r"(?:(\d+)\s+)?(\d+)\s*/\s*(\d+)")
_PART = r"(?:\{\s*(-?\d+)\s*\}|(\d))"
_FRAC = re.compile(rf"(\d*)\s*\\[dt]?frac\s*{_PART}\s*{_PART}")
_SPACED = re.compile(r"(?<=\d)(?:\\[, ]|\{,\}|\\!,\\!|,\\!)(?=\d{3}(?!\d))")
_SIGN = re.compile(r"\s*([+-]?)\s*(?:\\?\$|[€£¥])?\s*")


def rational(text: str) -> Fraction | None:
    r"""The value of a text that is one plain number and nothing else, or None.

    >>> rational(r"2\frac{1}{2}"), rational("-1,234.50"), rational("1.5e-3")
    (Fraction(5, 2), Fraction(-2469, 2), Fraction(3, 2000))
    >>> rational("1,23") is None and rational("2 apples") is None
    True
    """
    text = text.strip().strip("$").replace("−", "-")
    if len(text) > LONGEST:
        return None
    if text.startswith("(") and text.endswith(")") and "," not in text:
        text = text[1:-1]
    text = _SPACED.sub(",", text)
    sign = _SIGN.match(text)
    assert sign is not None  # it matches an empty text, too
    value = _unsigned(text[sign.end() :].strip())
    return value if value is None or sign[1] != "-" else -value


def _unsigned(text: str) -> Fraction | None:
    """The value of an unsigned number."""
    if match := _SCIENTIFIC.fullmatch(text):
        value, power = Fraction(match[1].replace(",", "").rstrip(".")), int(match[2] or 0)
        return value * Fraction(10) ** power if abs(power) <= LONGEST else None
    if match := _RATIO.fullmatch(text):
        whole, numerator, denominator = int(match[1] or 0), int(match[2]), int(match[3])
    elif match := _FRAC.fullmatch(text):
        whole, numerator, denominator = int(match[1] or 0), int(match[2] or match[3]), int(match[4] or match[5])
    else:
        return None
    return None if denominator == 0 else whole + Fraction(numerator, denominator)
