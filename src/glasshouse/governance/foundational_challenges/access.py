"""Which methods one may run with the access one has: a ladder into the model, and things beside it."""

from __future__ import annotations

from collections.abc import Sequence

from glasshouse.governance._errors import CardError
from glasshouse.governance._lint import did_you_mean

LADDER = ("text", "logprobs", "activations", "gradients")
BESIDE = ("training data", "checkpoints", "training", "market data")
_SAME = {
    "log-probs": "logprobs", "weights": "gradients", "training checkpoints": "checkpoints", "samples": "text",
    "files": "text", "embeddings": "text", "features": "market data", "logs": "market data",
    "loss curves": "market data",
}  # fmt: skip
"""What methods ask for, in the ladder's words. Published files and one's own embeddings are text."""


def normal_access(names: Sequence[str]) -> set[str]:
    """Access names in the ladder's words. Raises CardError for an unknown one."""
    found = set()
    for name in names:
        plain = _SAME.get(name.strip().lower(), name.strip().lower())
        if plain not in (*LADDER, *BESIDE):
            known = (*LADDER, *BESIDE, *_SAME)
            hint = did_you_mean(plain, known) or f"choose from {', '.join((*LADDER, *BESIDE))}"
            raise CardError.of("E-CHOICE", f"there is no access {name[:40]!r}", fix=hint)
        found.add(plain)
    return found


def can_run(needs: Sequence[str], have: Sequence[str]) -> bool:
    """Whether `have` suffices: the ladder's highest rung needed, and everything beside it."""
    wanted, given = normal_access(needs), normal_access(have)
    rung = max((LADDER.index(name) for name in wanted if name in LADDER), default=-1)
    held = max((LADDER.index(name) for name in given if name in LADDER), default=-1)
    return rung <= held and {name for name in wanted if name in BESIDE} <= given
