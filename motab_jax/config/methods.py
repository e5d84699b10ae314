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


METHODS = {function.__name__: function for function in (motab, opd)}
