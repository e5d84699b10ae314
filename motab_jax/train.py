"""`python -m motab_jax.train [CONFIG.yaml] [key=value ...] [--profile]`: distil the student, step by step.

Without a file it runs the quickstart recipe on the shipped pair. The run folder (run.dir/run.name) gets config.yaml,
metrics.jsonl, trajectories.jsonl, checkpoints/, export/ and summary.json. The same command again resumes. A signal
(SIGTERM, SIGINT) saves and leaves with status 75.
"""

from motab_jax.runtime.callable_module import make_callable
from motab_jax.runtime.cli import Parser, run_verb
from motab_jax.training.loop import train

WORDS = Parser(__doc__)
WORDS.option("profile", "", "write a JAX profiler trace of this process's third step, or its last, to profile/")


def work(words: list[str]) -> int:
    """The verb."""
    args = WORDS.parse(words)
    return train(args.config, profile=args.profile)


make_callable(__name__)  # motab_jax.train(config)

if __name__ == "__main__":
    run_verb(work)
