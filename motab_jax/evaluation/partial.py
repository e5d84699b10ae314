"""What an evaluation has so far, in a file, so that a stopped run goes on from there."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from motab_jax.evaluation.metrics import Graded
from motab_jax.runtime.distributed import is_main
from motab_jax.runtime.files import write_atomically
from motab_jax.runtime.hosts import from_main


@dataclasses.dataclass(frozen=True)
class Partial:
    """Completions of an evaluation that are graded, in their order."""

    graded: list[Graded]
    kl_sum: float = 0.0
    kl_tokens: float = 0.0


@dataclasses.dataclass(frozen=True)
class PartialFile:
    """Where the main process keeps a `Partial`; results of another evaluation than `what` names are not read."""

    path: Path
    what: dict[str, Any]

    def load(self, **what: Any) -> tuple[int, Partial]:
        """The number of completions that are graded already, and what the main process has of them.

        Args:
          **what: more that names the evaluation.
        """
        partial = Partial([])
        if is_main() and self.path.is_file():
            try:
                saved = json.loads(self.path.read_text(encoding="utf-8"))
                if saved["what"] == {**self.what, **what}:
                    graded = [Graded(**line) for line in saved["graded"]]
                    partial = Partial(graded, saved["kl_sum"], saved["kl_tokens"])
            except (ValueError, KeyError, TypeError):
                pass  # a file that is damaged saves no time, and costs nothing else
        return from_main(len(partial.graded)), partial

    def save(self, partial: Partial, **what: Any) -> None:
        """Write what there is; `what` as for `load`."""
        if is_main():
            saved = {"what": {**self.what, **what}, **dataclasses.asdict(partial)}
            write_atomically(self.path, json.dumps(saved))

    def clear(self) -> None:
        """Remove the file: the evaluation is done."""
        if is_main():
            self.path.unlink(missing_ok=True)
