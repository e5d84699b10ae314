"""`python -m motab_jax.synthesize [CONFIG.yaml] output=FILE [key=value ...]`: rollouts only, one record a trajectory.

rollout.samples_per_prompt trajectories of each training prompt, by the configured student under the teacher's eye; with
method=seqkd by the teacher alone.
A trajectory depends on its prompt, its sample number and run.seed, not on the batch it ran in. FILE is JSON lines, or
Parquet where it ends in .parquet. The same command again goes on where it was stopped; a signal (SIGTERM, SIGINT)
leaves with status 75. Also: sft=FILE.jsonl (chats of prompt and target), preferences=FILE.jsonl (what was discarded
against the teacher's correction), only_correct=true (leave out what isn't known to be right).
"""

from motab_jax.runtime.cli import read_config, run_verb, split_words
from motab_jax.synthesis.output_files import FILES, wanted_files
from motab_jax.synthesis.rolling import synthesize

OWN = (*FILES, "only_correct")


def work(words: list[str]) -> int:
    """The verb."""
    path, overrides, own = split_words(words, own=OWN)
    files = wanted_files(own)
    return synthesize(read_config(path, overrides), files)


if __name__ == "__main__":
    run_verb(__doc__, work, own=OWN)
