"""What a finished recording can be asked, in the process that made it or in a later one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glasshouse.attribution.base import as_mapper, at_least_one
from glasshouse.attribution.logra import persist, search
from glasshouse.attribution.logra.curvature import Curvature, inverses, solved
from glasshouse.attribution.logra.layout import Layout
from glasshouse.attribution.logra.log import SketchLog
from glasshouse.attribution.logra.projection import Projections
from glasshouse.attribution.logra.search import Asked, Mode, Rule
from glasshouse.attribution.scores import ScoreTable
from glasshouse.attribution.stages.scoring import check_choice
from glasshouse.runtime.errors import StaleError

Of = Literal["minus_loss", "loss"]

IDENTITY = ("rank", "init", "seed", "share", "modules", "shapes", "model_hash")
"""What two logs must have in common before their sketches may meet."""


class FinishedLog:
    """A recorded log: `log_` (sketches), `factors_` (curvature by block), `about_` (how it was made)."""

    init: str
    damping: float | str
    log_: SketchLog
    layout_: Layout
    factors_: dict[str, Curvature]
    projections_: Projections
    about_: dict[str, Any]

    def __init__(self) -> None:
        self._kept: dict[Any, Any] = {}

    def finalize(self) -> Self:
        """Nothing to do: it is finished."""
        return self

    # ── asking ───────────────────────────────────────────────────────────────

    def score(self, queries: FinishedLog, *, mode: Mode = "dot", of: Of = "minus_loss") -> ScoreTable:
        """Scores `[Q, N]` of the rows for queries recorded in a log of their own, made with the same options.

        The queries' backward passes were those of their losses; `of` says whether the loss itself is measured
        (a high score: more weight on the row raises it) or its negative. Raises StaleError where the two logs
        differ in seed, rank, modules or model.
        """
        asked, rule, meta = self._ask(queries, mode, of)
        parts = search.dense(self.log_, asked, rule, tokens=False, per_module=False, mapper=None, kept=None)
        scores = search.checked(torch.cat([part["scores"] for part in parts], 1).numpy(), "scores")
        return ScoreTable(scores, asked.ids, self.log_.ids, meta)

    def search(
        self, queries: FinishedLog, k: int = 50, *, mode: Mode = "cosine",
        of: Of = "minus_loss",
    ) -> ScoreTable:  # fmt: skip
        """The k rows of highest score of every query, as a sparse table; shards are streamed."""
        at_least_one("k", k)
        asked, rule, meta = self._ask(queries, mode, of)
        values, columns = search.best(self.log_, asked, rule, k)
        return ScoreTable(values, asked.ids, self.log_.ids, {**meta, "top_k": k}, columns)

    def self_score(self) -> NDArray[np.float32]:
        """`v^T (F + damping)^-1 v / N` of each row's sketch v, `[N]` float32 (>= 0)."""
        self.finalize()
        return search.checked((self._self_influence() / len(self.log_)).numpy(), "self scores")

    # ── disk ─────────────────────────────────────────────────────────────────

    def save(self, folder: Path | str) -> Path:
        """Write the finished log into `folder`; with a `store`, `finalize` does so in its `finished`."""
        self.finalize()
        self.log_.save(Path(folder))
        projections = self.projections_ if self.init == "pca" else None
        return persist.save(Path(folder), self.layout_, self.factors_, projections, self.about_)

    # ── inside: questions ────────────────────────────────────────────────────

    def _ask(self, queries: FinishedLog, mode: Mode, of: str) -> tuple[Asked, Rule, dict[str, Any]]:
        check_choice("mode", mode, Mode)
        check_choice("of", of, Of)
        self.finalize()
        queries.finalize()
        self._check_same(queries)
        # The queries recorded the gradient of their loss.
        U = torch.from_numpy(queries.log_.vectors()) * (1.0 if of == "loss" else -1.0)
        vectors = solved(self._inverse(), self.layout_, U).contiguous()
        asked = Asked(queries.log_.ids, vectors, tuple(U.norm(dim=1).tolist()))
        own = None if mode == "dot" else self._self_influence()
        meta = {**self.about_, "measurement": of, "mode": mode, "damping": self.damping, "unit": "row"}
        return asked, Rule(len(self.log_), mode, own), meta

    def _check_same(self, queries: FinishedLog) -> None:
        for name in IDENTITY:
            ours, theirs = self.about_[name], queries.about_[name]
            if ours != theirs:
                raise StaleError(
                    f"the queries were logged with another {name.replace('_', ' ')} "
                    f"({str(theirs)[:40]}, the rows with {str(ours)[:40]})", where="query log",
                    fix="log the queries again with the options, and the weights, of the rows' log",
                )  # fmt: skip
        if self.init == "pca" and any(
            not torch.equal(p.Po, queries.projections_[n].Po)
            or not torch.equal(p.Pi, queries.projections_[n].Pi)
            for n, p in self.projections_.items()
        ):
            raise StaleError(
                "the queries were logged with another measured projection", where="query log",
                fix="make their log with rows_log.for_queries()",
            )  # fmt: skip

    def _inverse(self) -> Any:
        key = "inverse", self.damping
        if key not in self._kept:
            self._kept[key] = inverses(self.factors_, self.layout_, self.damping)
        return self._kept[key]

    def _self_influence(self) -> Tensor:
        key = "self", self.damping
        if key not in self._kept:
            self._kept[key] = search.self_influences(self.log_, self._inverse(), as_mapper(None), None)
        return self._kept[key]


def load_log(folder: Path | str) -> FinishedLog:
    """A finished log, ready for questions: the folder that `save` wrote, or the store of a recording.

    Raises InputError where there is none, RunError naming a shard that is missing or cut short.
    """
    folder = Path(folder)
    if (folder / "finished").is_dir():
        folder = folder / "finished"
    about, factors, projections = persist.load(folder)
    made = FinishedLog()
    made.init, made.damping, made.about_ = about["init"], about["damping"], about
    made.log_, made.factors_ = SketchLog.open(folder), factors
    made.layout_, made.projections_ = made.log_.layout, projections or {}
    return made
