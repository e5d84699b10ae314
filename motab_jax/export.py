"""`python -m motab_jax.export RUN OUT [step=N]`: a run's checkpoint as a Hugging Face folder.

The folder holds what transformers and vLLM load: config.json, safetensors, tokenizer files, generation_config.json.
"""

from motab_jax.config import UserError, load_config
from motab_jax.runtime.checkpoint import Checkpointer
from motab_jax.runtime.cli import Parser, natural, run_verb
from motab_jax.runtime.staging import local_copy
from motab_jax.runtime.storage import path_word
from motab_jax.session.export import export_student
from motab_jax.session.session import open_session
from motab_jax.training.programs import make_programs

WORDS = Parser(__doc__, configured=False)
WORDS.add_argument("run", metavar="RUN", type=path_word)
WORDS.add_argument("out", metavar="OUT", type=path_word)
WORDS.word("step", "N", "the checkpoint of this step; left out, the last one", type=natural)


def work(words: list[str]) -> int:
    """The verb: restore a run's checkpoint, write the folder."""
    args = WORDS.parse(words)
    run, out = args.run, args.out
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: no config.yaml in it; give the folder of a run, such as runs/quickstart")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: there is something in it already; give a new folder")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: a file; give a new folder")
    session = open_session(load_config(local_copy(run / "config.yaml")))
    programs = make_programs(session)
    with Checkpointer(run / "checkpoints", session.config.run.keep) as checkpoints:
        step = checkpoints.latest() if args.step is None else args.step
        if step is None:
            raise UserError(f"{run / 'checkpoints'}: no checkpoint in it yet")
        state, _ = checkpoints.restore(step, programs.state)
    export_student(session, state.params, out)
    print(f"step {step} is in {out}")
    return 0


if __name__ == "__main__":
    run_verb(work)
