"""Supervision: how demonstrations, feedback and poison shape a model."""
