"""Studies of the wing society."""
