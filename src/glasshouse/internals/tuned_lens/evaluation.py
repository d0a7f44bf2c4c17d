"""How good a lens is, layer by layer: cross entropy, KL to the model, entropy, and the bias of its marginal.

Sums per row are kept, so that intervals resample rows (tokens of one row are not independent), and position 0
apart from the others: its huge norm makes lens numbers there a class of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from glasshouse.internals.tuned_lens import measures
from glasshouse.internals.tuned_lens.disk import read_settings, read_tensors, write_tensors
from glasshouse.internals.tuned_lens.lens import Lens
from glasshouse.internals.tuned_lens.streams import NONE, Rows, Streams, rows_of, stream
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.statistics import Estimate, bootstrap, t_interval

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Metric = Literal["ce", "kl", "entropy"]
Unit = Literal["nats", "bits_per_byte"]
METRICS: tuple[Metric, ...] = ("ce", "kl", "entropy")
GROUPS = 10
"""Groups of rows whose marginals are kept apart, for the interval of the lens bias."""
ARRAYS = ("sums", "counts", "marginals", "group_counts", "next_counts")


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found on R rows, in nats, for layers 0 .. L (L is the model itself).

    `sums` float64 [3, L+1, R, 2]: ce, kl, entropy summed over the tokens of each row, those at position 0 and
    the others. `counts` [3, R, 2]: how many tokens (ce has no last token). `marginals` float64 [G, L+1, V]:
    summed probabilities of G groups of rows, position 0 left out; `group_counts` [G] their tokens;
    `next_counts` [V] how often each token follows. `bytes_per_token` is NaN where the subject has no
    tokenizer.
    """

    lens: str
    subject: str
    sums: Tensor
    counts: Tensor
    marginals: Tensor
    group_counts: Tensor
    next_counts: Tensor
    bytes_per_token: float

    def __repr__(self) -> str:
        return f"Evaluation({self.lens} on {self.subject}, {self.n_layers} layers, {self.sums.shape[2]} rows)"

    def _repr_html_(self) -> str:
        return str(self.to_frame().to_html(index=False))

    @property
    def n_layers(self) -> int:
        """L, the number of lens layers."""
        return int(self.sums.shape[1]) - 1

    def per_row(self, metric: Metric, layer: int, *, first: bool = False) -> np.ndarray:
        """Mean of each row [R] in nats; position 0 counts only with `first`."""
        total, count = self._row_sums(metric, layer, first)
        return total / count

    def estimate(self, metric: Metric, layer: int, *, first: bool = False, unit: Unit = "nats") -> Estimate:
        """Mean per token with a bootstrap interval over rows; position 0 counts only with `first`.

        Raises InputError for bits per byte of a subject without a tokenizer.
        """
        scale, (total, count) = self._scale(unit), self._row_sums(metric, layer, first)
        return _ratio(total * scale, count)

    def difference(self, other: Evaluation, metric: Metric, layer: int, *, first: bool = False) -> Estimate:
        """This lens minus another one on the same rows, in nats: a paired bootstrap over rows."""
        a, count = self._row_sums(metric, layer, first)
        b, same = other._row_sums(metric, layer, first)
        if not np.array_equal(count, same):
            raise InputError("the lenses were evaluated on different rows", fix="evaluate both on the same")
        return _ratio(a - b, count)

    def bias(self, layer: int) -> Estimate:
        """Lens bias, KL(mean output of the model || mean output of the lens), in nats.

        Position 0 is left out. The interval is Student's over the delete-one-group values of up to 10 groups
        of rows (jackknife); undefined for fewer than two groups.
        """
        value = _kl(self.marginals[:, -1].sum(0), self.marginals[:, layer].sum(0))
        groups = len(self.marginals)
        if groups < 2:
            return Estimate(value, -math.inf, math.inf, 0.95, groups, "jackknife: one group has no spread")
        out = [torch.arange(groups) != g for g in range(groups)]
        left = np.array([_kl(self.marginals[o, -1].sum(0), self.marginals[o, layer].sum(0)) for o in out])
        pseudo = t_interval(groups * value - (groups - 1) * left)
        half = (pseudo.high - pseudo.low) / 2
        return Estimate(
            value, max(0.0, value - half), value + half, 0.95, groups, "jackknife over row groups"
        )

    def to_frame(self) -> pd.DataFrame:
        """One line per layer, metric and use of position 0: value, low, high in nats and in bits per byte."""
        import pandas as pd

        lines: list[dict[str, Any]] = []
        for layer in range(self.n_layers + 1):
            base = {"lens": self.lens, "layer": layer, "is_output": layer == self.n_layers}
            for metric in METRICS:
                for first in (False, True):
                    lines.append({**base, "metric": metric, "with_position_0": first,
                                  **self._cells(self.estimate(metric, layer, first=first))})  # fmt: skip
            lines.append(
                {**base, "metric": "bias", "with_position_0": False, **self._cells(self.bias(layer))}
            )
        return pd.DataFrame(lines)

    def plot(self, metric: Metric = "kl") -> go.Figure:
        """The metric by layer, with its interval."""
        import plotly.graph_objects as go

        layers = list(range(self.n_layers + 1))
        found = [self.estimate(metric, layer) for layer in layers]
        above = [e.high - e.value for e in found]
        below = [e.value - e.low for e in found]
        error = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
        figure = go.Figure(go.Scatter(x=layers, y=[e.value for e in found], error_y=error, name=self.lens))
        return figure.update_layout(xaxis_title="layer", yaxis_title=f"{metric}, nats per token")

    def save(self, folder: Path | str) -> Path:
        """Write `evaluation.safetensors`, then `evaluation.json`."""
        folder = Path(folder)
        tensors = {name: getattr(self, name) for name in ARRAYS}
        write_tensors(folder / "evaluation.safetensors", tensors, {"kind": "lens evaluation"})
        known = None if math.isnan(self.bytes_per_token) else self.bytes_per_token
        told = {"lens": self.lens, "subject": self.subject, "bytes_per_token": known}
        files.write_json(folder / "evaluation.json", told)
        return folder

    @classmethod
    def load(cls, folder: Path | str) -> Evaluation:
        """Read what `save` wrote. Raises InputError or RunError for a damaged folder."""
        told = read_settings(Path(folder) / "evaluation.json", keys=("lens", "subject", "bytes_per_token"))
        tensors, _ = read_tensors(Path(folder) / "evaluation.safetensors")
        known = told["bytes_per_token"]
        return cls(
            told["lens"], told["subject"], **tensors, bytes_per_token=math.nan if known is None else known
        )

    def _row_sums(self, metric: Metric, layer: int, first: bool) -> tuple[np.ndarray, np.ndarray]:
        if metric not in METRICS or not 0 <= layer <= self.n_layers:
            raise InputError(f"no {metric!r} at layer {layer}", fix=f"layers are 0 to {self.n_layers}")
        at = METRICS.index(metric)
        total, count = self.sums[at, layer], self.counts[at]
        total, count = (x.sum(1) if first else x[:, 1] for x in (total, count))
        some = count > 0  # a row of one token has nothing after position 0
        if not bool(some.any()):
            raise InputError(f"no row has a token for {metric!r}", fix="give longer rows")
        return total[some].numpy(), count[some].double().numpy()

    def _scale(self, unit: Unit) -> float:
        if unit == "nats":
            return 1.0
        if math.isnan(self.bytes_per_token):
            raise InputError("bits per byte need the text", fix="open the subject with its tokenizer")
        return 1 / (self.bytes_per_token * math.log(2))

    def _cells(self, found: Estimate) -> dict[str, float]:
        cells = {"value": found.value, "low": found.low, "high": found.high, "n": found.n}
        bits = math.nan if math.isnan(self.bytes_per_token) else self._scale("bits_per_byte")
        return cells | {f"{name}_bpb": cells[name] * bits for name in ("value", "low", "high")}


