"""Studies of the wing behaviour."""
