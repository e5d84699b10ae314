"""The methods: what `method: NAME` sets, as a sparse tree under the user's own keys.

A method is a table and nothing else: all share the rollout, the targets and the losses. Each function's docstring says
what the method does and where it comes from.
"""

from typing import Any

Table = dict[str, dict[str, Any]]


def motab() -> Table:
    """MOTAB, online: watch the student, go back to the last safe state, let the teacher write on (arXiv 2605.19433).

    Eq. 5-11. These are the defaults of the configuration itself.
    """
    return {}


def opd() -> Table:
    """On-policy distillation: the student writes alone, the loss is KL(student || teacher) at each of its tokens.

    The reverse KL is over the whole vocabulary, as in MiniLLM (arXiv 2306.08543, eq. 1) without its policy gradient.
    """
    return {
        "monitor": {"enabled": False},
        "objective": {"target": "spliced", "student_loss": "reverse_kl"},
    }


def sft() -> Table:
    """Supervised fine-tuning: cross-entropy on the data's completions. The teacher is not even loaded.

    On the records that `synthesize` writes this is the second stage of offline MOTAB (arXiv 2605.19433, eq. 11).
    """
    return {
        "rollout": {"on_policy": 0.0, "off_policy": "data", "targets": "sampled"},
        "monitor": {"enabled": False},
        "objective": {"target": "spliced", "student_loss": "cross_entropy", "teacher_loss": "cross_entropy"},
    }


def seqkd() -> Table:
    """Sequence-level distillation: cross-entropy on what the teacher writes (arXiv 1606.07947, section 3.2).

    There the teacher's likeliest text is sought by beam search; here it samples, afresh at every pass over the prompts,
    with the rollout's temperature (0: greedy).
    """
    return {
        "rollout": {"on_policy": 0.0, "off_policy": "teacher", "targets": "sampled"},
        "monitor": {"enabled": False},
        "objective": {"target": "spliced", "student_loss": "cross_entropy", "teacher_loss": "cross_entropy"},
    }


def gkd() -> Table:
    """Generalised distillation: half of the steps on the student's text, half on the data's, one divergence for both.

    The kind of step is drawn for the whole batch and the divergence is the generalised Jensen-Shannon one
    (arXiv 2306.13649, algorithm 1).
    """
    return {
        "rollout": {"on_policy": 0.5, "off_policy": "data"},
        "monitor": {"enabled": False},
        "objective": {"target": "spliced", "student_loss": "jsd", "teacher_loss": "jsd"},
    }


METHODS = {function.__name__: function for function in (motab, opd, sft, seqkd, gkd)}
