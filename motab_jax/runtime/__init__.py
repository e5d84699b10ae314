"""Devices, processes, checkpoints, logs: what a run needs that depends on neither models nor data."""
