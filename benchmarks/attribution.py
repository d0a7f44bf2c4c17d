"""EK-FAC, LoGra, TRAK and SOURCE against kronfluence, dattri, bergson, traker and LogIX, stage by stage.

Stages: `fit` (curvature), `log` (gradients of the training rows, kept), `score`. Each peer runs in its own
environment on the same weights and arrays; ours and the peer in turn. Scores are brought to our sign and
scale before they are compared: equal where both define the same thing (EK-FAC under one damping), else the
correlation is a figure and no test, since projections are drawn by each side.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import attribution_cases
from benchmarks.harness import Row, gemm_peak, peer_python, run_worker

STAGES = ("fit", "log", "score")
TOLERANCE = 1e-4

VERSIONS = {
    "kronfluence": "1.0.1",
    "dattri": "0.3.0",
    "bergson": "2.5.1",
    "traker": "0.3.2",
    "logix": "0.1.1",
}


@dataclass(frozen=True)
class Pair:
    """One comparison: our method (with its variant), and a peer's of the same kind.

    `ours` is `name[-choice][@loss]`: a damping or "dot", and queries measured by their loss. `convert` brings
    the peer's scores to ours: "product" is `grad f . H^-1 grad L`, "same" our sign already. `equal`: both
    define the same numbers. `absent`: why the peer has no such method.
    """

    case: str
    ours: str
    peer: str
    method: str = ""
    convert: str = "product"
    equal: bool = False
    absent: str = ""


NO_SOURCE = "has no method that follows checkpoints"
HUB_ONLY = "takes causal language models of transformers only"

PAIRS = (
    Pair("mlp", "ekfac", "kronfluence", "ekfac", equal=True),
    Pair("mlp", "ekfac-0.001@loss", "dattri", "ekfac-0.001"),
    Pair("mlp", "ekfac", "bergson", absent=HUB_ONLY),
    Pair("mlp", "logra@loss", "dattri", "logra"),
    Pair("mlp", "logra", "logix", "logra"),
    Pair("mlp", "trak", "traker", "trak", "same"),
    Pair("mlp", "trak", "dattri", "trak", "same"),
    Pair("mlp", "source", "bergson", absent=HUB_ONLY),
    Pair("mlp", "source", "kronfluence", absent=NO_SOURCE),
    Pair("gpt2-512", "ekfac", "kronfluence", "ekfac", equal=True),
    Pair("gpt2-512", "ekfac", "bergson", "ekfac"),
    Pair("gpt2-512", "logra", "logix", "logra"),
    Pair("gpt2-512", "logra", "dattri", "logra"),
    Pair("gpt2-512", "logra-dot", "bergson", "logra-dot"),
    Pair("gpt2-512", "trak", "traker", "trak", "same"),
    Pair("gpt2-512", "trak", "dattri", "trak", "same"),
    Pair("gpt2-64", "ekfac-0.001", "dattri", "ekfac-0.001"),
    Pair("gpt2-64", "source", "bergson", "source"),
)
CASES = ("mlp", "gpt2-512", "gpt2-64")


@dataclass(frozen=True)
class AttributionRow(Row):
    """A stage of a pair. Bytes: kept between fitting and scoring, and the peak above the loaded model.

    `ours_lds` and `peer_lds`: mean linear datamodelling score over queries with its 95% interval.
    """

    method: str = ""
    ours_kept: float | None = None
    peer_kept: float | None = None
    ours_peak: float | None = None
    peer_peak: float | None = None
    ours_lds: tuple[float, float, float] | None = None
    peer_lds: tuple[float, float, float] | None = None


def compare(*, repeats: int, threads: int, cases: tuple[str, ...] = ()) -> list[AttributionRow]:
    """Rows of all pairs; `cases` are names of cases or `case/method` (`mlp`, `gpt2-512/ekfac`)."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for case in CASES:
            pairs = [pair for pair in PAIRS if pair.case == case and _wanted(pair, cases)]
            if not pairs:
                continue
            bench = Bench(Path(scratch) / case, case, threads)
            for _ in range(repeats):
                for pair in pairs:
                    bench.run(pair)
            rows += [row for pair in pairs for row in bench.rows(pair)]
    return rows


