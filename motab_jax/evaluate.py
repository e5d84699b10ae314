"""`python -m motab_jax.evaluate [CONFIG.yaml] [key=value ...]`: held-out accuracy of the configured student.

To evaluate an export, name it: student.path=runs/NAME/export. Reports avg@k and pass@k (k = eval.samples), the
standard error over problems, the truncation rate and the mean length: a table on standard error, a JSON line on
standard output, one for each of several eval.preset.
"""

import contextlib
import json

from rich.console import Console

from motab_jax.evaluation.evaluator import open_evaluators
from motab_jax.evaluation.show import evaluation_table
from motab_jax.runtime.cli import Parser, run_verb
from motab_jax.runtime.compilation import enable_compilation_cache, set_numerics
from motab_jax.runtime.distributed import initialize, is_main
from motab_jax.runtime.files import open_output
from motab_jax.runtime.progress import Progress
from motab_jax.runtime.storage import path_word
from motab_jax.session.session import open_session

WORDS = Parser(__doc__)
WORDS.word("output", "FILE.jsonl", "also write a line for each completion", type=path_word)


def work(words: list[str]) -> int:
    """The verb: load the models, generate, grade, print."""
    args = WORDS.parse(words)
    set_numerics(args.config.run.matmul_precision, deterministic=args.config.run.deterministic)
    initialize(patience=args.config.run.start_seconds, heartbeat=args.config.run.heartbeat_seconds)
    enable_compilation_cache()
    session = open_session(args.config, teacher=args.config.eval.reverse_kl)
    console = Console(stderr=True, quiet=not is_main())
    console.width = console.width if console.is_terminal else 120
    evaluators, rows = open_evaluators(session), []
    path = args.output if is_main() else None
    with contextlib.nullcontext() if path is None else open_output("output", path) as output:
        student = session.serve(session.student.params)
        for evaluator in evaluators:
            total = len(evaluator.prompts.prompts) * evaluator.section.samples
            with Progress(total, evaluator.name, console=console) as progress:
                metrics = evaluator(student, lambda done, _, bar=progress: bar.update(done))
            assert metrics is not None  # nothing stops it
            problems = metrics.pop("problems")
            if output is not None:
                output.writelines(json.dumps(problem, ensure_ascii=False) + "\n" for problem in problems)
                output.flush()
            if is_main():
                print(json.dumps(metrics), flush=True)
            rows.append(metrics)
    if is_main():
        console.print(evaluation_table(rows))
    return 0


if __name__ == "__main__":
    run_verb(work)
