"""The shipped tasks: problems, golden chains and graders made from a seed."""
