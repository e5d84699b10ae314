"""`python -m motab_jax.report RUN [svg=FILE] [count=3]`: the figures of a run, and trajectories in colour.

Green is what the student generated and kept, red struck through is what was discarded, blue is what the teacher
generated.
"""

import functools
import io
import json
import re

from rich.console import Console

from motab_jax.config import UserError
from motab_jax.evaluation.show import choose, show
from motab_jax.runtime.cli import Parser, natural, run_verb
from motab_jax.runtime.files import open_output
from motab_jax.runtime.metrics import read_log
from motab_jax.runtime.storage import path_word

WORDS = Parser(__doc__, configured=False)
WORDS.add_argument("run", metavar="RUN", type=path_word)
WORDS.word("svg", "FILE", "also draw them", type=path_word)
WORDS.word("count", "3", "how many trajectories", type=natural, default=3)


def _without_fonts(svg: str) -> str:
    """The picture without rich's web fonts, which a browser would download; any monospace font will do."""
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


def work(words: list[str]) -> int:
    """The verb: read a run folder, print, draw."""
    from motab_jax.data.tokenizer import decode, load_tokenizer

    args = WORDS.parse(words)
    run = args.run
    if not (run / "summary.json").is_file():
        raise UserError(f"{run}: no summary.json in it; give the folder of a finished run, such as runs/quickstart")
    tokenizer = load_tokenizer(run / "export")
    log = run / "trajectories.jsonl"
    records = choose(read_log(log) if log.is_file() else [], args.count)
    shown = json.loads((run / "summary.json").read_text()), records, functools.partial(decode, tokenizer)
    show(Console(), *shown)
    if args.svg is not None:
        console = Console(record=True, width=100, file=io.StringIO())
        show(console, *shown)
        with open_output("svg", args.svg) as file:
            file.write(_without_fonts(console.export_svg(title="motab_jax")))
    return 0


if __name__ == "__main__":
    run_verb(work)
