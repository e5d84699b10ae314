"""Every command of README, CONTRIBUTING and docs/, run as it stands in a copy of the repository.

They train and generate, so they run with `-m long`, as `.ci/run` does.

The blocks run in the order of the pages, README first, so later ones find the run that its quickstart made. What makes
the copy small and fast, and differs from a user's machine:

- the interpreter of its `.venv` is a script: it adds SHORT to the words of the verbs that train or generate (2 training
  steps of at most 24 new tokens; batches keep their sizes, since those must divide over devices), and it installs
  nothing;
- `models/teacher` and `models/student`, where a page speaks of the user's own, are the shipped pair, with more
  positions;
- there is no hub.

A comment on the line in front of a block says more: `<!-- not run: REASON -->`, it can't run here; `<!-- long: REASON
-->`, it runs alone; `<!-- file: NAME -->`, the user writes it to that file.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from tests.docs.pages import PAGES, ROOT, Block, blocks

BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [block for block in BLOCKS if block.language in ("", "bash", "sh", "console", "python")]
LIMIT = 500  # seconds for a block
SHORT = "run.steps=2 run.sample_every=1 rollout.max_new_tokens=24 eval.prompts=8"
INTERPRETER = f"""#!/usr/bin/env bash
case "$1 $2" in
  "-m pip") exit 0 ;;
  "-m motab_jax.train" | "-m motab_jax.synthesize" | "-m motab_jax.evaluate") exec "{sys.executable}" "$@" {SHORT} ;;
  *) exec "{sys.executable}" "$@" ;;
esac
"""


def write_copy(folder: Path) -> None:
    """The repository's files without its tests, a virtual environment, and the user's two models."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.split("\0"):
        if name and not name.startswith("tests/") and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name in ("python", "python3"):
        (binaries / name).write_text(INTERPRETER)
        (binaries / name).chmod(0o755)
    (binaries / "activate").write_text(f'export PATH="{binaries}:$PATH"\n')
    for role in ("teacher", "student"):
        model = folder / "models" / role
        shutil.copytree(ROOT / "motab_jax" / "quickstart" / role, model)
        shape = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**shape, "max_position_embeddings": 4096}))


class Copy:
    """A copy of the repository in which the pages' blocks are run in order, each once."""

    def __init__(self, folder: Path, compiled: str):
        self.folder = folder
        self.done: dict[str, subprocess.CompletedProcess] = {}
        write_copy(folder)
        inherited = {name: value for name, value in os.environ.items() if name not in ("VENV", "PYTHON3")}
        flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
        self.environment = {
            **inherited,
            "PATH": f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(folder),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": flags.strip(),
            "JAX_COMPILATION_CACHE_DIR": compiled,
            "HF_HUB_OFFLINE": "1",
        }

    def run(self, block: Block) -> subprocess.CompletedProcess:
        """Run a block, after those before it that have not run yet; a long one runs alone."""
        for earlier in BLOCKS[: BLOCKS.index(block)]:
            if (name := earlier.noted("file")) is not None:
                (self.folder / name).write_text(earlier.text)
            elif earlier in COMMANDS and not earlier.note and not block.note and earlier.name not in self.done:
                self.done[earlier.name] = self._execute(earlier)
        if block.name not in self.done:
            self.done[block.name] = self._execute(block)
        return self.done[block.name]

    def _execute(self, block: Block) -> subprocess.CompletedProcess:
        shell = ["python"] if block.language == "python" else ["bash", "-euo", "pipefail"]
        return subprocess.run(
            [*shell, "-c", block.text],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=LIMIT, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Copy:
    compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR") or jax.config.values["jax_compilation_cache_dir"]
    return Copy(tmp_path_factory.mktemp("repository"), compiled or str(tmp_path_factory.mktemp("compiled")))


@pytest.mark.long
@pytest.mark.parametrize("block", COMMANDS, ids=lambda block: block.name)
def test_a_block_runs(block, copy):
    if (reason := block.noted("not run")) is not None:
        pytest.skip(f"not run: {reason}")
    process = copy.run(block)
    assert process.returncode == 0, f"{block.text}\n{process.stdout[-3000:]}\n{process.stderr[-3000:]}"


def test_every_block_says_its_language():
    """Otherwise nobody knows whether it is a command; and indented ones would be missed."""
    assert [block.name for block in BLOCKS if not block.language] == []
    loose = [(page.name, line) for page in PAGES for line in page.read_text().splitlines()]
    assert [found for found in loose if re.match(r" {4,}(bash|python|pytest|pip) ", found[1])] == []


def test_comments_in_front_of_blocks_are_known_ones():
    assert [block.name for block in BLOCKS if block.note and not re.match("(not run|long|file): .", block.note)] == []


def test_the_commands_of_readme_run():
    """Only the tests themselves are left out."""
    left_out = [block.text for block in COMMANDS if block.page.name == "README.md" and block.noted("not run")]
    assert all(text.startswith("bash launch/test.sh") for text in left_out)
