"""Fakes of the hub, which is out of reach in tests: data sets with the fields of the real ones, and models."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
from huggingface_hub.errors import LocalEntryNotFoundError

AIME24 = {
    "id": 60,
    "problem": "Every morning Ada walks.",
    "solution": r"so $\boxed{204}$",
    "answer": "204",
    "url": "https://example.org/1",
    "year": "2024",
}
AIME25 = {"problem": "Find the sum of all bases.", "answer": "70", "id": "0"}
AMC23 = {"id": 0, "answer": 27.0, "url": "https://example.org/2", "question": "Cities A and B are 45 miles apart."}
MATH500 = {
    "problem": "Convert the point.",
    "solution": r"We have $\boxed{\left( 3, \frac{\pi}{2} \right)}.$",
    "answer": r"\left( 3, \frac{\pi}{2} \right)",
    "subject": "Precalculus",
    "level": 2,
    "unique_id": "test/precalculus/807.json",
}
GPQA = {
    "Record ID": "rec06pnAkLOr2t2mp",
    "Question": "Which of these can be told apart?",
    "Correct Answer": "10^-4 eV\n",
    "Incorrect Answer 1": "10^-11 eV",
    "Incorrect Answer 2": "10^-8 eV",
    "Incorrect Answer 3": "10^-9 eV",
    "Subdomain": "Physics (general)",
}
GSM8K = {"question": "How many clips did she sell?", "answer": "48/2 = <<48/2=24>>24 clips.\n#### 1,072"}
LIMO = {"question": "Find the maximum.", "solution": "Okay, let me think.", "answer": "3", "source": "aops"}
ACEREASON = {"problem": "How many are there?", "answer": "5"}
DEEPMATH = {
    "question": "Evaluate the limit.",
    "final_answer": "0",
    "difficulty": 4.5,
    "topic": "Calculus",
    "r1_solution_1": "Okay.",
    "r1_solution_2": "So.",
    "r1_solution_3": "Hmm.",
}
MATH = {
    "problem": "What is the degree?",
    "level": "Level 5",
    "type": "Algebra",
    "solution": r"The terms are \boxed{1}... no, the degree is $\boxed{\frac{1}{2}}$.",
}

# (hub id, configuration, split) -> records
HUB: dict[tuple[str, str | None, str], list[dict[str, Any]]] = {
    ("HuggingFaceH4/aime_2024", None, "train"): [AIME24],
    ("math-ai/aime25", None, "test"): [AIME25],
    ("math-ai/amc23", None, "test"): [AMC23],
    ("HuggingFaceH4/MATH-500", None, "test"): [MATH500],
    ("Idavidrein/gpqa", "gpqa_diamond", "train"): [GPQA],
    ("openai/gsm8k", "main", "test"): [GSM8K],
    ("openai/gsm8k", "main", "train"): [GSM8K],
    ("GAIR/LIMO-v2", None, "train"): [LIMO],
    ("nvidia/AceReason-Math", None, "train"): [ACEREASON],
    ("zwhe99/DeepMath-103K", None, "train"): [DEEPMATH],
    ("DigitalLearningGmbH/MATH-lighteval", None, "train"): [MATH],
}


class FakeDataset(list):
    """Of `datasets.Dataset` what the loader asks for."""

    @property
    def column_names(self) -> list[str]:
        return list(self[0])

    def select_columns(self, names: list[str]) -> "FakeDataset":
        return FakeDataset({name: record[name] for name in names} for record in self)


def install(monkeypatch, hub: dict[tuple[str, str | None, str], list[dict[str, Any]]]) -> None:
    """Let `import datasets` find the fake, which knows these sets only."""

    def fake_load_dataset(name: str, configuration: str | None, *, split: str) -> FakeDataset:
        if (name, configuration, split) not in hub:
            raise FileNotFoundError(f"the fake hub has no {name}, {configuration}, {split}")
        return FakeDataset(hub[name, configuration, split])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=fake_load_dataset))


def install_models(monkeypatch, models: Mapping[str, Path], cache: Path) -> None:
    """Let `huggingface_hub.snapshot_download` find these models only; it copies the files asked for into `cache`."""

    def fake_snapshot_download(name: str, *, allow_patterns: Sequence[str], ignore_patterns: Sequence[str] = ()) -> str:
        if name not in models:
            raise LocalEntryNotFoundError(f"the fake hub has no {name}")
        snapshot = cache / name
        snapshot.mkdir(parents=True, exist_ok=True)
        for file in models[name].iterdir():
            if any(map(file.match, allow_patterns)):
                shutil.copy(file, snapshot)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake_snapshot_download)
