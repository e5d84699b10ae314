"""Is an answer correct: mathematical equivalence, multiple choice, exact text."""
