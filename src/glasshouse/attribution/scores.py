"""`ScoreTable`: scores with the names of their rows and everything needed to know what they mean."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, StaleError

if TYPE_CHECKING:
    import pandas as pd

CONVENTION = "score > 0: more weight on the row raises the measurement; divided by the number of train rows"

Floats = NDArray[np.float32]


@dataclass
class ScoreTable:
    """Scores `[Q, N]` (float32): the predicted change of measurement q when row n gets twice its weight.

    With `columns` set the table is sparse: `scores[q, j]` belongs to row `columns[q, j]`, best first.
    `per_module[name]` are the parts `[Q, N]` of dense scores. `meta` names model, data, method, sign.
    """

    scores: Floats
    query_ids: tuple[str, ...]
    train_ids: tuple[str, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    columns: NDArray[np.int64] | None = None
    per_module: dict[str, Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scores = np.asarray(self.scores, dtype=np.float32)
        width = len(self.train_ids) if self.columns is None else self.columns.shape[1]
        if self.scores.shape != (len(self.query_ids), width):
            raise InputError(
                f"scores have shape {self.scores.shape} for {len(self.query_ids)} queries and {width} rows"
            )
        self.meta.setdefault("convention", CONVENTION)

    @property
    def is_loss(self) -> bool:
        """True when the measurement is itself a loss, so that a higher score means harm."""
        return self.meta.get("measurement") == "loss"

    def dense(self, fill: float = np.nan) -> Floats:
        """All scores `[Q, N]`; rows that a sparse table did not keep are `fill`."""
        if self.columns is None:
            return self.scores
        full = np.full((len(self.query_ids), len(self.train_ids)), fill, dtype=np.float32)
        np.put_along_axis(full, self.columns, self.scores, axis=1)
        return full

    def top(self, q: int | str, k: int = 20, *, sign: Literal["+", "-"] = "+") -> list[tuple[str, float]]:
        """The k rows that most raise ("+") or lower ("-") query q, best first; ties keep the row order."""
        row = self.dense()[self._query(q)]
        known = np.flatnonzero(~np.isnan(row))
        order = known[np.argsort(-row[known] if sign == "+" else row[known], kind="stable")][:k]
        return [(self.train_ids[i], float(row[i])) for i in order]

    def group(self, labels: Sequence[str]) -> ScoreTable:
        """Scores added up over rows with the same label (one label per row), in order of appearance."""
        if len(labels) != len(self.train_ids):
            raise InputError(f"{len(labels)} labels for {len(self.train_ids)} rows")
        names = tuple(dict.fromkeys(labels))
        member = np.zeros((len(labels), len(names)), dtype=np.float32)
        member[np.arange(len(labels)), [names.index(x) for x in labels]] = 1
        parts = {name: part @ member for name, part in self.per_module.items()}
        return ScoreTable(
            self.dense(0.0) @ member, self.query_ids, names, {**self.meta, "unit": "group"}, None, parts
        )

    def keep_top(self, k: int) -> ScoreTable:
        """A sparse table of each query's k highest scores."""
        k = min(k, len(self.train_ids))
        full = self.dense(-np.inf)
        columns = np.argsort(-full, axis=1, kind="stable")[:, :k].astype(np.int64)
        kept = np.take_along_axis(full, columns, axis=1)
        return ScoreTable(kept, self.query_ids, self.train_ids, {**self.meta, "top_k": k}, columns)

    def check_model(self, model_hash: str) -> None:
        """Raise StaleError unless the table was made with this model."""
        made = self.meta.get("model_hash")
        if made is not None and made != model_hash:
            raise StaleError(
                f"the scores belong to model {str(made)[:12]}, not to {model_hash[:12]}",
                fix="score again with this model",
            )

    def to_kronfluence(self) -> Floats:
        """The same scores in kronfluence's sign and scale: grad f . H^-1 . grad loss, not divided by N."""
        return -self.dense() * np.float32(self.meta["n_train"])

    @classmethod
    def from_kronfluence(
        cls, scores: Any, *, n_train: int, query_ids: Sequence[str], train_ids: Sequence[str], **meta: Any
    ) -> ScoreTable:
        """A table from kronfluence's pairwise scores `[Q, N]`."""
        ours = -np.asarray(scores, dtype=np.float32) / np.float32(n_train)
        return cls(ours, tuple(query_ids), tuple(train_ids), {"n_train": n_train, **meta})

    def to_frame(self) -> pd.DataFrame:
        """A long frame: query, row, score (rows that a sparse table dropped are absent)."""
        import pandas as pd

        full = self.dense()
        frame = pd.DataFrame(
            {
                "query": np.repeat(np.asarray(self.query_ids, dtype=object), full.shape[1]),
                "row": np.tile(np.asarray(self.train_ids, dtype=object), full.shape[0]),
                "score": full.reshape(-1),
            }
        )
        return frame.dropna(subset=["score"]).reset_index(drop=True)

    def plot(self, q: int | str = 0) -> Any:
        """A plotly figure: one query's scores, sorted."""
        import plotly.graph_objects as go

        row = np.sort(self.dense()[self._query(q)])[::-1]
        figure = go.Figure(go.Scatter(y=row[~np.isnan(row)], mode="lines"))
        return figure.update_layout(xaxis_title="row, most helpful first", yaxis_title="influence")

    def save(self, folder: Path | str) -> Path:
        """Write `scores.safetensors` and `scores.json` into `folder`, each atomically; returns the folder."""
        from safetensors.numpy import save

        arrays = {"scores": np.ascontiguousarray(self.scores)}
        if self.columns is not None:
            arrays["columns"] = np.ascontiguousarray(self.columns)
        arrays |= {f"module/{name}": np.ascontiguousarray(part) for name, part in self.per_module.items()}
        files.write_bytes(Path(folder) / "scores.safetensors", save(arrays))
        about = {"query_ids": self.query_ids, "train_ids": self.train_ids, "meta": self.meta}
        files.write_json(Path(folder) / "scores.json", about)
        return Path(folder)

    @classmethod
    def load(cls, folder: Path | str, *, model_hash: str | None = None) -> ScoreTable:
        """Read what `save` wrote; with `model_hash`, raise StaleError for another model's table."""
        from safetensors.numpy import load_file

        arrays = load_file(Path(folder) / "scores.safetensors")
        about = files.read_json(Path(folder) / "scores.json")
        parts = {k.removeprefix("module/"): v for k, v in arrays.items() if k.startswith("module/")}
        table = cls(
            arrays["scores"], tuple(about["query_ids"]), tuple(about["train_ids"]),
            about["meta"], arrays.get("columns"), parts,
        )  # fmt: skip
        if model_hash is not None:
            table.check_model(model_hash)
        return table

    def _query(self, q: int | str) -> int:
        if isinstance(q, int):
            return q
        if q not in self.query_ids:
            raise InputError(f"no query is called {q!r}", fix=f"choose from {', '.join(self.query_ids[:8])}")
        return self.query_ids.index(q)

    def _repr_html_(self) -> str:
        header = "higher = harms" if self.is_loss else "higher = helps"
        cells = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(row)}</td><td>{score:.4g}</td></tr>"
            for q, name in enumerate(self.query_ids[:8])
            for row, score in self.top(q, 5)
        )
        return f"<table><tr><th>query</th><th>row</th><th>score ({header})</th></tr>{cells}</table>"

    def __repr__(self) -> str:
        size = f"{len(self.query_ids)} queries x {len(self.train_ids)} rows"
        return f"ScoreTable({size}, {json.dumps(self.meta)[:80]})"
