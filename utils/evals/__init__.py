"""Evals: ask, run what was answered, grade it, say how sure (notebooks 02, 03)."""
