"""Programs of a platform, replaced: each says in a file how it was called, and then does what the test wants."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
LIMIT = 120  # seconds

PROGRAM = """#!{python}
import json, os, shutil, subprocess, sys
name, words = {name!r}, sys.argv[1:]
with open({log!r}, "a") as log:
    print(json.dumps([name, *words]), file=log)
"""


class Stubs:
    """Executables in `folder`/bin, and what was asked of them."""

    def __init__(self, folder: Path):
        self.bin, self.log = folder / "bin", folder / "calls.jsonl"
        self.bin.mkdir()

    def add(self, name: str, behaviour: str = "") -> Path:
        """A program; `behaviour` is Python with its `words` at hand, and may leave with a status."""
        path = self.bin / name
        path.write_text(PROGRAM.format(python=sys.executable, name=name, log=str(self.log)) + behaviour)
        path.chmod(0o755)
        return path

    def calls(self) -> list[list[str]]:
        """Every call so far: the program's name and its words."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.is_file() else []

    def run(self, words: list[str], cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess:
        """Run a command that finds these programs first."""
        env = {**os.environ, **variables, "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}"}
        return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=LIMIT)


def options(call: list[str]) -> dict[str, str]:
    """The options of a call: each `--name=value`, and `--name` with an empty value."""
    return {name: value for name, _, value in (word.partition("=") for word in call) if name.startswith("--")}


def the_command(path: Path) -> str:
    """The one command that a launch file's comment gives: the lines set in by two spaces."""
    return "\n".join(line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#   "))
