"""What IF-COMP says of points: norms of all labels, complexity, hindsight probabilities, code lengths."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, NumericalError

if TYPE_CHECKING:
    import pandas as pd

Space = Literal["logit", "prob"]
Floats = NDArray[np.float64]
BALANCE = 4.0
"""How much more the loss spreads than the complexity in a balanced code length."""
ROUNDING = 1e-4
"""A norm below -ROUNDING times the largest one of its row is no rounding error."""


@dataclass(frozen=True)
class Complexity:
    """Of n points and the k labels that take part: `logits` [n, k], `gram` K = J F^-1 J^T [n, k, k].

    `labels` [n, k] says which label each column is (0..C-1 in order unless `top_k` was used), `lse` [n] is
    logsumexp of all C logits, `own` [n] the logit of the given label where the points carry one. F is the
    Fisher of the loss at `temperature`, over `n_train` rows; `parameters` are the weights followed.
    """

    ids: tuple[str, ...]
    logits: Floats
    gram: Floats
    labels: NDArray[np.int64]
    lse: Floats
    temperature: float
    n_train: int
    parameters: int
    own: Floats | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tempered(self) -> Floats:
        """`p_T` [n, k]: softmax of the logits at the temperature of the Fisher."""
        return np.asarray(softmax(self.logits / self.temperature, axis=1))

    @property
    def proba(self) -> Floats:
        """`p_1` [n, k]: what the model says as it stands."""
        return np.asarray(softmax(self.logits, axis=1))

    @property
    def norms(self) -> Floats:
        """`g_k^T (F + damping)^-1 g_k / P` [n, k] with `g_k = J^T (p_T - e_k) / T`: each label's gain, >= 0.

        P, the number of weights, is a unit: 1 would be a row that moves every direction of the weights.
        """
        return label_norms(self.gram, self.tempered, self.temperature) / self.parameters

    @property
    def parametric(self) -> Floats:
        """`C(x) = sum_k p_T(k|x) norm_k(x)` [n]: how much any label would gain from being trained on."""
        return np.asarray((self.tempered * self.norms).sum(1))

    def norm_of(self, y: Any) -> Floats:
        """The norm of one label of each point, [n]: self-influence where y is the given label."""
        return np.take_along_axis(self.norms, self._columns(y)[:, None], axis=1)[:, 0]

    def loss(self, y: Any = None) -> Floats:
        """`-log p_1(y|x)` [n] in nats, over all C labels; y: one label a point (default: the given)."""
        if y is None:
            if self.own is None:
                raise InputError("these points carry no labels", fix="pass y")
            return np.asarray(self.lse - self.own)
        own = np.take_along_axis(self.logits, self._columns(y)[:, None], axis=1)[:, 0]
        return np.asarray(self.lse - own)

    def hindsight(self, alpha: float, space: Space = "logit", *, temperature: float = 1.0) -> Floats:
        """Probabilities [n, k], each label as likely as after one step of training on it, normalised.

        logit: softmax((z + alpha norm / N) / temperature); prob: p (1 + alpha norm / N), normalised.
        """
        if not alpha >= 0:
            raise InputError(f"alpha is {alpha}", fix="use a number >= 0")
        gain = alpha * self.norms / self.n_train
        if space == "logit":
            return np.asarray(softmax((self.logits + gain) / temperature, axis=1))
        p = softmax(self.logits / temperature, axis=1) * (1 + gain)
        return np.asarray(p / p.sum(1, keepdims=True))

    def codelength(self, y: Any = None, *, weight: float = 1.0) -> Floats:
        """`weight * -log p_1(y|x) / T + C(x) / N` [n]: what the label costs, and what any label would.

        Differences of the tempered loss are of order 1 / T, hence the division. The two terms have no common
        unit (P is one of convention): `weight` says how much the loss counts.
        """
        if not (weight >= 0 and np.isfinite(weight)):
            raise InputError(f"weight is {weight}", fix="use a number >= 0")
        return np.asarray(weight * self.loss(y) / self.temperature + self.parametric / self.n_train)

    def balanced_weight(self, y: Any = None) -> float:
        """The weight at which the loss spreads over these points `BALANCE` times as much as the complexity.

        It depends on the points: take it from the training rows as a whole. Raises InputError where every
        label costs the same.
        """
        spread = float((self.loss(y) / self.temperature).std())
        if spread <= 0:
            raise InputError("the loss of all points is equal", fix="give a weight, or more points")
        return BALANCE * float((self.parametric / self.n_train).std()) / spread

    def to_frame(self) -> pd.DataFrame:
        """One row a point: id, complexity, the preferred label and its probability."""
        import pandas as pd

        best = self.logits.argmax(1)
        rows = np.arange(len(self))
        return pd.DataFrame(
            {"id": list(self.ids), "complexity": self.parametric, "label": self.labels[rows, best],
             "probability": self.proba[rows, best]}
        )  # fmt: skip

    def plot(self) -> Any:
        """A plotly figure: the distribution of the complexity."""
        import plotly.graph_objects as go

        figure = go.Figure(go.Histogram(x=self.parametric))
        return figure.update_layout(xaxis_title="complexity", yaxis_title="points")

    def save(self, folder: Path | str) -> Path:
        """Write `complexity.safetensors` and `complexity.json`, each atomically."""
        from safetensors.numpy import save

        arrays = {
            k: v for k in ("logits", "gram", "labels", "lse", "own") if (v := getattr(self, k)) is not None
        }
        files.write_bytes(
            Path(folder) / "complexity.safetensors",
            save({k: np.ascontiguousarray(v) for k, v in arrays.items()}),
        )
        about = {
            "ids": self.ids,
            "temperature": self.temperature,
            "n_train": self.n_train,
            "parameters": self.parameters,
            "meta": self.meta,
        }
        files.write_json(Path(folder) / "complexity.json", about)
        return Path(folder)

    @classmethod
    def load(cls, folder: Path | str) -> Complexity:
        """Read what `save` wrote. Raises InputError for a folder without it."""
        from safetensors.numpy import load_file

        if not (Path(folder) / "complexity.json").exists():
            raise InputError("it holds no complexities", where=str(folder), fix="give what save() wrote")
        about = files.read_json(Path(folder) / "complexity.json")
        arrays = load_file(Path(folder) / "complexity.safetensors")
        return cls(
            tuple(about["ids"]), arrays["logits"], arrays["gram"], arrays["labels"], arrays["lse"],
            about["temperature"], about["n_train"], about["parameters"], arrays.get("own"), about["meta"],
        )  # fmt: skip

    def _repr_html_(self) -> str:
        return str(self.to_frame().nlargest(10, "complexity").to_html(index=False))

    def _columns(self, y: Any) -> NDArray[np.int64]:
        """The column of each point's label."""
        asked = np.asarray(y, dtype=np.int64)
        if asked.shape != (len(self),):
            raise InputError(
                f"y has shape {asked.shape} for {len(self)} points", fix="give one label a point"
            )
        match = self.labels == asked[:, None]
        missing = ~match.any(1)
        if missing.any():
            at = int(missing.argmax())
            raise InputError(
                f"{int(missing.sum())} points have labels not among the {self.labels.shape[1]} followed "
                f"(first: {asked[at]} of point {self.ids[at]!r})", fix="give labels in range, or raise top_k",
            )  # fmt: skip
        return np.asarray(match.argmax(1))


def label_norms(gram: Floats, p: Floats, temperature: float) -> Floats:
    """`(p - e_k)^T K (p - e_k) / T^2` for every k, [n, k]. Raises NumericalError for NaN or negative ones."""
    Kp = np.einsum("nij,nj->ni", gram, p)
    diagonal = np.einsum("nii->ni", gram)
    norms = diagonal - 2 * Kp + (p * Kp).sum(1, keepdims=True)
    scale = np.abs(diagonal).max(1, keepdims=True)
    if not np.isfinite(norms).all() or (norms < -ROUNDING * scale).any():
        raise NumericalError(
            "the norms of labels hold NaN or are negative, so a curvature is not positive",
            fix="use damping='auto', and fit on rows without NaN",
        )
    return np.asarray(np.maximum(norms, 0) / temperature**2)


def log_normaliser(complexity: Complexity, alpha: float) -> Floats:
    """Log of the pNML normaliser [n], `log sum_k p_k exp(alpha norm_k / N)`: the regret, in nats."""
    z = complexity.logits
    gain = alpha * complexity.norms / complexity.n_train
    return np.asarray(logsumexp(z + gain, axis=1) - logsumexp(z, axis=1))
