"""Queries with a known answer: questions said otherwise by fixed rules, and their rarest words."""

from __future__ import annotations

import re

SYNONYMS = {
    "model": "system", "models": "systems", "training": "learning phase", "data": "examples",
    "how": "in what way",
    "which": "what",
    "detect": "spot", "detected": "spotted", "behaviour": "conduct",
    "evaluation": "test",
    "evaluations": "tests", "safety": "harmlessness", "humans": "people", "answer": "reply", "large": "big",
    "removed": "taken out", "remove": "take out", "found": "discovered", "failures": "errors",
    "measured": "quantified", "reliable": "dependable", "change": "alter", "changes": "alterations",
    "harmful": "damaging", "users": "customers", "robust": "resistant", "cause": "bring about",
    "effects": "impacts",
    "methods": "techniques", "design": "construction", "choices": "decisions", "capability": "ability",
    "capabilities": "abilities", "scale": "size", "agents": "actors", "explanations": "accounts",
    "hidden": "concealed",
}  # fmt: skip
"""Fixed before the first run; words of any question, not of its challenge."""


def paraphrases(question: str) -> tuple[str, str]:
    """The question with synonyms, and the same turned into a request with its clauses exchanged."""
    swapped = re.sub(r"[A-Za-z]+", lambda m: SYNONYMS.get(m.group().lower(), m.group()), question)
    clauses = [part.strip(" ?.") for part in re.split(r",|;| and ", swapped) if part.strip(" ?.")]
    turned = "; ".join(reversed(clauses))
    return swapped, f"I would like to understand this: {turned[:1].lower()}{turned[1:]}."
