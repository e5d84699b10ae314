"""`python -m motab_jax.synthesize [CONFIG.yaml] output=FILE.jsonl [key=value ...]`: rollouts only, one record a line.

rollout.samples_per_prompt trajectories of each training prompt, by the configured student under the teacher's eye.
A trajectory depends on its prompt, its sample number and run.seed, not on the batch it ran in.
"""

import dataclasses
import json
from typing import Any

import jax

from motab_jax.cli import enable_compilation_cache, open_output, read_config, run_verb, split_words
from motab_jax.config import UserError
from motab_jax.data.answers import grade
from motab_jax.data.records import Prompt
from motab_jax.rollout import rollout
from motab_jax.rollout.record import describe
from motab_jax.runtime.mesh import check_batch
from motab_jax.runtime.progress import Progress
from motab_jax.session import Session, open_session, training_prompts


def make_record(
    session: Session, prompt: Prompt, tokens: list[int], sample: int, trajectory, row: int
) -> dict[str, Any]:
    """One trajectory as a JSON-able record; `correct` is null where no answer is known."""
    objective = session.config.objective
    found = describe(trajectory, row, session.decode, target=objective.target, transition=objective.transition_text)
    correct = None if prompt.grader == "none" else grade(prompt, found["text"])
    return {
        "id": prompt.id,
        "sample": sample,
        "prompt": prompt.prompt,
        "prompt_tokens": list(tokens),
        **found,
        "correct": correct,
    }


def work(words: list[str]) -> int:
    """The verb: read, load, roll out batch by batch, write."""
    path, overrides, own = split_words(words, own=("output",))
    if "output" not in own:
        raise UserError("synthesize needs output=FILE.jsonl, the file to write")
    config = read_config(path, overrides)
    enable_compilation_cache()
    session = open_session(config)
    check_batch(session.mesh, config.rollout.batch_size, "rollout.batch_size")
    encoded = training_prompts(session)
    samples, size = config.rollout.samples_per_prompt, config.rollout.batch_size
    jobs = [(i, s) for i in range(len(encoded.prompts)) for s in range(samples)]
    # Records want the teacher's values and none of its distributions.
    numbers = dataclasses.replace(session.rollout, targets="sampled", read_after=False)
    program, key, student = jax.jit(rollout), jax.random.key(config.run.seed), session.serve(session.student.params)
    with open_output(own["output"]) as output, Progress(len(jobs), "synthesize") as progress:
        for start in range(0, len(jobs), size):
            part = jobs[start : start + size]
            padded = part + [part[-1]] * (size - len(part))
            batch = encoded.batch([i for i, _ in padded], [i * samples + s for i, s in padded], session.mesh)
            found = program(student, session.teacher, batch, key, numbers)
            host = jax.device_get(found.slim())
            for row, (i, sample) in enumerate(part):
                record = make_record(session, encoded.prompts[i], encoded.tokens[i], sample, host, row)
                output.write(json.dumps(record, ensure_ascii=False) + "\n")
            output.flush()
            progress.update(start + len(part), {"rewinds": int(host.num_rewinds[: len(part)].sum())})
    return 0


if __name__ == "__main__":
    run_verb(__doc__, work, own=("output",))
