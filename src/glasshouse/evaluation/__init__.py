"""Running evaluations: our Inspect provider with `score`, log frames, and the one sandbox."""
