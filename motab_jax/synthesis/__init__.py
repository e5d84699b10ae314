"""Rollouts written to disk: one record per trajectory, and the files derived from them."""
