"""The replaced programs; and a word about tests that need a program that may not be there."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.launch.stubs import Stubs


@pytest.fixture
def stubs(tmp_path):
    return Stubs(tmp_path)


@pytest.fixture
def program():
    """The path of a real program, beside this Python or on PATH; without it the test is skipped."""

    def find(name: str, extra: str) -> str:
        places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        found = shutil.which(name, path=places)
        if found is None:
            pytest.skip(f"{name} isn't installed; the extra [{extra}] brings it")
        return found

    return find
