"""Evaluations on Inspect: our model provider with `score`, log frames, resumable runs, the sandbox."""
