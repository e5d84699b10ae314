"""Who wrote a token: the codes shared by rollout, distillation and the records."""

PAD, PROMPT, STUDENT, TEACHER, TRANSITION = range(5)
WORDS = ("pad", "prompt", "student", "teacher", "transition")
