"""EK-FAC against kronfluence: MLP 784-64-64-10 and a 6-layer, d=256 GPT-2 (V=2,000, T=128, N=256).

Both get the empirical Fisher, damping 0.1 x mean(Lambda) per module, a summed loss as training loss and as
measurement. Ours returns `-(1/N) grad f . H^-1 grad L`; the peer `grad f . H^-1 grad L`: converted here by
`glasshouse.attribution`'s own converter before the numbers are compared.
"""

from __future__ import annotations

import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.harness import Row, best_stages, gemm_peak, peer_python, run_worker

STAGES = ("covariance", "eigen", "lambda", "scores")
PEER = "kronfluence 1.0.1"
TOLERANCE = 1e-4


def compare(*, repeats: int, threads: int, cases: tuple[str, ...] = ()) -> list[Row]:
    """Rows for all cases: our time, the peer's, and the agreement of the scores."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, build in (("mlp", _mlp_case), ("gpt2", _gpt2_case)):
            if cases and name not in cases:
                continue
            folder = Path(scratch) / name
            folder.mkdir()
            spec = build(folder)
            (folder / "case.json").write_text(json.dumps(spec))
            rows += _compare_case(name, folder, spec, repeats=repeats, threads=threads)
    return rows


def _compare_case(name: str, folder: Path, spec: dict, *, repeats: int, threads: int) -> list[Row]:
    floor = _floor_seconds(spec, threads)
    python, reason = peer_python("kronfluence")
    ours_runs, peer_runs = [], []
    for _ in range(repeats):  # interleaved, so that a busy minute hits both
        ours_runs.append(run_worker(sys.executable, "ekfac_ours", folder, folder / "ours", threads=threads))
        if python is not None:
            try:
                peer_runs.append(
                    run_worker(python, "ekfac_kronfluence", folder, folder / "peer", threads=threads)
                )
            except RuntimeError as error:
                python, reason = None, str(error)
    ours, peer = best_stages(ours_runs), best_stages(peer_runs) if peer_runs else None
    agreement = _agreement(folder) if peer else None
    rows = []
    for stage in (*STAGES, "total"):
        mine = sum(ours[s] for s in STAGES) if stage == "total" else ours[stage]
        base = sum(floor.values()) if stage == "total" else floor[stage]
        theirs = None if peer is None else sum(peer[s] for s in STAGES) if stage == "total" else peer[stage]
        rows.append(
            Row(
                case=name,
                stage=stage,
                ours_seconds=mine,
                peer=PEER,
                peer_seconds=theirs,
                ratio=theirs / mine if theirs else None,
                floor_share=base / mine,
                agreement=agreement,
                reason=reason or None,
                peer_floor_share=base / theirs if theirs else None,
            )
        )
    return rows


def _agreement(folder: Path) -> str:
    ours = np.load(folder / "ours" / "scores_in_peer_convention.npy")
    peer = np.load(folder / "peer" / "scores.npy")
    error = float(np.abs(ours - peer).max() / np.abs(peer).max())
    r = float(np.corrcoef(ours.ravel(), peer.ravel())[0, 1])
    verdict = "equal" if error <= TOLERANCE else "DIFFERENT"
    return f"{verdict}: max difference / max {error:.1e} (tolerance {TOLERANCE:.0e}), r = {r:.7f}"


def _mlp_case(folder: Path) -> dict:
    rng = np.random.default_rng(0)
    sizes, n, q = [784, 64, 64, 10], 500, 20
    weights = {}
    for index, (i, o) in enumerate(pairwise(sizes)):
        weights[f"{2 * index}.weight"] = (rng.standard_normal((o, i)) / np.sqrt(i)).astype(np.float32)
        weights[f"{2 * index}.bias"] = (0.1 * rng.standard_normal(o)).astype(np.float32)
    np.savez(folder / "weights.npz", **weights)
    arrays = {}
    for part, rows in (("train", n), ("query", q)):
        arrays[f"{part}_x"] = rng.standard_normal((rows, sizes[0])).astype(np.float32)
        arrays[f"{part}_y"] = rng.integers(0, sizes[-1], rows)
    np.savez(folder / "data.npz", **arrays)
    modules = [(f"{2 * k}", i + 1, o) for k, (i, o) in enumerate(pairwise(sizes))]
    return {"kind": "mlp", "sizes": sizes, "n": n, "q": q, "t": 1, "batch": n, "peer_batch": n,
            "modules": [m[0] for m in modules], "shapes": [m[1:] for m in modules], "extra": 0}  # fmt: skip


def _gpt2_case(folder: Path) -> dict:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    d, layers, vocab, t, n, q = 256, 6, 2000, 128, 256, 16
    torch.manual_seed(0)
    config = GPT2Config(n_embd=d, n_layer=layers, n_head=4, vocab_size=vocab, n_positions=t,
                        bos_token_id=0, eos_token_id=0)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    # Zipf-like tokens, so that covariances have a spread of eigenvalues as text has.
    p = 1.0 / np.arange(1, vocab + 1)

    def draw(rows: int) -> np.ndarray:
        return rng.choice(vocab, size=(rows, t), p=p / p.sum()).astype(np.int64)

    np.savez(folder / "data.npz", train_ids=draw(n), query_ids=draw(q))
    shapes = {
        "attn.c_attn": (d, 3 * d),
        "attn.c_proj": (d, d),
        "mlp.c_fc": (d, 4 * d),
        "mlp.c_proj": (4 * d, d),
    }
    modules = [
        (f"transformer.h.{k}.{name}", i + 1, o) for k in range(layers) for name, (i, o) in shapes.items()
    ]
    attention = 2 * layers * t * d  # multiply-adds per token of QK^T and AV
    return {"kind": "gpt2", "n": n, "q": q, "t": t, "batch": 32, "peer_batch": 32,
            "modules": [m[0] for m in modules], "shapes": [m[1:] for m in modules],
            "extra": vocab * d + attention}  # fmt: skip


def _floor_seconds(spec: dict, threads: int) -> dict[str, float]:
    """FLOPs of the algorithm over this machine's measured GEMM rate (eigh: fp64), per stage.

    T tokens in all; layer (i, o); P = sum i*o. Forward and backward to the module outputs 4(P + extra)T;
    covariance T(i^2 + o^2) with a symmetric rank-k update; eigh 9(i^3 + o^3); Lambda: rotations
    2T(i^2 + o^2), per-row outer products 2PT (T > 1) and squares PN; scores: outer products 2PT and one
    GEMM 2PNQ. Where a row is one token, the outer product and its square factorise and only PN remains.
    """
    peak, peak64 = gemm_peak(threads), gemm_peak(threads, "float64")
    tokens, n, q = spec["n"] * spec["t"], spec["n"], spec["q"]
    p = sum(i * o for i, o in spec["shapes"])
    squares = sum(i * i + o * o for i, o in spec["shapes"])
    passes = 4 * (p + spec["extra"]) * tokens
    outer = 2 * p * tokens if spec["t"] > 1 else 0
    flops = {
        "covariance": passes + squares * tokens,
        "lambda": passes + 2 * squares * tokens + (outer or 2 * p * n) + p * n,
        "scores": passes + outer + 2 * p * n * q,
    }
    seconds = {stage: count / peak for stage, count in flops.items()}
    seconds["eigen"] = 9 * sum(i**3 + o**3 for i, o in spec["shapes"]) / peak64
    return seconds
