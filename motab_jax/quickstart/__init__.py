"""The shipped pair of models: `teacher/` and `student/`, Hugging Face folders, with `build.py` and `plans.py`.

Left out: the recipe that distils the teacher into the student, which is configs/quickstart.yaml.
"""

from pathlib import Path

TEACHER = Path(__file__).resolve().parent / "teacher"
STUDENT = Path(__file__).resolve().parent / "student"

__all__ = ["STUDENT", "TEACHER"]
