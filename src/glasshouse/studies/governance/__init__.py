"""Studies of the governance wing."""
