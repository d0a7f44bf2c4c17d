"""Organisms: small models whose flaws are known, because they were planted."""
