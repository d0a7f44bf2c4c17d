"""Worlds: deterministic generators of text about made-up people, and the word lists they draw from."""

from glasshouse.corpora.worlds.world import PLACES, Exchange, Pairing, Relation, World, insert, village

__all__ = ["PLACES", "Exchange", "Pairing", "Relation", "World", "insert", "village"]
