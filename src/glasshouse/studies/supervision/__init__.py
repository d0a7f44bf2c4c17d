"""Studies of the supervision wing."""
