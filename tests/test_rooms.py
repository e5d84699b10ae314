"""The house rules that can be read from the source: rooms, sizes, and what is never loaded."""

import ast
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "motab_jax"
SOURCES = sorted(PACKAGE.rglob("*.py"))
VERBS = {"train", "synthesize", "evaluate", "export", "report", "plan"}
# Floors from the lowest up; a room imports from rooms of its own floor or below.
FLOORS = [
    {"config", "quickstart"},
    {"runtime"},
    {"models", "models.hf", "data", "data.tasks"},
    {"grading", "rollout", "distill"},
    {"session"},
    {"evaluation", "synthesis"},
    {"training"},
    {"planning"},
    {*VERBS, "quickstart.build", "quickstart.plans"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
STRANGERS = [{"rollout", "distill"}]  # a trajectory is all they share, and neither imports the other
MAX_ARROWS = 90
UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
UNSAFE_YAML = {"load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all"}

each_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))


def room(module: str) -> str | None:
    """The room of a dotted module of the package; None for the package itself (its version and main calls)."""
    parts = module.split(".")[1:]
    names = [".".join(parts[:count]) for count in (2, 1) if len(parts) >= count]
    return next((name for name in names if name in FLOOR), parts[0] if parts else None)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_module(dotted: str) -> bool:
    path = ROOT.joinpath(*dotted.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported(tree: ast.AST, path: Path) -> set[str]:
    """Dotted names of everything a file imports, relative imports resolved, at any depth of the code."""
    package = module_of(path).split(".") if path.name == "__init__.py" else module_of(path).split(".")[:-1]
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {dotted if is_module(dotted := f"{base}.{alias.name}") else base for alias in node.names}
    return names


def arrows() -> set[tuple[str, str]]:
    """Pairs (room, room that it imports from): one arrow however many modules and names it stands for."""
    found = set()
    for path in SOURCES:
        source = room(module_of(path))
        targets = {name for name in imported(ast.parse(path.read_text()), path) if name.split(".")[0] == "motab_jax"}
        pairs = {(source, target) for name in targets if source and (target := room(name)) not in (None, source)}
        # A package's __init__ may hand on the names of its own inner room.
        found |= {pair for pair in pairs if path.name != "__init__.py" or not pair[1].startswith(f"{source}.")}
    return found


def wrong(pairs: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """The arrows that go up, from a verb to a verb, or between rooms that must not know each other."""

    def forbidden(source: str, target: str) -> bool:
        return FLOOR[target] > FLOOR[source] or {source, target} <= VERBS or {source, target} in STRANGERS

    return sorted(pair for pair in pairs if forbidden(*pair))


def circles(pairs: set[tuple[str, str]]) -> set[str]:
    """The rooms from which one comes back by following arrows."""
    below = {source: {target for start, target in pairs if start == source} for source, _ in pairs}

    def reached(source: str) -> set[str]:
        seen: set[str] = set()
        todo = [source]
        while todo:
            fresh = below.get(todo.pop(), set()) - seen
            seen |= fresh
            todo += fresh
        return seen

    return {source for source in below if source in reached(source)}


@each_source
def test_every_module_belongs_to_a_room(path):
    assert room(module_of(path)) in {None, *FLOOR}


def test_the_top_level_holds_what_a_user_types():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {*VERBS, "__init__"}


def test_imports_go_down_or_sideways_without_circles():
    assert wrong(arrows()) == []
    assert circles(arrows()) == set()


def test_there_are_few_arrows():
    count = len(arrows())
    print(f"{count} import arrows between {len(FLOOR)} rooms")
    assert count <= MAX_ARROWS


def test_the_room_check_sees_what_it_should():
    assert wrong({("rollout", "distill")}) == [("rollout", "distill")]
    assert wrong({("models", "data"), ("runtime", "config"), ("train", "training")}) == []
    assert wrong({("config", "runtime"), ("train", "evaluate"), ("models.hf", "train")}) == [
        ("config", "runtime"),
        ("models.hf", "train"),
        ("train", "evaluate"),
    ]
    assert circles({("models", "data"), ("data", "models.hf"), ("models.hf", "models"), ("rollout", "data")}) == {
        *("models", "data", "models.hf")
    }
    deep = ast.parse("def f():\n    from ..distill import update\n    from .. import config")
    found = imported(deep, PACKAGE / "rollout" / "engine.py")
    assert {room(name) for name in found} == {"distill", "config"}


@each_source
def test_sizes_are_advice(path):
    """Long files and functions are named, for the reader to ask whether they hold one idea."""
    text = path.read_text()
    if len(text.splitlines()) > 350:
        warnings.warn(f"{path.relative_to(ROOT)} has {len(text.splitlines())} lines", stacklevel=1)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            count = (node.end_lineno or 0) - node.lineno + 1
            if count > 60:
                warnings.warn(f"{path.relative_to(ROOT)}: {node.name} has {count} lines", stacklevel=1)


def unsafe(tree: ast.AST) -> list[str]:
    """What in a file could run code out of data: unpickling, remote code, unsafe YAML."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            names = {module or ""} | {alias.name for alias in node.names}
            found += [name for name in names if name.split(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.Call):
            found += [
                keyword.arg
                for keyword in node.keywords
                if keyword.arg in ("trust_remote_code", "allow_pickle")
                and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
            ]
            found += [ast.unparse(node.func) for _ in [0] if _unsafe_call(node.func)]
        elif isinstance(node, ast.ExceptHandler):
            kind = None if node.type is None else ast.unparse(node.type)
            found += ["broad except"] if kind in (None, "Exception", "BaseException") else []
    return found


def _unsafe_call(function: ast.expr) -> bool:
    if not isinstance(function, ast.Attribute) or not isinstance(function.value, ast.Name):
        return False
    owner, name = function.value.id, function.attr
    return (owner == "yaml" and name in UNSAFE_YAML) or (owner == "torch" and name == "load")


@each_source
def test_nothing_unsafe_is_loaded(path):
    assert unsafe(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from dill import loads",
        "AutoTokenizer.from_pretrained(p, trust_remote_code=True)",
        "np.load(p, allow_pickle=flag)",
        "yaml.load(text, Loader=yaml.Loader)",
        "torch.load(p)",
        "try:\n    f()\nexcept Exception:\n    pass",
        "try:\n    f()\nexcept:\n    pass",
    ],
)
def test_the_safety_check_sees_what_it_should(code):
    assert unsafe(ast.parse(code)) != []


def test_safe_code_passes():
    assert unsafe(ast.parse("yaml.safe_load(t)\nload(p, trust_remote_code=False)\nnp.load(p)")) == []
