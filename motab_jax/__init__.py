"""motab_jax: reasoning distillation with monitored trajectories and backtracking, in JAX.

The student writes, the teacher judges every step, and where the student strays the trajectory goes back to the last
safe state and the teacher writes on (MOTAB, arXiv 2605.19433). Importing the package imports nothing else: the rooms
are `config`, `runtime`, `models`, `data`, `rollout`, `distill`, and the verbs run as `python -m motab_jax.train`.
"""

__version__ = "0.1.0"
