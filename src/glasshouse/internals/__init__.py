"""What is represented and computed inside a model."""
