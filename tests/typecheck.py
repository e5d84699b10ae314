"""The type checker that tests run every function and state class of the package under: beartype, by jaxtyping's hook.

NumPy arrays count as arrays, as for `jax.jit`. A state class is a pytree, and JAX builds pytrees with leaves that are
no arrays: shardings, shapes, axis numbers, placeholders. Such an instance is not checked; one of arrays is, field by
field.
"""

import functools
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeCallHintViolation

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for pyright
_ARRAYS = (jax.Array, np.ndarray, np.generic, bool, int, float, str, bytes)


def check(function: Any) -> Any:
    """A function that checks the arguments and the result of `function`; the hook calls it beside `function`."""
    # beartype knows Self in classes that it decorates itself, and the hook gives it functions.
    function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if hint is not Self}
    checked = _beartype(function)

    @functools.wraps(function)
    def lenient(*values, **named):
        if function.__name__ == "__init__":
            leaves = jax.tree.leaves((values[1:], named))  # none at all where JAX puts None in place of each array
            names = all(isinstance(leaf, str) for leaf in leaves)  # as orbax makes them; also true of no leaves
            if names or not all(isinstance(leaf, _ARRAYS) for leaf in leaves):
                return None
        try:
            return checked(*values, **named)
        except BeartypeCallHintViolation:
            arrays = [x for x in (*values, *named.values()) if isinstance(x, np.ndarray | np.generic)]
            if not arrays:
                raise
        return checked(*map(_as_jax, values), **{name: _as_jax(value) for name, value in named.items()})

    return lenient


def _as_jax(value: Any) -> Any:
    return jnp.asarray(value) if isinstance(value, np.ndarray | np.generic) else value
