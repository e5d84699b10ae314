"""Exports in the programs that people serve them with: transformers 4.57 and 5, and vLLM on the CPU.

Their greedy texts equal those of our own engine. `bash tests/real/install.sh transformers4` (seconds) and
`bash tests/real/install.sh vllm` (about ten minutes) install the programs; what is absent is skipped, and said.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from motab_jax.config import load_config
from motab_jax.data.tasks import arithmetic
from motab_jax.quickstart import STUDENT, build
from motab_jax.session.export import export_student
from motab_jax.session.session import open_session

pytestmark = pytest.mark.real
ROOT, PROMPTS, SECONDS = Path(__file__).parents[2], 50, 900
TRANSFORMERS_4, VLLM = ROOT / ".transformers4", ROOT / ".venv-vllm/bin/python"
ADVICE = "is not installed: bash tests/real/install.sh"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder of an export, prompts, our engine's greedy texts)."""
    session = open_session(load_config(None, [f"student.path={STUDENT}"]), teacher=False)
    folder = tmp_path_factory.mktemp("exports") / "student"
    export_student(session, session.student.params, folder)
    problems = arithmetic.problems(PROMPTS, seed=7, split="held_out")
    texts = [text for text, _ in build.complete(session.student, session.tokenizer, problems)]
    return folder, [problem.prompt for problem in problems], texts


def generated(python: Path | str, program: str, exported, **environment: str) -> list[str]:
    """What the program generates, in the environment of that Python."""
    folder, prompts, _ = exported
    done = subprocess.run(
        [python, Path(__file__).with_name("generate.py"), program, folder],
        input=json.dumps(prompts),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch: pip install '.[parity]'")
def test_transformers_5_generates_our_texts(exported):
    assert generated(sys.executable, "transformers", exported) == exported[2]


@pytest.mark.skipif(not TRANSFORMERS_4.is_dir(), reason=f"transformers 4.57 {ADVICE} transformers4")
def test_transformers_4_generates_our_texts(exported):
    assert generated(sys.executable, "transformers", exported, PYTHONPATH=str(TRANSFORMERS_4)) == exported[2]


@pytest.mark.skipif(not VLLM.is_file(), reason=f"vLLM {ADVICE} vllm")
def test_vllm_generates_our_texts(exported):
    assert generated(VLLM, "vllm", exported) == exported[2]
