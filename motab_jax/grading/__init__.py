"""Is an answer right: mathematical equivalence, multiple choice, exact text."""
