"""Modules that can be called: `motab_jax.train` and `motab_jax.rollout` name a module and its main function alike.

The import system sets a submodule as an attribute of its package, so a function of that name could not be there too.
"""

import inspect
import sys
from types import ModuleType
from typing import Any


class CallableModule(ModuleType):
    """A module that, when called, calls its own function of the same name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function that has the module's name."""
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


def make_callable(name: str) -> None:
    """Make the module `name` callable; `name` is its `__name__`, whose last part is also a function in it."""
    module = sys.modules[name]
    module.__class__ = CallableModule
    function = getattr(module, name.rpartition(".")[2], None)
    if function is not None:  # not where the module runs as __main__
        module.__dict__["__signature__"] = inspect.signature(function)
