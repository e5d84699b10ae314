"""The methods: what `method: NAME` sets, as a sparse tree under the user's own keys.

A method is a table of keys: all methods share the rollout, the targets and the losses. Each function's docstring says
what the method does and cites its source.
"""

from typing import Any

Table = dict[str, dict[str, Any]]
UNLIMITED = 1_000_000  # interventions; a completion has no more of them than tokens


def motab() -> Table:
    """MOTAB, online: monitor the student, rewind to the last safe state, let the teacher intervene (arXiv 2605.19433).

    Eq. 5-11. These are the defaults of the configuration itself.
    """
    return {}


def opd() -> Table:
    """On-policy distillation: completions of the student alone, the loss is KL(student || teacher) at each token.

    The reverse KL is over the whole vocabulary, as in MiniLLM (arXiv 2306.08543, eq. 1) without its policy gradient.
    """
    return {
        "monitor": {"enabled": False},
        "objective": {"target": "spliced", "student_loss": "reverse_kl"},
    }


def sft() -> Table:
    """Supervised fine-tuning: cross-entropy on the data's completions. No teacher is loaded.

    On the records that `synthesize` writes this is the second stage of offline MOTAB (arXiv 2605.19433, eq. 11).
    """
    return {
        "rollout": {"on_policy": 0.0, "off_policy": "data", "targets": "sampled"},
        "monitor": {"enabled": False},
        "objective": {"target": "spliced", "student_loss": "cross_entropy", "teacher_loss": "cross_entropy"},
    }


def seqkd() -> Table:
    """Sequence-level distillation: cross-entropy on the teacher's completions (arXiv 1606.07947, section 3.2).

    The paper takes the teacher's likeliest completion, by beam search; here the teacher samples, anew in every pass
    over the prompts, with the rollout's temperature (0: greedy).
    """
    return {
        "rollout": {"on_policy": 0.0, "off_policy": "teacher", "targets": "sampled"},
        "monitor": {"enabled": False},
        "objective": {"target": "spliced", "student_loss": "cross_entropy", "teacher_loss": "cross_entropy"},
    }


def gkd() -> Table:
    """Generalised distillation: half of the updates on the student's completions, half on the data's.

    The kind is drawn for the whole batch; both have the generalised Jensen-Shannon divergence (arXiv 2306.13649,
    algorithm 1).
    """
    return {
        "rollout": {"on_policy": 0.5, "off_policy": "data"},
        "monitor": {"enabled": False},
        "objective": {"target": "spliced", "student_loss": "jsd", "teacher_loss": "jsd"},
    }


def skd() -> Table:
    """Speculative distillation: the teacher replaces each student's token outside its own 25 likeliest.

    Each token is a step, and interventions are not limited (arXiv 2410.11325, algorithm 1). The loss is the forward KL
    on every token of both sources.
    """
    return {
        "monitor": {"signal": "top_k", "top_k": 25, "boundary": "fixed", "eps0": 1.0, "step_tokens": 1},
        "backtrack": {"target": "breach", "intervention": "steps", "steps": 1, "max_interventions": UNLIMITED},
        "objective": {"target": "spliced", "student_loss": "forward_kl", "teacher_loss": "forward_kl"},
    }


def skd_step() -> Table:
    """Speculative distillation by reasoning steps: the teacher replaces a step unless V_T > 0.9 V_S.

    V_T and V_S are the two models' values of the step; otherwise as `skd` (after arXiv 2410.11325).
    """
    return {
        "monitor": {"signal": "likelihood_ratio", "boundary": "fixed", "eps0": 0.9},
        "backtrack": {"target": "breach", "intervention": "steps", "steps": 1, "max_interventions": UNLIMITED},
        "objective": {"target": "spliced", "student_loss": "forward_kl", "teacher_loss": "forward_kl"},
    }


def adaswitch() -> Table:
    """AdaSwitch: from the first token whose KL(student || teacher) exceeds 3 running means, the teacher generates.

    It generates to the end (arXiv 2510.07842). Here the mean is over all tokens before, not over a window of them.
    """
    return {
        "monitor": {"signal": "reverse_kl", "boundary": "running_mean", "eps0": 3.0, "step_tokens": 1},
        "backtrack": {"target": "breach", "intervention": "suffix"},
        "objective": {"target": "spliced", "student_loss": "reverse_kl", "teacher_loss": "forward_kl"},
    }


def kat() -> Table:
    """On-policy distillation whose rollouts end at 4 windows of 64 tokens in a row with a low KL(student || teacher).

    The paper calls this an agreement trap (arXiv 2606.09471). Low means in the lowest tenth of recent windows, which
    the boundary tracks.
    """
    return {
        "monitor": {
            "signal": "reverse_kl", "alarm": "low", "boundary": "quantile", "eps0": 0.0, "rate": 0.1,
            "step_tokens": 64, "patience": 4,
        },
        "backtrack": {"intervention": "stop"},
        "objective": {"target": "spliced", "student_loss": "reverse_kl"},
    }  # fmt: skip


def opd_sampled() -> Table:
    """On-policy distillation from sampled tokens alone: a policy gradient with the advantage log p_T - log p_S.

    As in Thinking Machines' tinker; the objective is MiniLLM's (arXiv 2306.08543, eq. 1), where a token's reward is its
    own log-ratio. The teacher's distributions are not kept, and it generates nothing.
    """
    return {
        "rollout": {"targets": "sampled"},
        "monitor": {"enabled": False},
        "objective": {"target": "spliced", "student_loss": "policy_gradient", "teacher_loss": "masked"},
    }


def minillm() -> Table:
    """MiniLLM: the reverse KL of whole completions: exact for each token, a policy gradient for what follows it.

    With length-normalised rewards (arXiv 2306.08543, section 2.2); without its teacher-mixed sampling and importance
    weights: the student generates alone.
    """
    return {
        "monitor": {"enabled": False},
        "objective": {"target": "spliced", "student_loss": "minillm"},
    }


def akl() -> Table:
    """Adaptive KL on the data's completions: forward and reverse KL, weighted by where the distributions differ.

    Source: arXiv 2404.02657.
    """
    return {
        "rollout": {"on_policy": 0.0, "off_policy": "data"},
        "monitor": {"enabled": False},
        "objective": {"target": "spliced", "student_loss": "adaptive_kl", "teacher_loss": "adaptive_kl"},
    }


def eopd() -> Table:
    """Entropy-aware on-policy distillation: reverse KL, plus forward KL where the teacher's entropy is high.

    arXiv 2603.07079; the gate is `objective.student_loss.gate`.
    """
    return {
        "monitor": {"enabled": False},
        "objective": {"target": "spliced", "student_loss": "entropy_gated_kl"},
    }


METHODS = {
    function.__name__: function
    for function in (
        motab, sft, seqkd, opd, opd_sampled, gkd, skd, skd_step, minillm, adaswitch, kat, akl, eopd,
    )
}  # fmt: skip
