"""Side-by-side comparisons with named peers: the same arrays, numbers first, then time per stage."""
