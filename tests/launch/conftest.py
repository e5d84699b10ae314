"""The replaced programs, a checkout without anything installed, and the real programs that may not be there."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.launch.stubs import LAUNCH, Stubs

# A Python that makes environments with itself in them, and uv where pip is told to; OLD: of a version before 3.11.
PYTHON3 = """
if words[0] == "-c":
    sys.exit(1 if os.environ.get("OLD") else 0)
made = words[words.index("--target") + 1] + "/bin/uv" if "--target" in words else None
made = words[-1] + "/bin/python" if "venv" in words else made
if made:
    os.makedirs(os.path.dirname(made), exist_ok=True)
    shutil.copy(__file__, made)
"""


@pytest.fixture
def stubs(tmp_path):
    return Stubs(tmp_path)


@pytest.fixture
def host(stubs, tmp_path):
    """A folder with what installing needs of the checkout, and a replaced python3."""
    stubs.add("python3", PYTHON3)
    folder = tmp_path / "host"
    for name in ("launch", "requirements"):
        shutil.copytree(LAUNCH.parent / name, folder / name)
    (folder / "setup.py").touch()
    return folder


@pytest.fixture
def program():
    """The path of a real program, beside this Python or on PATH; without it the test is skipped."""

    def find(name: str) -> str:
        places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        found = shutil.which(name, path=places)
        if found is None:
            pytest.skip(f"{name} isn't installed; the extra [test] or requirements/launch.txt brings it")
        return found

    return find
