"""Preferences with a known truth: Bradley-Terry utilities, a planted length bias, bad raters among good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from glasshouse.governance.rlhf_disclosure.preferences import Rating
from glasshouse.runtime.seeds import rng

SPAMMER, INVERTED = "rater-00", "rater-01"


@dataclass(frozen=True)
class Crowd:
    """`items` pairs, each rated by `per_item` of `raters`; the first answers at random, the second inverts.

    `longer` is P(the longer response is preferred) over all ratings, bad raters included; `spread` the
    standard deviation of the difference of two utilities.
    """

    items: int = 2000
    raters: int = 12
    per_item: int = 3
    longer: float = 0.6
    spread: float = 3.0
    bad: bool = True


def simulate(crowd: Crowd, seed: int) -> list[Rating]:
    """The ratings of one crowd; the same seed gives the same ones."""
    import numpy as np

    draw = rng(seed, "raters")
    shift = _shift(crowd)
    # Utility of the longer response less that of the shorter one; its mean is what makes length win.
    gaps = draw.normal(shift, crowd.spread, crowd.items)
    found = []
    for item, gap in enumerate(gaps):
        longer, shorter = f"item {item} answer with a few more words", f"item {item} answer"
        for rater in draw.choice(crowd.raters, crowd.per_item, replace=False):
            p = 1 / (1 + np.exp(-gap))
            if crowd.bad and rater < 2:
                p = 0.5 if rater == 0 else 1 - p
            wins = bool(draw.random() < p)
            pair = (longer, shorter) if wins else (shorter, longer)
            found.append(Rating(f"prompt {item}", *pair, rater=f"rater-{rater:02d}"))
    return found


def flipped(items: int, per_item: int, rate: float, seed: int) -> list[Rating]:
    """Raters who know the right answer and flip it with probability `rate`."""
    draw = rng(seed, "flips", str(rate))
    found = []
    for item in range(items):
        pair = (
            (f"right {item}", f"wrong {item}") if draw.random() < 0.5 else (f"alpha {item}", f"beta {item}")
        )
        for flip in draw.random(per_item) < rate:
            chosen, rejected = pair[::-1] if flip else pair
            found.append(Rating(f"prompt {item}", chosen, rejected))
    return found


def _shift(crowd: Crowd) -> float:
    """The mean gap of utilities for which the longer response wins as often as planted, over all raters."""
    import numpy as np
    from scipy.optimize import brentq

    # Of the bad raters one answers one half, one inverts: solve for the share of the good ones.
    good = crowd.raters - 2
    wanted = (crowd.longer * crowd.raters - 1.5) / (good - 1) if crowd.bad else crowd.longer
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)

    def excess(mean: float) -> Any:
        values = 1 / (1 + np.exp(-(mean + crowd.spread * nodes)))
        return float(weights @ values / weights.sum()) - wanted

    return float(brentq(excess, -20, 20))
