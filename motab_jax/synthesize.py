"""`python -m motab_jax.synthesize [CONFIG.yaml] output=FILE [key=value ...]`: rollouts only, one record a trajectory.

rollout.samples_per_prompt trajectories of each training prompt, written by the configured student and monitored by the
teacher; with method=seqkd by the teacher alone. A trajectory depends on its prompt, its sample number and run.seed, not
on the batch it ran in. The same command again resumes; a signal (SIGTERM, SIGINT) leaves with status 75.
"""

from pathlib import Path

from motab_jax.runtime.cli import Parser, run_verb, truth
from motab_jax.synthesis.output_files import OutputFiles, check_files
from motab_jax.synthesis.rolling import synthesize

WORDS = Parser(__doc__)
WORDS.word("output", "FILE", "the records: JSON lines, or Parquet where it ends in .parquet", type=Path, required=True)
WORDS.word("sft", "FILE.jsonl", "also write chats of prompt and target", type=Path)
WORDS.word("preferences", "FILE.jsonl", "also write what was discarded against the teacher's correction", type=Path)
WORDS.word("only_correct", "true", "leave out what isn't known to be right", type=truth, default=False)


def work(words: list[str]) -> int:
    """The verb."""
    args = WORDS.parse(words)
    files = OutputFiles(args.output, args.sft, args.preferences, args.only_correct)
    check_files(files)
    return synthesize(args.config, files)


if __name__ == "__main__":
    run_verb(work)
