"""README: short, its tree true, its configurations load; and the links of all pages lead somewhere."""

import re

import pytest

from motab_jax.config import load_config
from tests.docs.pages import PAGES, README, ROOT, anchors, blocks, links, prose

TREE = next(block.text for block in blocks(README) if block.text.startswith("motab_jax/\n"))
YAML = [block for page in PAGES for block in blocks(page) if block.language == "yaml"]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def tree_paths(tree: str) -> list[str]:
    """The paths of an annotated tree: the names that a line begins with, below the folders it is indented under.

    Names after a folder's on the same line are inside it.
    """
    paths: list[str] = []
    folders: dict[int, str] = {}
    for line in tree.splitlines():
        depth = len(line) - len(line.lstrip())
        folders = {above: folder for above, folder in folders.items() if above < depth}
        above = "".join(folders.values())
        for word in line.split():
            name = word.rstrip(":,")
            if not re.fullmatch(r"[\w.]+/|[\w.]+\.(py|sh|yaml)", name):
                break
            paths.append(above + name)
            if name.endswith("/") and depth not in folders:
                folders[depth] = name
                above += name
            if word != name:
                break
    return paths


def test_a_tree_is_read_as_it_looks():
    tree = "a/\n  b.py c.py   two files\n  d/   e.py f/ g.py: a folder\n    h.py\ni/   x.py\n"
    folder = ["a/d/", "a/d/e.py", "a/d/f/", "a/d/g.py", "a/d/h.py"]
    assert tree_paths(tree) == ["a/", "a/b.py", "a/c.py", *folder, "i/", "i/x.py"]


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= 250


def test_every_path_of_the_tree_exists():
    assert [path for path in tree_paths(TREE) if not (ROOT / path).exists()] == []


def test_every_module_is_in_the_tree_once():
    shown = [path for path in tree_paths(TREE) if path.startswith("motab_jax/") and path.endswith(".py")]
    there = [str(path.relative_to(ROOT)) for path in (ROOT / "motab_jax").rglob("*.py") if path.name != "__init__.py"]
    assert sorted(shown) == sorted(there)


@each_page
def test_every_link_leads_somewhere(page):
    lost = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert lost == []


@each_page
def test_every_file_of_the_repository_that_is_named_exists(page):
    """Paths in backticks below a folder of the repository; a name in capitals stands for several."""
    named = re.findall(r"`((?:motab_jax|tests|configs|launch|benchmarks|docs|requirements)/[\w./-]*)`", prose(page))
    assert [path for path in named if not re.search("[A-Z]", path) and not (ROOT / path).exists()] == []


@pytest.mark.parametrize("block", YAML, ids=lambda block: block.name)
def test_a_configuration_on_a_page_loads(block, tmp_path):
    path = tmp_path / "shown.yaml"
    path.write_text(block.text)
    load_config(path)


def test_readme_shows_a_configuration():
    assert any(block.page == README for block in YAML)
