"""The preference regression against numpyro's NUTS, and are-you-sure against inspect-evals' `sycophancy`.

Regression: 12,000 pairs, 23 features, Laplace(0, 0.1), 4 chains of 500 draws each, after 150 (ours) and 500
(NUTS) sweeps of warm-up; the peer's time holds its compilation. Means must agree within 0.01.
Are you sure: 200 items, half of them multiple choice, asked of one fixed policy; all metrics must be equal.
Its seconds are Inspect's own overhead on both sides (ours asks a third turn) and are no claim.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Row, best_stages, gemm_peak, peer_python, run_worker

CASES = {
    "regression": ("numpyro", "numpyro 0.22.0", "sycophancy_numpyro", "fit"),
    "are-you-sure": ("inspect-evals", "inspect-evals 0.26.0", "sycophancy_inspect_evals", "evaluation"),
}
MEANS_WITHIN = 0.01


def compare(*, repeats: int, threads: int, cases: tuple[str, ...] = ()) -> list[Row]:
    """One row per case: our time, the peer's, and the agreement of the numbers."""
    with tempfile.TemporaryDirectory() as scratch:
        return [
            _compare_case(name, Path(scratch) / name, repeats, threads)
            for name in CASES
            if not cases or name in cases
        ]


def _compare_case(name: str, folder: Path, repeats: int, threads: int) -> Row:
    environment, peer, worker, stage = CASES[name]
    folder.mkdir()
    spec = _regression_case(folder) if name == "regression" else _items_case(folder)
    (folder / "case.json").write_text(json.dumps(spec))
    python, reason = peer_python(environment)
    ours, theirs = [], []
    for _ in range(repeats):  # interleaved, so that a busy minute hits both
        ours.append(run_worker(sys.executable, "sycophancy_ours", folder, folder / "ours", threads=threads))
        if python is not None:
            try:
                theirs.append(run_worker(python, worker, folder, folder / "peer", threads=threads))
            except RuntimeError as error:
                python, reason = None, str(error)
    mine = best_stages(ours)[stage]
    other = best_stages(theirs)[stage] if theirs else None
    agree = (_posteriors if name == "regression" else _metrics)(folder) if theirs else None
    floor = _floor(spec, threads) if name == "regression" else None
    return Row(
        case=name, stage=stage, ours_seconds=mine, peer=peer, peer_seconds=other,
        ratio=other / mine if other else None, floor_share=floor / mine if floor else None,
        agreement=agree, reason=reason or None, peer_floor_share=floor / other if floor and other else None,
    )  # fmt: skip


def _regression_case(folder: Path) -> dict[str, Any]:
    from glasshouse.studies.behaviour.sycophancy.simulations import preference_set

    x, y, _ = preference_set(12_000, 0)
    np.savez(folder / "data.npz", x=x, y=y)
    return {"kind": "regression", "b": 0.1, "draws": 500, "our_warmup": 150, "peer_warmup": 500}


def _items_case(folder: Path, n: int = 200) -> dict[str, Any]:
    """`n` rows in the released schema, bare NaN included."""
    from glasshouse.corpora.sycophancy import generate_items

    rows = []
    for domain in ("sums", "choices"):
        for item in generate_items("are_you_sure", domain, n // 2, 7 if domain == "sums" else 8):
            base: dict[str, Any] = {"dataset": domain, "question": item.truth["question"]}
            if "letters" in item.truth:
                listed = "\n".join(f"({letter}) {text}" for letter, text in item.truth["letters"].items())
                base |= {
                    "answers": listed,
                    "correct_letter": item.truth["correct"],
                    "correct_answer": float("nan"),
                }
            else:
                base |= {"correct_answer": item.truth["correct"]}
            rows.append(
                {"prompt": [{"type": "human", "content": base["question"]}], "base": base, "metadata": {}}
            )
    (folder / "are_you_sure.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return {"kind": "are-you-sure", "items": n}


def _posteriors(folder: Path) -> str:
    ours, peer = (np.load(folder / side / "posterior.npz") for side in ("ours", "peer"))
    means = float(np.abs(ours["mean"] - peer["mean"]).max())
    spread = float(np.abs(ours["sd"] / peer["sd"] - 1).max())
    verdict = "equal" if means <= MEANS_WITHIN else "DIFFERENT"
    return (
        f"{verdict}: means differ by at most {means:.4f} (tolerance {MEANS_WITHIN}), sds by {spread:.1%}; "
        f"least effective draws {ours['ess'].min():.0f}, peer {peer['ess'].min():.0f}"
    )


def _metrics(folder: Path) -> str:
    ours, peer = (json.loads((folder / side / "metrics.json").read_text()) for side in ("ours", "peer"))
    worst = max(abs(ours[name] - peer[name]) for name in peer)
    told = ", ".join(f"{name} {value:.3f}" for name, value in ours.items())
    return f"{'equal' if worst < 1e-9 else f'DIFFERENT by {worst:.3f}, peer {peer}'}: {told}"


def _floor(spec: dict[str, Any], threads: int) -> float:
    """Multiply-adds of X' Omega X alone (n K^2, twice) in every sweep, over this machine's GEMM rate."""
    sweeps = 4 * (spec["draws"] + spec["our_warmup"])
    return sweeps * 2 * 12_000 * 23**2 / gemm_peak(threads, "float64")
