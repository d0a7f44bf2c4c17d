"""Studies of the wing internals."""
