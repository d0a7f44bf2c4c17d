"""Cards and their measurements: agreement with 1,000 resamples against `krippendorff`, and our own stages.

Agreement: 2,000 items of 12 raters, a quarter of the ratings there. The peer is computed anew on each
resample of items, as its users do; its time is that of `PEER_RESAMPLES` resamples, scaled. Alphas must
agree to 1e-9.
The other rows have no peer: 273 model descriptions, 1,000 readings of a model's folder, a complete card
validated and shown.
"""

from __future__ import annotations

import json
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Row

ITEMS, RATERS, RESAMPLES, PEER_RESAMPLES = 2_000, 12, 1_000, 20


def compare(*, repeats: int, threads: int, cases: tuple[str, ...] = ()) -> list[Row]:
    """One row per stage; seconds of CPU, best of `repeats`."""
    makers = {"agreement": _agreement, "openness": _openness, "folders": _folders, "cards": _cards}
    return [row for name, make in makers.items() if not cases or name in cases for row in make(repeats)]


def _agreement(repeats: int) -> list[Row]:
    import krippendorff

    from glasshouse.annotators.agreement import krippendorff_alpha

    draw = np.random.default_rng(0)
    truth = draw.integers(2, size=ITEMS)
    labels = np.where(draw.random((ITEMS, RATERS)) < 0.8, truth[:, None], 1 - truth[:, None]).astype(float)
    labels[draw.random((ITEMS, RATERS)) >= 0.25] = np.nan
    rows = [[None if np.isnan(v) else int(v) for v in row] for row in labels]
    found = krippendorff_alpha(rows, resamples=RESAMPLES)
    theirs = krippendorff.alpha(reliability_data=labels.T, level_of_measurement="nominal")

    def peer() -> None:
        for _ in range(PEER_RESAMPLES):
            picked = labels[draw.integers(ITEMS, size=ITEMS)]
            krippendorff.alpha(reliability_data=picked.T, level_of_measurement="nominal")

    ours = _seconds(lambda: krippendorff_alpha(rows, resamples=RESAMPLES), repeats)
    other = _seconds(peer, repeats) * RESAMPLES / PEER_RESAMPLES
    gap = abs(found.value - theirs)
    return [
        _row(
            "agreement", "alpha, 1,000 resamples", ours, "krippendorff 0.8", other, f"alpha within {gap:.0e}"
        )
    ]


def _openness(repeats: int) -> list[Row]:
    from glasshouse.governance.openness import mof_evaluate, mof_models

    models = mof_models()
    return [
        _row(
            "openness",
            "273 descriptions evaluated",
            _seconds(lambda: [mof_evaluate(m) for m in models], repeats),
        )
    ]


def _folders(repeats: int) -> list[Row]:
    from glasshouse.governance import from_hf_repo

    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        shapes = {
            f"layer.{i}.weight": {"dtype": "F32", "shape": [4096, 4096], "data_offsets": [0, 0]}
            for i in range(300)
        }
        header = json.dumps(shapes).encode()
        (root / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
        (root / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: a/b\n---\n# Model\n")
        taken = _seconds(lambda: [from_hf_repo(root) for _ in range(100)], repeats) * 10
    return [_row("folders", "1,000 folders of 300 tensors read", taken)]


def _cards(repeats: int) -> list[Row]:
    from glasshouse.governance import to_html, validate
    from glasshouse.governance.openness import taxonomy_cards

    card = taxonomy_cards()["bloom"]
    return [
        _row("cards", "validated to level 2", _seconds(lambda: validate(card, level=2), repeats)),
        _row("cards", "HTML", _seconds(lambda: to_html(card), repeats)),
    ]


def _seconds(act: Callable[[], Any], repeats: int) -> float:
    act()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        act()
        times.append(time.process_time() - started)
    return min(times)


def _row(
    case: str,
    stage: str,
    ours: float,
    peer: str = "",
    other: float | None = None,
    agreement: str | None = None,
) -> Row:
    return Row(
        case=case, stage=stage, ours_seconds=ours, peer=peer, peer_seconds=other,
        ratio=other / ours if other else None, floor_share=None, agreement=agreement,
        reason=None if peer else "no peer", peer_floor_share=None,
    )  # fmt: skip
