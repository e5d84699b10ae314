"""The glossary's forbidden words: no identifier of the package has one as a part."""

import ast
import re
from collections.abc import Iterator

from tests.docs.pages import ROOT

GLOSSARY = ROOT / "docs" / "glossary.md"


def forbidden(text: str) -> set[str]:
    """The words in backticks of the last column of the glossary's tables."""
    rows = [re.split(r"(?<!\\)\|", line) for line in text.splitlines() if line.startswith("|")]
    return {word for row in rows for word in re.findall(r"`(\w+)`", row[-2])}


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names, attributes, arguments, functions, classes, keywords and imported names, with their lines."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname"):
            if isinstance(name := getattr(node, field, None), str):
                yield from ((part, getattr(node, "lineno", 0)) for part in name.split("."))


def parts(identifier: str) -> set[str]:
    """The words of an identifier in snake_case or CamelCase, in small letters."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", identifier)}


def test_the_glossary_forbids_words():
    assert {"opine", "slope", "places"} <= forbidden(GLOSSARY.read_text())
    assert forbidden(r"| jsd | KL(p \|\| q), `kept` | w | `mine`, `heat` |") == {"mine", "heat"}


def test_identifiers_are_split():
    assert parts("_TransposedWeight2") == {"transposed", "weight", "2"}
    assert parts("hf_JSONFile") == {"hf", "json", "file"} and parts("MAX_ROWS") == {"max", "rows"}
    code = ast.parse("import a.b as c\nclass D(e):\n    def f(self, *, g=1):\n        h.i(j=2)")
    assert {name for name, _ in identifiers(code)} == {"a", "b", "c", "D", "e", "f", "self", "g", "h", "i", "j"}


def test_no_identifier_has_a_forbidden_word():
    words = forbidden(GLOSSARY.read_text())
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sorted((ROOT / "motab_jax").rglob("*.py"))
        for name, line in identifiers(ast.parse(path.read_text()))
        if parts(name) & words
    ]
    assert found == []
