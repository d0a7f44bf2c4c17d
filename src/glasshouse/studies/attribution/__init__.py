"""Studies of the attribution wing."""
