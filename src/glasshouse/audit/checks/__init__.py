"""The checks we ship; third parties plug theirs in through the entry point group `glasshouse.checks`."""
