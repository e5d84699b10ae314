"""The type checker that tests run every function and state class of the package under: beartype, by jaxtyping's hook.

A state class is a pytree, and JAX builds pytrees with leaves that are no arrays: shardings, shapes, axis numbers,
placeholders. Such an instance is not checked; one whose leaves are arrays is, field by field.
"""

import functools
from typing import Any, Self

import jax
import numpy as np
from beartype import beartype

_ARRAYS = (jax.Array, np.ndarray, np.generic, bool, int, float, str, bytes)


def check(function: Any) -> Any:
    """The function with its arguments and result checked against its annotations at each call."""
    # beartype knows Self in classes that it decorates itself, and the hook gives it functions.
    function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if hint is not Self}
    checked = beartype(function)
    if function.__name__ != "__init__":
        return checked

    @functools.wraps(function)
    def fields(self, *values, **named):
        if all(isinstance(leaf, _ARRAYS) for leaf in jax.tree.leaves((values, named))):
            return checked(self, *values, **named)
        return None

    return fields