def evaluate(lens: Lens, subject: Any, tokens: Any, *, batch_tokens: int = 16384) -> Evaluation:
    """Cross entropy to the true next token, KL(model || lens), entropy and marginals at every layer.

    `tokens` should be held out. Logits exist for one block of tokens and one layer at a time.
    """
    from glasshouse.subjects import as_subject

    subject = as_subject(subject)
    lens._fitted()
    rows = rows_of(subject, tokens)
    tally = _Tally(lens, rows)
    with torch.no_grad():
        for streams in stream(subject, rows, batch_tokens):
            for at in measures.token_blocks(lens, streams):
                tally.add(streams, at)
    return Evaluation(
        type(lens).__name__, subject.name, tally.sums, tally.counts, tally.marginals, tally.group_counts,
        tally.next_counts, bytes_per_token(subject, rows),
    )  # fmt: skip


def lens_bias(lens: Lens, subject: Any, tokens: Any) -> list[Estimate]:
    """The lens bias of every layer 0 .. L-1, see `Evaluation.bias`."""
    found = evaluate(lens, subject, tokens)
    return [found.bias(layer) for layer in range(found.n_layers)]


def bytes_per_token(subject: Any, rows: Rows) -> float:
    """Bytes of text per token of these rows; NaN without a tokenizer."""
    if subject.tokenizer is None:
        return math.nan
    size = sum(len(subject.decode(row).encode()) for row in rows)
    return size / sum(len(row) for row in rows)


