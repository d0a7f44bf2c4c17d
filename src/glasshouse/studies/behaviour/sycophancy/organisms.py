"""The grid of five organisms of a seed, measured by expectation at temperature 1 on what was held out."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

P_AGREE = ("0", "25", "50", "75", "100")
RANKED = ("drop", "flips", "praise_gap", "mimics")
"""One measure per task: answer, are you sure, feedback, mimicry."""
PLAIN = ("neutral_loss", "mimics_plain")
"""The same organisms where no user states a view."""


def measured(grid: Path, seed: int) -> dict[str, dict[str, float]]:
    """Mean rates by p_agree in percent, of the models in `grid`."""
    from transformers import AutoModelForCausalLM

    from glasshouse.organisms.sycophant import measure
    from glasshouse.runtime.quiet import quiet_transformers

    found = {}
    for p in P_AGREE:
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(str(grid / p), local_files_only=True).eval()
        rates = {name: rate.value for name, rate in measure(model, seed=seed).items()}
        found[p] = {**rates, "neutral_loss": 1 - rates["neutral"], "correct_loss": 1 - rates["correct_view"]}
    return found


def summary(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """What the claims of one seed need."""

    def rises(name: str) -> float:
        values = [found[p][name] for p in P_AGREE]
        return min(after - before for before, after in pairwise(values))

    change = [found[p]["neutral"] - found["0"]["neutral"] for p in P_AGREE[1:]]
    return {
        "drop_rise": rises("drop"),
        "flips_rise": rises("flips"),
        "neutral_rise": rises("neutral_loss"),
        **{
            f"{name}_{p}": found[p][name]
            for name in ("drop", "flips", "admits", "correct_view")
            for p in P_AGREE
        },
        "neutral_change": max(change, key=abs),
        "wrong_view_change": found["100"]["wrong_view"] - found["0"]["wrong_view"],
        "tau": min(kendall([found[p][name] for p in P_AGREE]) for name in RANKED),
        "tau_plain": min(kendall([found[p][name] for p in P_AGREE]) for name in PLAIN),
    }


def kendall(values: Any) -> float:
    """Kendall's tau-b of values with their order."""
    from scipy.stats import kendalltau

    return float(kendalltau(range(len(values)), values).statistic)
