"""The methods: what `method: NAME` sets, as a sparse tree under the user's own keys.

A method is a table and nothing else: all share the rollout, the targets and the losses. Each function's docstring says
what the method does and where it comes from.
"""

from typing import Any

Table = dict[str, dict[str, Any]]
UNLIMITED = 1_000_000  # interventions; a text has no more of them than tokens


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


def skd() -> Table:
    """Speculative distillation: a student's token outside the teacher's 25 likeliest is the teacher's to write.

    Each token is a step of its own, and there is no limit to the interventions (arXiv 2410.11325, algorithm 1). The
    loss is the forward KL on every token, whoever wrote it.
    """
    return {
        "monitor": {"signal": "top_k", "top_k": 25, "boundary": "fixed", "eps0": 1.0, "step_tokens": 1},
        "backtrack": {"target": "breach", "intervention": "steps", "steps": 1, "max_interventions": UNLIMITED},
        "objective": {"target": "spliced", "student_loss": "forward_kl", "teacher_loss": "forward_kl"},
    }


def skd_step() -> Table:
    """Speculative distillation by steps of reasoning: the teacher writes a step anew unless V_T > 0.9 V_S.

    V are the models' mean likelihoods per token of the step; otherwise as `skd` (after arXiv 2410.11325).
    """
    return {
        "monitor": {"signal": "likelihood_ratio", "boundary": "fixed", "eps0": 0.9},
        "backtrack": {"target": "breach", "intervention": "steps", "steps": 1, "max_interventions": UNLIMITED},
        "objective": {"target": "spliced", "student_loss": "forward_kl", "teacher_loss": "forward_kl"},
    }


def adaswitch() -> Table:
    """AdaSwitch: at the first token whose KL(student || teacher) is above 3 times its running mean, the teacher takes
    over to the end (arXiv 2510.07842).

    The mean is over all tokens before, not over a window of them.
    """
    return {
        "monitor": {"signal": "reverse_kl", "boundary": "running_mean", "eps0": 3.0, "step_tokens": 1},
        "backtrack": {"target": "breach", "intervention": "suffix"},
        "objective": {"target": "spliced", "student_loss": "reverse_kl", "teacher_loss": "forward_kl"},
    }


def kat() -> Table:
    """On-policy distillation whose rollouts end in an agreement trap: 4 windows of 64 tokens in a row with a low
    KL(student || teacher) (arXiv 2606.09471).

    Low is below the lowest tenth of recent windows, which the boundary follows.
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
    """On-policy distillation by the sampled tokens alone: a policy gradient with the advantage log p_T - log p_S.

    As Thinking Machines' tinker has it; the objective is that of MiniLLM (arXiv 2306.08543, eq. 1) with one token's
    reward for one token. The teacher's distributions are not kept, and it writes nothing.
    """
    return {
        "rollout": {"targets": "sampled"},
        "monitor": {"enabled": False},
        "objective": {"target": "spliced", "student_loss": "policy_gradient", "teacher_loss": "masked"},
    }


def minillm() -> Table:
    """MiniLLM: the reverse KL of whole texts; exact for each token, a policy gradient for what comes after it.

    With length-normalised rewards (arXiv 2306.08543, section 2.2); without its teacher-mixed sampling and importance
    weights: the rollout is the student's own.
    """
    return {
        "monitor": {"enabled": False},
        "objective": {"target": "spliced", "student_loss": "minillm"},
    }


def akl() -> Table:
    """Adaptive KL on the data's text: forward and reverse KL, weighted by where the two distributions differ.

    Source: arXiv 2404.02657.
    """
    return {
        "rollout": {"on_policy": 0.0, "off_policy": "data"},
        "monitor": {"enabled": False},
        "objective": {"target": "spliced", "student_loss": "adaptive_kl", "teacher_loss": "adaptive_kl"},
    }


def eopd() -> Table:
    """Entropy-aware on-policy distillation: reverse KL, and forward KL as well where the teacher is uncertain.

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
