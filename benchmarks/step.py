"""A full on-policy distillation step (rollout, teacher, update) against TRL's GKDTrainer; MOTAB's against plain OPD.

Both sides load one random Qwen3 pair (float32, tied heads, teacher 256 wide x 8 layers, student 128 x 4), sample
exactly 128 tokens after 8 prompts of 32, and minimise the same loss (generalised JSD, 0.5): that is checked first, on
the tokens of our first step. Each side is a process of its own and they take turns. TRL has an environment of its own
(--trl-python); where there is none it is made under ~/.cache/motab_jax. Each timed step follows an untimed one of the
same side. MOTAB's steps have 8, 32 and 64 rows. Left out: accuracy.
"""

import os
import random
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any, NamedTuple

import bench

HERE = Path(__file__).resolve().parent
ROWS, PROMPT, NEW = 8, 32, 128
SIZES = {"teacher": (256, 8), "student": (128, 4)}  # width, layers
STEP_TOKENS, STRAYED = 16, 0.3
MOTAB_ROWS = 8, 32, 64
MOTAB_OVER_OPD = "MOTAB / OPD at the same kept tokens"
LEAD = 1  # untimed steps before each timed one
TOLERANCE = 1e-4
TRL = Path.home() / ".cache" / "motab_jax" / "bench-venv"
QUIET = {"TRL_EXPERIMENTAL_SILENCE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
PACKAGES = ("torch==2.13.0", "trl==1.16.*")


def shape(width: int, layers: int, vocabulary: int) -> dict[str, Any]:
    """The arguments of a Qwen3 config, in the proportions of the released 0.6B model."""
    return {
        "vocab_size": vocabulary, "hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 3 * width,
        "head_dim": 32, "num_attention_heads": width // 32, "num_key_value_heads": width // 64,
        "tie_word_embeddings": True, "max_position_embeddings": 512,
    }  # fmt: skip


class Work(NamedTuple):
    """What a part of the step cannot do without."""

    flops: float
    bytes: float


def work(vocabulary: int) -> dict[str, Work]:
    """The least work of each part of a plain step: multiply-adds of weights and attention, weights and cache read.

    Decoding reads the student's weights once a token; the teacher reads each token once, by its head as well; forward
    and backward are three times the forward's operations.
    """
    teacher, student = (_forward(*SIZES[name], vocabulary) for name in ("teacher", "student"))
    tokens, columns = ROWS * NEW, PROMPT + NEW / 2
    body = {name: model["body"] * ROWS * (PROMPT + NEW) for name, model in (("t", teacher), ("s", student))}
    head = {name: model["head"] * tokens for name, model in (("t", teacher), ("s", student))}
    seen = {name: model["attended"] * tokens * columns for name, model in (("t", teacher), ("s", student))}
    decode_bytes = NEW * 4 * (student["body"] + student["head"]) + 4 * student["cached"] * tokens * columns
    return {
        "student decode": Work(2 * (body["s"] + head["s"] + seen["s"]), decode_bytes),
        "teacher reading": Work(2 * (body["t"] + head["t"] + seen["t"]), 4 * (teacher["body"] + teacher["head"])),
        "student update": Work(6 * (body["s"] + head["s"] + seen["s"]), 4 * 10 * (student["body"] + student["head"])),
    }


def _forward(width: int, layers: int, vocabulary: int) -> dict[str, float]:
    """Multiply-adds a token: weights of the layers, of the head, attention a column; numbers cached a column."""
    made = shape(width, layers, vocabulary)
    queries, keys = made["num_attention_heads"] * 32, made["num_key_value_heads"] * 32
    layer = width * (2 * queries + 2 * keys) + 3 * width * made["intermediate_size"]
    return {
        "body": layers * layer,
        "head": width * vocabulary,
        "attended": layers * 2 * queries,
        "cached": layers * 2 * keys,
    }


def rival_python(given: Path | None) -> Path:
    """TRL's Python; its environment is made if none is given."""
    if given is not None:
        return given
    python = TRL / "bin" / "python"
    if not python.exists():
        print(f"making an environment for TRL in {TRL}", file=sys.stderr)
        venv.create(TRL, with_pip=True)
        index = ("--extra-index-url", "https://download.pytorch.org/whl/cpu")
        subprocess.run([python, "-m", "pip", "install", "-q", "--retries", "1", *index, *PACKAGES], check=True)
    return python


def measure(vocabulary: int, python: Path, runs: int, *, motab: bool) -> dict[str, Any]:
    """Seconds of every run of every contestant, and our steps' own records; with `motab` also those of `versus_opd`."""
    shapes = {name: shape(*size, vocabulary) for name, size in SIZES.items()}
    prompts = random_prompts(ROWS, vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        rival = [python, HERE / "step_trl.py", folder]
        with bench.Worker(rival) as judge:
            judge("make", shapes=shapes)
        with bench.Worker(rival) as trl, bench.Worker([sys.executable, HERE / "step_ours.py", folder]) as ours:
            rates = ours("load", prompts=prompts, new_tokens=NEW, step_tokens=STEP_TOKENS)
            with bench.Worker(rival) as judge:
                threads = judge("load", prompts=prompts, new_tokens=NEW)
                losses = check_loss(judge, ours)
            trl("start", prompts=prompts, new_tokens=NEW)
            records: list = []
            contestants = {
                "trl": lambda: trl("step"),
                "opd": lambda: records.append(ours("step", way="opd")),
                "decode": lambda: ours("decode"),
                "matmul": lambda: ours("matmul"),
                "read": lambda: ours("read"),
            }
            times = bench.alternate(contestants, runs, lead=LEAD)
            if trl("step") != ROWS * NEW:
                raise RuntimeError("TRL did not write the tokens it was asked for")
        versus = {rows: versus_opd(Path(folder), rows, vocabulary, runs) for rows in MOTAB_ROWS if motab}
    found = {"times": times, "records": records[-(1 + LEAD) * runs :], "losses": losses}
    return {**found, "threads": threads, "rates": rates, "versus": versus}


def versus_opd(folder: Path, rows: int, vocabulary: int, runs: int) -> dict[str, Any]:
    """Seconds and records of plain OPD and of MOTAB, steps of `rows` texts, with the pair of `folder`."""
    with bench.Worker([sys.executable, HERE / "step_ours.py", folder]) as ours:
        ours("load", prompts=random_prompts(rows, vocabulary), new_tokens=NEW, step_tokens=STEP_TOKENS)
        ours("set_boundary", share=STRAYED, steps=(1 + LEAD) * (runs + 1) - 1)
        records: dict[str, list] = {"opd": [], "motab": []}
        contestants = {name: lambda name=name: records[name].append(ours("step", way=name)) for name in records}
        times = bench.alternate(contestants, runs, lead=LEAD)
    return {"times": times, "records": {name: found[-(1 + LEAD) * runs :] for name, found in records.items()}}


def random_prompts(rows: int, vocabulary: int) -> list[list[int]]:
    """Seeded prompts [rows, PROMPT]."""
    draw = random.Random(0)
    return [[draw.randrange(vocabulary) for _ in range(PROMPT)] for _ in range(rows)]


def check_loss(trl: bench.Worker, ours: bench.Worker) -> tuple[float, float]:
    """TRL's loss and ours on the tokens of our first step, of the same weights; they must agree."""
    found = ours("first")
    theirs, our_loss = trl("loss", tokens=found["tokens"], prompt=PROMPT), found["loss"]
    if abs(theirs - our_loss) > TOLERANCE * theirs:
        raise RuntimeError(f"the losses differ: TRL {theirs}, ours {our_loss}")
    return theirs, our_loss


def against_trl(vocabulary: int, found: dict[str, Any]) -> list[tuple[str, Any]]:
    """The column of a vocabulary: seconds, ratio, the parts of our step, and the floors."""
    times, records = found["times"], found["records"]
    ours, rollout, update = (bench.median(x) for x in (times["opd"], *_columns(records, "rollout", "update")))
    flops = found["rates"]["flops"] / bench.median(times["matmul"])
    speed = found["rates"]["bytes"] / bench.median(times["read"])
    parts = work(vocabulary).values()
    by_flops, by_bytes = sum(x.flops for x in parts) / flops, sum(x.bytes for x in parts) / speed
    floor = sum(max(x.flops / flops, x.bytes / speed) for x in parts)
    decode = bench.median(times["decode"])
    return [
        ("TRL GKDTrainer, s", bench.median(times["trl"])),
        ("ours, s", ours),
        ("TRL / ours", bench.ratio(times, "trl", "opd")),
        ("spread of TRL, ours", f"{bench.spread(times['trl']):.0%}, {bench.spread(times['opd']):.0%}"),
        ("ours: student decode, s", decode),
        ("ours: rest of the rollout (teacher), s", rollout - decode),
        ("ours: update, s", update),
        ("matmul GFLOP/s", flops / 1e9),
        ("read GB/s", speed / 1e9),
        ("floor by FLOPs, s", by_flops),
        ("floor by bytes, s", by_bytes),
        ("floor, the larger of the two by parts, s", floor),
        ("ours / floor", ours / floor),
        ("loss of TRL, ours", "{:.6f}, {:.6f}".format(*found["losses"])),
    ]


def against_opd(found: dict[str, Any]) -> list[tuple[str, Any]]:
    """MOTAB's step beside plain OPD's: both keep the same tokens, MOTAB writes the discarded ones as well."""
    times, motab = found["times"], found["records"]["motab"]
    strayed, emitted, kept = (statistics.mean(x) for x in _columns(motab, "strayed", "emitted", "kept"))
    ratio = bench.ratio(times, "motab", "opd")
    return [
        ("plain OPD, s", bench.median(times["opd"])),
        ("MOTAB, s", bench.median(times["motab"])),
        (MOTAB_OVER_OPD, ratio),
        ("MOTAB / OPD by emitted token", ratio * kept / emitted),
        ("strayed share", strayed),
        ("tokens kept, emitted a step", f"{kept:.0f}, {emitted:.0f}"),
        ("rollout, s", bench.median(_columns(motab, "rollout")[0])),
        ("update, s", bench.median(_columns(motab, "update")[0])),
    ]


def _columns(records: list[dict], *names: str) -> list[list]:
    return [[record[name] for record in records] for name in names]


def main() -> None:
    """Measure, print, save."""
    parser = bench.parser(__doc__)
    parser.add_argument("--vocab", type=int, nargs="+", default=[1000, 50304], help="vocabularies, small to large")
    parser.add_argument("--trl-python", type=Path, help="a Python that has TRL 1.16 (default: made where needed)")
    given = parser.parse_args()
    python = rival_python(given.trl_python)
    os.environ.update(QUIET)
    found = {size: measure(size, python, given.runs, motab=size == given.vocab[0]) for size in given.vocab}
    columns = [against_trl(size, figures) for size, figures in found.items()]
    rows = [(name, *(dict(column)[name] for column in columns)) for name, _ in columns[0]]
    threads = found[given.vocab[0]]["threads"]
    title = f"One on-policy step: {ROWS} rows, {PROMPT} + {NEW} tokens, float32; torch has {threads} threads"
    bench.show(title, ("vocabulary", *map(str, given.vocab)), rows)
    versus = {size: against_opd(figures) for size, figures in found[given.vocab[0]]["versus"].items()}
    rows = [(name, *(dict(column)[name] for column in versus.values())) for name, _ in versus[ROWS]]
    title = f"MOTAB, vocabulary {given.vocab[0]}, steps of about {STEP_TOKENS} tokens"
    bench.show(title, ("", *(f"{size} rows" for size in versus)), rows)
    ratios = [dict(column)["TRL / ours"] for column in columns]
    figures = {"trl_ratio_small_vocab": ratios[0]}
    for size, column in versus.items():
        figures["motab_over_opd" if size == ROWS else f"motab_over_opd_{size}_rows"] = dict(column)[MOTAB_OVER_OPD]
    if len(ratios) > 1:
        figures["trl_ratio_large_vocab"] = ratios[-1]
    bench.save(given.json, figures)


if __name__ == "__main__":
    main()
