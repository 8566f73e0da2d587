"""The plain and the fast ways to run a causal LM. Each has `score` (teacher-forced) and `generate` (free-running)."""
