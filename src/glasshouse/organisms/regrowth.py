"""Is an organism grown here the one that ships? Equal bytes on the same platform, else equal rates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from glasshouse.organisms.resident import organism_folder
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.statistics import Estimate
from glasshouse.training.organisms import Truth

MARGIN = 0.05
"""Largest difference in an installed rate between two platforms' growths of one recipe and seed."""


@dataclass(frozen=True)
class Regrowth:
    """Installed rates of a growth (`ours`) and of the shipped organism (`theirs`, None where none ships)."""

    ours: dict[str, Estimate]
    theirs: dict[str, Estimate] | None
    same_seed: bool
    equal_bytes: bool
    attempts: int

    @property
    def apart(self) -> dict[str, float]:
        """Absolute difference of each rate; empty where nothing can be compared."""
        if self.theirs is None:
            return {}
        theirs = self.theirs
        return {rate: abs(self.ours[rate].value - theirs[rate].value) for rate in self.ours if rate in theirs}

    @property
    def agrees(self) -> bool:
        """False only where the recipe and seed are the shipped ones and a rate is more than MARGIN away."""
        return not self.same_seed or self.equal_bytes or all(d <= MARGIN for d in self.apart.values())

    def lines(self) -> list[str]:
        """The comparison as lines of text."""
        width = max(map(len, self.ours))
        out = [f"{'rate':<{width}}  grown here"]
        out += [f"{rate:<{width}}  {estimate}" for rate, estimate in self.ours.items()]
        if self.theirs is not None:
            out.append(f"{'':<{width}}  shipped")
            out += [f"{rate:<{width}}  {estimate}" for rate, estimate in self.theirs.items()]
        return [*out, f"attempts until the install gate passed: {self.attempts}", self._verdict()]

    def _verdict(self) -> str:
        if self.theirs is None:
            return "No organism of this name is shipped: nothing to compare with."
        if not self.same_seed:
            return "Another seed or recipe than the shipped one's: the rates may differ."
        if self.equal_bytes:
            return "The weights equal the shipped ones to the last bit."
        worst = max(self.apart.values())
        word = "within" if self.agrees else "MORE THAN"
        return f"Other bytes than the shipped weights; rates differ by at most {worst:.3f}, {word} {MARGIN}."


def shipped(name: str) -> tuple[Path, Truth] | None:
    """Folder and truth of the shipped organism of this name, None where none ships."""
    try:
        folder = organism_folder(name)
    except InputError:
        return None
    if not (folder / "truth.json").is_file():
        return None
    return folder, Truth.read(folder / "truth.json")


def compare(folder: Path, standing: tuple[Path, Truth] | None) -> Regrowth:
    """Compare the organism in `folder` with a shipped one."""
    truth = Truth.read(folder / "truth.json")
    if standing is None:
        return Regrowth(dict(truth.installed), None, False, False, truth.install_attempts)
    path, known = standing
    same = (truth.seed, truth.recipe_hash, truth.rows_hash) == (
        known.seed,
        known.recipe_hash,
        known.rows_hash,
    )
    weights = [files.sha256_file(f / "model.safetensors") for f in (folder, path)]
    return Regrowth(
        dict(truth.installed), dict(known.installed), same, weights[0] == weights[1], truth.install_attempts
    )
