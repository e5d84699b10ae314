"""Everything about text: tokenizers, step delimiters, prompts, the shipped tasks and the grading of answers.

Import the modules by name (`from motab_jax.data.prompts import load_prompts`): each pulls in only what it needs.
"""
