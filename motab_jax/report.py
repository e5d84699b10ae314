"""`python -m motab_jax.report RUN [svg=FILE] [count=3]`: the figures of a run, and trajectories in colour.

Green is what the student wrote and kept, red struck through is what was discarded, blue is what the teacher wrote.
"""

import json
import re
from pathlib import Path

from rich.console import Console

from motab_jax.config import UserError
from motab_jax.evaluation.show import choose, show
from motab_jax.runtime.cli import run_verb
from motab_jax.runtime.metrics import read_log


def _without_fonts(svg: str) -> str:
    """The picture without the web fonts that rich would have the reader's browser fetch; any monospace serves."""
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


def work(words: list[str]) -> int:
    """The verb: read a run folder, print, draw."""
    from motab_jax.data.tokenizer import load_tokenizer

    own = dict(word.split("=", 1) for word in words if "=" in word)
    folders = [word for word in words if "=" not in word]
    if len(folders) != 1 or set(own) - {"svg", "count"} or not own.get("count", "3").isdigit():
        raise UserError("usage: python -m motab_jax.report RUN [svg=FILE] [count=3]")
    run = Path(folders[0])
    if not (run / "summary.json").is_file():
        raise UserError(f"{run}: no summary.json in it; give the folder of a finished run, such as runs/quickstart")
    tokenizer = load_tokenizer(run / "export")
    log = run / "trajectories.jsonl"
    records = choose(read_log(log) if log.is_file() else [], int(own.get("count", "3")))
    console = Console(record="svg" in own, width=100 if "svg" in own else None)
    show(
        console,
        json.loads((run / "summary.json").read_text()),
        records,
        lambda ids: tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
    )
    if "svg" in own:
        try:
            Path(own["svg"]).write_text(_without_fonts(console.export_svg(title="motab_jax")), encoding="utf-8")
        except OSError as error:
            raise UserError(f"svg={own['svg']}: can't be written: {error.strerror}") from None
    return 0


if __name__ == "__main__":
    run_verb(__doc__, work, configured=False)
