"""Studies of the audit itself: the embedded organism and the game."""