def _wanted(pair: Pair, cases: tuple[str, ...]) -> bool:
    kind = pair.ours.partition("-")[0].partition("@")[0]
    return not cases or pair.case in cases or f"{pair.case}/{kind}" in cases


class Bench:
    """One case on disk, and what workers have left of it."""

    def __init__(self, folder: Path, case: str, threads: int) -> None:
        self.folder, self.threads = folder, threads
        self.spec = attribution_cases.build(case, folder)
        if case == "mlp":
            attribution_cases.bank(folder)
        self.peaks = gemm_peak(threads), gemm_peak(threads, "float64")
        self.found: dict[str, list[dict]] = {}
        self.failed: dict[str, str] = {}

    def run(self, pair: Pair) -> None:
        """One run of each side; a side that fails keeps its reason and is not run again."""
        self._run(f"ours {pair.ours}", sys.executable, "attribution_ours", pair.ours)
        if pair.absent:
            return
        python, reason = peer_python(pair.peer)
        name = f"{pair.peer} {pair.method}"
        if python is None:
            self.failed[name] = reason
        else:
            self._run(name, python, f"attribution_{pair.peer}", pair.method)

    def _run(self, name: str, python: Path | str, worker: str, method: str) -> None:
        if name in self.failed:
            return
        out = self.folder / name.replace(" ", "-").replace("@", "-")
        print(f"{self.spec['name']}: {name}", file=sys.stderr, flush=True)
        try:
            self.found.setdefault(name, []).append(
                run_worker(python, worker, self.folder, out, method, threads=self.threads)
            )
        except RuntimeError as error:
            self.failed[name] = str(error).strip().splitlines()[-1][:200]

    def scores(self, name: str) -> np.ndarray:
        return np.load(self.folder / name.replace(" ", "-").replace("@", "-") / "scores.npy")

    def rows(self, pair: Pair) -> list[AttributionRow]:
        """One row a stage, and one for all of them."""
        ours, peer = f"ours {pair.ours}", f"{pair.peer} {pair.method}"
        reason = f"{pair.peer} {pair.absent}" if pair.absent else self.failed.get(peer)
        reason = self.failed.get(ours) or reason
        mine, theirs = self.found.get(ours, []), [] if reason else self.found.get(peer, [])
        label = {
            "case": self.spec["name"],
            "peer": f"{pair.peer} {VERSIONS[pair.peer]}",
            "method": pair.ours,
            "reason": reason,
        }
        if not mine:
            return [AttributionRow(stage="all", ours_seconds=None, peer_seconds=None, ratio=None,
                                   floor_share=None, agreement=None, **label)]  # fmt: skip
        label |= self._figures(pair, ours, peer, mine, theirs)
        return [row for stage in (*STAGES, "all") if (row := self._row(stage, mine, theirs, label))]

    def _row(self, stage: str, mine: list[dict], theirs: list[dict], label: dict) -> AttributionRow | None:
        here, there = _best(mine, stage), _best(theirs, stage)
        if not here and not there:
            return None
        floor = self._floor(mine[0]["flops"], stage)
        return AttributionRow(
            stage=stage,
            ours_seconds=here,
            peer_seconds=there,
            # Where a library does a stage inside another one, only the whole compares.
            ratio=there / here if here and there else None,
            floor_share=floor / here if here else None,
            peer_floor_share=floor / there if there else None,
            ours_runs=tuple(_seconds(run, stage) for run in mine),
            peer_runs=tuple(_seconds(run, stage) for run in theirs),
            **label,
        )

    def _floor(self, flops: dict, stage: str) -> float:
        single, double = self.peaks
        eigen = flops["eigen"] / double if stage in ("fit", "all") else 0.0
        return sum(flops[s] for s in (STAGES if stage == "all" else (stage,))) / single + eigen

    def _figures(self, pair: Pair, ours: str, peer: str, mine: list[dict], theirs: list[dict]) -> dict:
        found: dict = {"agreement": None, "ours_kept": mine[-1]["kept"], "ours_peak": _least(mine, "peak")}
        found["ours_lds"] = self._lds(self.scores(ours), flip=pair.ours.endswith("@loss"))
        if theirs:
            other = _converted(self.scores(peer), pair, self.spec["n"])
            found["agreement"] = _agreement(self.scores(ours), other, pair.equal)
            found |= {"peer_kept": theirs[-1]["kept"] or None, "peer_peak": _least(theirs, "peak")}
            found["peer_lds"] = self._lds(other, flip=pair.ours.endswith("@loss"))
        return found

    def _lds(self, scores: np.ndarray, *, flip: bool) -> tuple[float, float, float] | None:
        """Against the bank, whose measurement is the margin; a loss counts with the other sign."""
        if not (self.folder / "bank.npz").exists():
            return None
        from glasshouse.attribution.evaluate import RetrainBank, lds
        from glasshouse.attribution.scores import ScoreTable

        stored = np.load(self.folder / "bank.npz")
        names = [tuple(map(str, range(count))) for count in scores.shape]
        found = lds(
            ScoreTable(-scores if flip else scores, *names), RetrainBank(stored["masks"], stored["values"])
        )
        return found.value, found.low, found.high


