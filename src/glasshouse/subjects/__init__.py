"""The access layer: open a model, read and edit its sites, generate, score, differentiate."""
