"""YAML as configurations use it: safe tags only, no interpolation, and no key twice in one mapping.

Reading and writing agree on what a plain word means, so that every string is read back as it was. As in YAML 1.2,
`1e-5` is a number and `2026-11-27` is text. Left out: streams of several documents.
"""

import json
import re
from typing import Any

import yaml

# PyYAML's own pattern takes 1e-5 for text. A number has a point or an exponent, so 0812 stays text.
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:e[-+]?[0-9]+)?|[0-9][0-9_]*e[-+]?[0-9]+|\.[0-9][0-9_]*(?:e[-+]?[0-9]+)?)$"
    r"|[-+]?\.inf$|\.nan$",
    re.I,
)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a key that stands twice in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key.value}' twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, with the loader's idea of what a plain word means."""


def _represent_text(_: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Text with control characters or other line ends is escaped: PyYAML's other styles don't give them back."""
    return yaml.ScalarNode("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _represent_text)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _first in "-+0123456789.":
    _Loader.yaml_implicit_resolvers.setdefault(_first, []).append(("tag:yaml.org,2002:float", _FLOAT))
_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def read_yaml(text: str) -> Any:
    """The value of a YAML document. Raises yaml.YAMLError."""
    try:
        return _checked(_Loader(text).get_single_data())
    except (RecursionError, ValueError) as error:  # too deeply nested; a number that Python doesn't read
        raise yaml.YAMLError(str(error)) from None


def _checked(value: Any) -> Any:
    """The value itself; ValueError where an escape made half of a surrogate pair, which is no character."""
    json.dumps(value, ensure_ascii=False, default=str).encode()
    return value


def write_yaml(value: Any) -> str:
    """A value as a YAML document, in the order of its keys; `read_yaml` gives an equal value back."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def write_yaml_line(value: Any) -> str:
    """A value as YAML on one line."""
    text = str(yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=float("inf")))
    return text.removesuffix("...\n").strip()


def read_override(text: str) -> Any:
    r"""The value of an override, `key=text`.

    A number, a truth value, null, a quoted string, `[...]` and `{...}` are YAML. Any other text is taken literally,
    line ends and spaces included; nothing at all is null.

    >>> read_override("1e-5"), read_override("[a, 2]"), read_override("a: b # c"), read_override("")
    (1e-05, ['a', 2], 'a: b # c', None)
    >>> read_override("\n\n"), read_override('"\\n\\n"'), read_override("'5'")
    ('\n\n', '\n\n', '5')
    """
    if not text:
        return None
    try:
        loader: Any = _Loader(text)
        node = loader.get_single_node()
        return _checked(loader.construct_document(node)) if node is not None and _is_marked(node, text) else text
    except (yaml.YAMLError, RecursionError, ValueError):
        return text


def _is_marked(node: yaml.Node, text: str) -> bool:
    """Whether a text can only be meant as YAML: quotes or brackets from its start, or a line that is no string."""
    if isinstance(node, yaml.CollectionNode):
        return text[0] in "[{" and bool(node.flow_style)
    return text[0] in "'\"" or (node.tag != "tag:yaml.org,2002:str" and "\n" not in text)