def _converted(scores: np.ndarray, pair: Pair, n: int) -> np.ndarray:
    return scores if pair.convert == "same" else -scores / n


def _agreement(ours: np.ndarray, peer: np.ndarray, equal: bool) -> str:
    from scipy.stats import spearmanr

    r = float(np.corrcoef(ours.ravel(), peer.ravel())[0, 1])
    ranks = float(np.mean([spearmanr(a, b).statistic for a, b in zip(ours, peer, strict=True)]))
    text = f"r = {r:.4f}, rank correlation by query {ranks:.3f}"
    if not equal:
        return text
    error = float(np.abs(ours - peer).max() / np.abs(peer).max())
    verdict = "equal" if error <= TOLERANCE else "DIFFERENT"
    return f"{verdict}: max difference / max {error:.1e} (tolerance {TOLERANCE:.0e}); {text}"


def _seconds(run: dict, stage: str) -> float:
    return sum(run[s] for s in STAGES) if stage == "all" else run[stage]


def _best(runs: list[dict], stage: str) -> float | None:
    return min(_seconds(run, stage) for run in runs) or None if runs else None


def _least(runs: list[dict], key: str) -> float:
    return min(run[key] for run in runs)


def print_rows(rows: list[AttributionRow]) -> None:
    """A table for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title="CPU seconds; ratio = peer / ours; floor share = floor time / measured; MB: kept, peak"
    )
    columns = ("case", "method", "peer", "stage", "ours s", "peer s", "ratio", "floor", "peer's", "kept MB",
               "peer", "peak MB", "peer", "LDS", "peer's", "numbers")  # fmt: skip
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        whole = row.stage == "all"
        table.add_row(
            row.case, row.method, row.peer, row.stage, *(_cell(x) for x in (
                row.ours_seconds, row.peer_seconds, row.ratio, row.floor_share, row.peer_floor_share)),
            *(_megabytes(x) if whole else "" for x in (
                row.ours_kept, row.peer_kept, row.ours_peak, row.peer_peak)),
            *(_interval(x) if whole else "" for x in (row.ours_lds, row.peer_lds)),
            (row.agreement or row.reason or "") if whole else "",
        )  # fmt: skip
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 220).print(table)


def _cell(x: float | None) -> str:
    return "-" if x is None else f"{x:.3g}"


def _megabytes(x: float | None) -> str:
    return "-" if x is None else f"{x / 1e6:.3g}"


def _interval(x: tuple[float, float, float] | None) -> str:
    return "-" if x is None else f"{x[0]:.3f} [{x[1]:.3f}, {x[2]:.3f}]"
