"""The training run: the loop, its batches, its jitted programs, its folder."""
