"""Held-out evaluation: generation, grading, metrics, tables and trajectory panels."""
