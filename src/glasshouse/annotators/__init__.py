"""Propose, rate, compare and assign: every judgement about texts, with budgets, caching and agreement."""
