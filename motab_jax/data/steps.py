"""Where a step of reasoning ends: the step delimiter compiled into a table over the vocabulary.

A delimiter such as ".\\n\\n" may be cut by tokens anywhere: "." + "\\n\\n", or ".\\n\\nSo" in one token. The automaton
is Knuth-Morris-Pratt over bytes, run once over every token from every state, so that inside jit one lookup a token is
exact.
Letters: Q states (bytes of the delimiter matched so far), V vocabulary.
"""

import flax.struct
import jax
import numpy as np

from motab_jax.config import UserError


@flax.struct.dataclass
class StepAutomaton:
    """A step starts in state 0 (a trajectory's first) or in the state that the token before it left."""

    next_state: jax.Array | np.ndarray  # i32[Q,V]
    ends: jax.Array | np.ndarray  # bool[Q,V]: this token completes a delimiter, so the step ends with it


def compile_delimiter(delimiter: str, pieces: list[bytes]) -> StepAutomaton:
    """Compile a delimiter over the bytes that each token id stands for (V of them; b"" for special tokens).

    A match anywhere inside a token ends the step with that token. After a match the scan restarts in state 0 with the
    token's remaining bytes, which count, for detection only, towards the next step: matches never overlap.
    Returns numpy tables. Raises UserError for an empty delimiter.
    """
    if not delimiter:
        raise UserError("monitor.step_delimiter is empty; give the text that ends a step, for example '.\\n\\n'")
    pattern = delimiter.encode()
    transitions, matches = _byte_automaton(pattern)
    lengths = np.array([len(piece) for piece in pieces])
    order = np.argsort(-lengths, kind="stable")  # long tokens first: the unfinished ones stay a prefix
    state = np.repeat(np.arange(len(pattern), dtype=np.int32)[:, None], len(pieces), axis=1)
    ends = np.zeros(state.shape, bool)
    for position in range(int(lengths.max(initial=0))):
        active = int((lengths > position).sum())
        column = np.array([pieces[i][position] for i in order[:active]])
        before = state[:, :active]
        ends[:, :active] |= matches[before, column]
        state[:, :active] = transitions[before, column]
    back = np.argsort(order)
    return StepAutomaton(next_state=state[:, back], ends=ends[:, back])


def compile_window(size: int) -> StepAutomaton:
    """Every step has `size` tokens, whatever they are: tables over one column that stands for all tokens."""
    next_state = (np.arange(size, dtype=np.int32)[:, None] + 1) % size
    return StepAutomaton(next_state=next_state, ends=next_state == 0)


def advance(automaton: StepAutomaton, state: jax.Array, token: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Read one token a row: state, token i32[...] (token in 0..V-1) -> (next state i32[...], step ended bool[...])."""
    if automaton.next_state.shape[1] == 1:
        token = jax.numpy.zeros_like(token)
    return jax.numpy.asarray(automaton.next_state)[state, token], jax.numpy.asarray(automaton.ends)[state, token]


def _byte_automaton(pattern: bytes) -> tuple[np.ndarray, np.ndarray]:
    """KMP over single bytes: next state i32[Q,256] and whether the byte completes the pattern bool[Q,256]."""
    size = len(pattern)
    transitions, matches = np.zeros((size, 256), np.int32), np.zeros((size, 256), bool)
    fallback = 0  # the state after the longest proper border of what has been matched
    for state in range(size):
        if state:
            transitions[state] = transitions[fallback]
        after = transitions[fallback, pattern[state]] if state else 0
        transitions[state, pattern[state]] = state + 1
        fallback = int(after)
    matches[size - 1, pattern[-1]] = True
    transitions[size - 1, pattern[-1]] = 0
    return transitions, matches
