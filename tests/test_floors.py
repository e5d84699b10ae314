"""The house rules that can be read from the source: floors, sizes, and what is never loaded."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "motab_jax"
SOURCES = sorted(PACKAGE.rglob("*.py"))
FLOORS = {"config": 0, "runtime": 1, "models": 2, "data": 2, "rollout": 3, "distill": 3, "verbs": 4}
UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
UNSAFE_YAML = {"load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all"}

each_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))


def room(module: str) -> str | None:
    """The room of a dotted module of the package; None for the package itself (its version)."""
    parts = module.split(".")
    if len(parts) == 1:
        return None
    return parts[1] if parts[1] in FLOORS else "verbs"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_module(dotted: str) -> bool:
    place = ROOT.joinpath(*dotted.split("."))
    return place.is_dir() or place.with_suffix(".py").is_file()


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


def upward(source: str, targets: set[str]) -> list[str]:
    """The imports of module `source` that do not go down (its own room and the package itself are allowed)."""
    own, wrong = room(source), []
    for target in sorted(targets):
        other = room(target) if target.split(".")[0] == "motab_jax" else None
        if other is None or other == own:
            continue
        if own is None or FLOORS[other] >= FLOORS[own]:
            wrong.append(target)
    return wrong


@each_source
def test_imports_go_down(path):
    tree = ast.parse(path.read_text())
    assert upward(module_of(path), imported(tree, path)) == []


def test_the_floor_check_sees_what_it_should():
    assert upward("motab_jax.rollout.engine", {"motab_jax.distill.update"}) == ["motab_jax.distill.update"]
    assert upward("motab_jax.data.prompts", {"motab_jax.models.cache"}) == ["motab_jax.models.cache"]
    assert upward("motab_jax.runtime.mesh", {"motab_jax.config", "jax", "motab_jax"}) == []
    assert upward("motab_jax.config", {"motab_jax.runtime"}) == ["motab_jax.runtime"]
    assert upward("motab_jax.train", {"motab_jax.evaluate", "motab_jax.rollout", "motab_jax.distill"}) == []
    assert upward("motab_jax.models.gguf", {"motab_jax.export"}) == ["motab_jax.export"]
    deep = ast.parse("def f():\n    from ..distill import update\n    from .. import config")
    assert imported(deep, PACKAGE / "rollout" / "engine.py") >= {"motab_jax.config"}
    assert any(name.startswith("motab_jax.distill") for name in imported(deep, PACKAGE / "rollout" / "engine.py"))


@each_source
def test_sizes(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 350, "a file holds one idea in at most 350 lines"
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lines = [(node.name, (node.end_lineno or 0) - node.lineno + 1) for node in functions]
    long = [(name, count) for name, count in lines if count > 40]
    assert long == [], "functions have at most 40 lines"


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
