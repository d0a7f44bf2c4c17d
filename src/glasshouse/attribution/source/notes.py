"""What weakens the approximation on a given run: said in the table's meta, and warned about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from glasshouse.attribution.checkpoints import Checkpoint
from glasshouse.attribution.source.segments import Segment
from glasshouse.attribution.source.spectral import Spectrum
from glasshouse.runtime import files

if TYPE_CHECKING:
    from glasshouse.attribution.source.method import SOURCE

MOST_TURNS = 1e4
"""c times the largest eigenvalue beyond which a segment is long enough for divergence to matter."""

EDGE = 2.0
"""Learning rate times eigenvalue at which `|1 - eta s|` passes one."""

TRAINER_CLIPS_AT = 1.0
"""`max_grad_norm` of a Trainer that was not told otherwise."""


def training_notes(method: SOURCE) -> list[str]:
    """Dropout, clipping and assumed optimisers of this run, one sentence each."""
    found = [_dropout(method.model_), _clipping(method.checkpoints, method.max_grad_norm)]
    if method.assume_sgd:
        found.append("assume_sgd: whatever the optimiser was, its steps are taken as plain gradient steps")
    return [line for line in found if line]


def unstable(segments: Sequence[Segment], spectra: Sequence[Mapping[str, Spectrum]]) -> list[str]:
    """A sentence for each segment beyond the edge of stability (Cohen et al. 2021).

    There `(1 - eta s)^K` grows while its stand-in `exp(-c s)` decays. The rate is the segment's mean.
    """
    lines = []
    for index, (segment, found) in enumerate(zip(segments, spectra, strict=True)):
        name, top = max(((n, s.largest()) for n, s in found.items()), key=lambda pair: pair[1])
        total = segment.c if segment.rate_sum is None else segment.rate_sum
        rate = total / segment.steps
        if segment.c * top > MOST_TURNS and rate * top > EDGE:
            lines.append(
                f"segment {index} is past the edge of stability (learning rate {rate:.3g} times eigenvalue "
                f"{top:.3g} of module {name!r} is above 2): its steps diverge where the approximation decays"
            )
    return lines


def _dropout(model: nn.Module) -> str | None:
    rates = [m.p for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0]
    if not rates:
        return None
    return f"training used dropout (up to {max(rates):g}): gradients here are those of the whole network"


def _clipping(checkpoints: Any, stated: float | None) -> str | None:
    if stated is not None:
        return (
            f"gradients were clipped at norm {stated:g}: clipped steps were shorter than their learning rate"
        )
    norms = [n for point in checkpoints for n in _logged_norms(point)]
    above = sum(n > TRAINER_CLIPS_AT for n in norms)
    if not above:
        return None
    return (
        f"{above} of {len(norms)} logged gradient norms are above {TRAINER_CLIPS_AT:g}, where a Trainer "
        "clips unless told otherwise: clipped steps were shorter than their learning rate"
    )


def _logged_norms(point: Checkpoint) -> list[float]:
    """Gradient norms in the last checkpoint's Trainer log; each log holds those before it."""
    path = point.path
    place = None if path is None else path / "trainer_state.json"
    if place is None or not place.is_file():
        return []
    history = files.read_json(place).get("log_history", [])
    last = int(point.step)
    return [float(e["grad_norm"]) for e in history if "grad_norm" in e and int(e["step"]) <= last]
