"""The shipped tasks: problems and golden completions generated from a seed."""
