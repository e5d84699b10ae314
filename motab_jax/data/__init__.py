"""Tokenizers, step delimiters, prompts, answers, the shipped tasks.

Import the modules by name (`from motab_jax.data.prompts import load_prompts`): each pulls in only what it needs.
"""
