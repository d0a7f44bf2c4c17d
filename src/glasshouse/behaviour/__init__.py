"""What a model does: Inspect tasks, scorers and analyses."""
