"""`python -m motab_jax.train [CONFIG.yaml] [key=value ...] [--profile]`: distil the student, step by step.

Without a file it runs the quickstart recipe on the shipped pair. The run folder (run.dir/run.name) gets config.yaml,
metrics.jsonl, trajectories.jsonl, checkpoints/, export/ and summary.json. The same command again resumes. A signal
(SIGTERM, SIGINT) saves and leaves with status 75. --profile writes a JAX profiler trace of one step (this process's
third, or its last one) to the run folder's profile/.
"""

from motab_jax.runtime.cli import read_config, run_verb, split_words
from motab_jax.training.loop import train

PROFILE = "--profile"


def work(words: list[str]) -> int:
    """The verb."""
    path, overrides, _ = split_words([word for word in words if word != PROFILE])
    return train(read_config(path, overrides), profile=PROFILE in words)


if __name__ == "__main__":
    run_verb(__doc__, work, flags=(PROFILE,))