class _Tally:
    """Running sums of an evaluation."""

    def __init__(self, lens: Lens, rows: Rows) -> None:
        self.lens, depth, vocab = lens, lens.n_layers_, lens.head_.vocab_size
        self.groups = min(GROUPS, len(rows))
        # A row's group goes by its content, so that the order of rows changes nothing.
        order = sorted(range(len(rows)), key=lambda i: rows[i])
        self.group = torch.empty(len(rows), dtype=torch.long)
        self.group[torch.tensor(order)] = torch.arange(len(rows)) % self.groups
        self.sums = torch.zeros(3, depth + 1, len(rows), 2, dtype=torch.float64)
        self.counts = torch.zeros(3, len(rows), 2, dtype=torch.long)
        self.marginals = torch.zeros(self.groups, depth + 1, vocab, dtype=torch.float64)
        self.group_counts = torch.zeros(self.groups, dtype=torch.long)
        self.next_counts = torch.zeros(vocab, dtype=torch.long)

    def add(self, streams: Streams, at: slice) -> None:
        """One block of tokens."""
        row, following = streams.row[at], streams.next[at]
        later, labelled = streams.position[at] > 0, streams.next[at] != NONE
        slot = later.long()
        for metric, counted in zip(
            range(3), (labelled, torch.ones_like(later), torch.ones_like(later)), strict=True
        ):
            self.counts[metric].index_put_((row, slot), counted.long(), accumulate=True)
        self.group_counts.index_add_(0, self.group[row], later.long())
        self.next_counts += torch.bincount(following[labelled], minlength=len(self.next_counts))
        depth = self.lens.n_layers_
        final = measures.layer_log_probs(self.lens, streams, at, depth)
        for layer in range(depth + 1):
            here = final if layer == depth else measures.layer_log_probs(self.lens, streams, at, layer)
            label = following.clamp_min(0).to(here.device)
            ce = torch.where(labelled.to(here.device), -here.gather(-1, label[:, None])[:, 0], 0.0)
            for metric, value in enumerate((ce, measures.kl(final, here), measures.entropy(here))):
                self.sums[metric, layer].index_put_((row, slot), value.double().cpu(), accumulate=True)
            for group in self.group[row].unique():
                mine = (self.group[row] == group) & later
                self.marginals[group, layer] += here[mine.to(here.device)].exp().sum(0).double().cpu()


def _ratio(total: np.ndarray, count: np.ndarray) -> Estimate:
    """Sum over sum, with a bootstrap over rows (a plain mean where rows are equally long: much faster)."""
    if (count == count[0]).all():
        return bootstrap(total / count)
    pairs = np.stack([total, count], 1)
    return bootstrap(pairs, lambda x: float(x[:, 0].sum() / x[:, 1].sum()))


def _kl(p: Tensor, q: Tensor) -> float:
    """KL between two summed probability vectors."""
    log_p, log_q = (x / x.sum() for x in (p, q))
    return float(torch.special.xlogy(log_p, log_p / log_q).nansum().clamp_min(0))
