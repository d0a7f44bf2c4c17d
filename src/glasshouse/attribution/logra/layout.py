"""Which columns of a sketch belong to which modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from glasshouse.attribution.logra.projection import Projections
from glasshouse.runtime.errors import InputError

Unit = Literal["row", "token"]


@dataclass(frozen=True)
class Block:
    """One module, or several that share a sketch: `out * inn` numbers of a row from column `start`.

    A line of a log by tokens holds `P_o g` and `P_i a` instead, `out + inn` numbers from column `line`.
    """

    name: str
    members: tuple[str, ...]
    out: int
    inn: int
    start: int
    line: int

    @property
    def size(self) -> int:
        """Numbers in a row's sketch."""
        return self.out * self.inn

    @property
    def columns(self) -> slice:
        """Its columns in a row's sketch."""
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True)
class Layout:
    """Blocks side by side. `unit` "row": a stored line is a row's sketch; "token": a token's two halves."""

    blocks: tuple[Block, ...]
    unit: Unit = "row"

    @property
    def width(self) -> int:
        """Numbers in the sketch of a row."""
        return sum(block.size for block in self.blocks)

    @property
    def stored(self) -> int:
        """Numbers in a stored line."""
        return self.width if self.unit == "row" else sum(b.out + b.inn for b in self.blocks)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"unit": self.unit, "blocks": [asdict(block) for block in self.blocks]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Layout:
        """What `to_json` gave."""
        blocks = [Block(**{**b, "members": tuple(b["members"])}) for b in data["blocks"]]
        return cls(tuple(blocks), data["unit"])


def lay_out(projections: Projections, share: Sequence[str] = (), unit: Unit = "row") -> Layout:
    """Blocks in the order of the modules; those that match one glob of `share` add up in one block.

    Raises InputError for a glob that matches nothing, for members whose sketches differ in shape, and for
    sharing in a log by tokens, where halves cannot be added.
    """
    if share and unit == "token":
        raise InputError(
            'share= adds sketches, which unit="token" does not form', fix="leave one of them out"
        )
    groups: dict[str, list[str]] = {}
    for name in projections:
        glob = next((g for g in share if fnmatchcase(name, g)), None)
        groups.setdefault(name if glob is None else glob, []).append(name)
    if unused := [g for g in share if g not in groups]:
        raise InputError(
            f"share={unused[0]!r} matches no tracked module", fix="look at names_ of a bound method"
        )
    blocks: list[Block] = []
    start = line = 0
    for name, members in groups.items():
        shapes = {projections[m].shape for m in members}
        if len(shapes) > 1:
            raise InputError(
                f"its members have sketches of shapes {sorted(shapes)}", where=f"share={name!r}",
                fix="share among modules of one shape, or lower the rank",
            )  # fmt: skip
        ((out, inn),) = shapes
        blocks.append(Block(name, tuple(members), out, inn, start, line))
        start, line = start + out * inn, line + out + inn
    return Layout(tuple(blocks), unit)
