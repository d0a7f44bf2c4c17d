"""A platform of your own: its effective learning rate from logs, and what its rule would induce."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.society.content_incentives.costs import Floats
from glasshouse.society.content_incentives.scenario import ContentMarket
from glasshouse.statistics import Estimate, bootstrap

COLUMNS = ("t", "producer", "propensity", "reward")


class Platform(Protocol):
    """A ranker to be examined."""

    def probs(self, history: Floats, user: Floats) -> Floats:
        """Chances [P] of each producer for `user` [D], given the content of earlier rounds, [P, t, D]."""
        ...


@dataclass(frozen=True)
class RuleAudit:
    """What a ranker rewards: gains of deviations from a profile, per deviation.

    `gains` maps each deviation's name to producer 1's gain; `welfare` [T] and `exposure` [P, T] are those of
    the profile itself.
    """

    gains: Mapping[str, float]
    exposure: Floats
    welfare: Floats
    utility: float

    @property
    def eps_nash(self) -> float:
        """The largest gain found (0 where every deviation loses)."""
        return max(0.0, *self.gains.values())

    def to_frame(self) -> Any:
        """One row per deviation, best first."""
        import pandas as pd

        rows = sorted(self.gains.items(), key=lambda item: -item[1])
        return pd.DataFrame(rows, columns=["deviation", "gain"])

    def plot(self) -> Any:
        """Gain of each deviation (plotly)."""
        import plotly.graph_objects as go

        frame = self.to_frame()
        return go.Figure(go.Bar(x=frame["gain"], y=frame["deviation"], orientation="h"))

    def save(self, folder: Path | str) -> Path:
        """Write `rule.json` into `folder`."""
        told = {
            "gains": dict(self.gains), "exposure": self.exposure.tolist(),
            "welfare": self.welfare.tolist(), "utility": self.utility,
        }  # fmt: skip
        files.write_json(Path(folder) / "rule.json", told)
        return Path(folder)

    @classmethod
    def load(cls, folder: Path | str) -> RuleAudit:
        """Read what `save` wrote."""
        told = files.read_json(Path(folder) / "rule.json")
        return cls(told["gains"], np.array(told["exposure"]), np.array(told["welfare"]), told["utility"])


def examine_rule(market: ContentMarket, platform: Platform, p: Floats) -> RuleAudit:
    """Producer 1's gains from structured deviations at content p [P, T, D] under a ranker of your own.

    Deviations: everything scaled, nothing from a round on, nothing in one round. The market's own `algo` is
    not used. Raises InputError where the ranker returns no distribution.
    """
    p = np.asarray(p, dtype=np.float64)
    if p.shape != (market.P, market.T, market.U.shape[1]):
        raise InputError(f"p has shape {p.shape}", fix=f"give [{market.P}, {market.T}, {market.U.shape[1]}]")
    from glasshouse.society.content_incentives.platforms import utilities, welfare

    x = _played(market, platform, p)
    present = float(utilities(market, p, x)[0])
    gains = {}
    for name, mine in _deviations(p[0]).items():
        changed = p.copy()
        changed[0] = mine
        gains[name] = float(utilities(market, changed, _played(market, platform, changed))[0]) - present
    return RuleAudit(gains, x @ market.shares, welfare(market, p, x), present)


def fit_eta(log: Any, *, level: float = 0.95, seed: int = 0) -> Estimate:
    """The effective learning rate of a softmax recommender from its log, with an interval over rounds.

    `log` is a frame, a list of rows or a dict of columns: t, producer, propensity (chance with which the
    producer could have been shown in round t) and reward (what it earned there, 0 where it was not shown),
    perhaps user. In each round the differences of log propensities to the round's first producer are
    regressed on the differences of rewards summed over earlier rounds (least squares through 0).
    Raises InputError naming the row of a propensity outside (0, 1], a NaN, or a producer twice in a round.
    """
    rows = _rows(log)
    pairs: dict[tuple[Any, float], list[tuple[float, float]]] = {}
    for user in sorted({row["user"] for row in rows}, key=str):
        _pairs([row for row in rows if row["user"] == user], user, pairs)
    points = [(x, y, key[1]) for key, found in pairs.items() for x, y in found]
    if not points or all(x == 0 for x, _, _ in points):
        raise InputError("no round has producers whose past rewards differ", fix="give a longer log")
    table = np.array([(x, y) for x, y, _ in points])

    def slope(sample: Floats) -> float:
        return float(sample[:, 0] @ sample[:, 1] / (sample[:, 0] @ sample[:, 0]))

    return bootstrap(table, slope, clusters=[t for _, _, t in points], level=level, resamples=1000, seed=seed)


def _pairs(
    rows: Sequence[Mapping[str, Any]], user: Any, out: dict[tuple[Any, float], list[tuple[float, float]]]
) -> None:
    earned: dict[Any, float] = {}
    for t in sorted({row["t"] for row in rows}):
        present = {row["producer"]: row for row in rows if row["t"] == t}
        first, *rest = sorted(present, key=str)
        for other in rest:
            x = earned.get(other, 0.0) - earned.get(first, 0.0)
            y = np.log(present[other]["propensity"]) - np.log(present[first]["propensity"])
            out.setdefault((user, t), []).append((x, float(y)))
        for name, row in present.items():
            earned[name] = earned.get(name, 0.0) + row["reward"]


def _rows(log: Any) -> list[dict[str, Any]]:
    if hasattr(log, "to_dict") and not isinstance(log, Mapping):
        log = log.to_dict("records")
    if isinstance(log, Mapping):
        log = [dict(zip(log, cells, strict=True)) for cells in zip(*log.values(), strict=True)]
    rows, seen = [], set()
    for number, row in enumerate(log, start=1):
        missing = [name for name in COLUMNS if name not in row]
        if missing:
            raise InputError(
                f"has no {missing[0]!r}", where=f"log row {number}", fix=f"give {', '.join(COLUMNS)}"
            )
        told = {name: float(row[name]) for name in ("t", "propensity", "reward")}
        if not all(np.isfinite(list(told.values()))) or not 0 < told["propensity"] <= 1:
            raise InputError(
                f"t {told['t']:g}, propensity {told['propensity']:g}, reward {told['reward']:g}",
                where=f"log row {number}", fix="give finite numbers and a propensity in (0, 1]",
            )  # fmt: skip
        key = (row.get("user", ""), told["t"], row["producer"])
        if key in seen:
            raise InputError(
                f"producer {row['producer']!r} twice in round {told['t']:g}", where=f"log row {number}"
            )
        seen.add(key)
        rows.append({**told, "producer": row["producer"], "user": row.get("user", "")})
    return rows


def _played(market: ContentMarket, platform: Platform, p: Floats) -> Floats:
    out = np.empty((market.P, market.T, len(market.U)))
    for t in range(market.T):
        for u, user in enumerate(market.U):
            chances = np.asarray(platform.probs(p[:, :t], user), dtype=np.float64)
            fine = (
                chances.shape == (market.P,) and (chances >= -1e-12).all() and abs(chances.sum() - 1) < 1e-6
            )
            if not fine:
                raise InputError(
                    f"the platform's chances in round {t + 1} are {chances}", fix="return a distribution"
                )
            out[:, t, u] = chances
    return out


def _deviations(mine: Floats) -> dict[str, Floats]:
    T = len(mine)
    rounds = np.arange(T)[:, None]
    some = sorted({0, T // 4, T // 2, 3 * T // 4, T - 1})
    found: dict[str, Floats] = {f"everything x {a:g}": a * mine for a in (0.0, 0.5, 0.9, 1.1, 1.5, 2.0)}
    found |= {f"nothing from round {t + 1}": np.where(rounds >= t, 0.0, mine) for t in some}
    return found | {f"nothing in round {t + 1}": np.where(rounds == t, 0.0, mine) for t in some}
