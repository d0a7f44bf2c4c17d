"""Is what matters to the lens what matters to the model?

Feature influence: the energy of a direction at the lens against the KL of the model's own output when the
direction is mean-ablated in its stream, as a rank correlation over directions. Stimulus and response: for one
ablation, do the lens's logits and the model's change in the same way? (Belrose et al. 2023, section 4.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glasshouse.internals.tuned_lens import measures
from glasshouse.internals.tuned_lens.ablation import Mode, ablated, projection, subspace_ablation
from glasshouse.internals.tuned_lens.causal import causal_basis, energies
from glasshouse.internals.tuned_lens.disk import read_settings, read_tensors, write_tensors
from glasshouse.internals.tuned_lens.lens import Lens
from glasshouse.internals.tuned_lens.streams import Rows, Streams, read, rows_of, sites_of
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.progress import track
from glasshouse.runtime.seeds import torch_generator
from glasshouse.statistics import Estimate, bootstrap, spearman

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

KINDS = ("basis", "random")


@dataclass(frozen=True)
class Fidelity:
    """Energies in nats, fp32 [layers, kind, k]: kind 0 the causal basis, 1 random orthogonal directions."""

    layers: tuple[int, ...]
    at_lens: Tensor
    at_model: Tensor

    def __repr__(self) -> str:
        return "; ".join(["Fidelity", *(f"layer {k}: {self.rho(k)}" for k in self.layers)])

    def _repr_html_(self) -> str:
        return str(self.to_frame().to_html(index=False))

    def rho(self, layer: int, kind: str = "basis") -> Estimate:
        """Spearman's rho over a layer's directions, with its interval; `kind` "random" is the control."""
        if layer not in self.layers or kind not in KINDS:
            raise InputError(f"no {kind!r} directions of layer {layer}", fix=f"layers are {self.layers}")
        at = self.layers.index(layer), KINDS.index(kind)
        return spearman(self.at_lens[at].numpy(), self.at_model[at].numpy())

    def to_frame(self) -> pd.DataFrame:
        """One line per layer, kind and direction."""
        import pandas as pd

        lines = [
            {"layer": layer, "kind": kind, "direction": j,
             "lens": float(self.at_lens[i, n, j]), "model": float(self.at_model[i, n, j])}
            for i, layer in enumerate(self.layers) for n, kind in enumerate(KINDS)
            for j in range(self.at_lens.shape[2])
        ]  # fmt: skip
        return pd.DataFrame(lines)

    def plot(self) -> go.Figure:
        """Influence on the model by influence on the lens, one colour per layer."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for i, layer in enumerate(self.layers):
            x, y = self.at_lens[i, 0].tolist(), self.at_model[i, 0].tolist()
            figure.add_scatter(x=x, y=y, mode="markers", name=f"layer {layer}")
        return figure.update_layout(
            xaxis={"title": "energy at the lens, nats", "type": "log"},
            yaxis={"title": "energy at the model, nats", "type": "log"},
        )

    def save(self, folder: Path | str) -> Path:
        """Write `fidelity.safetensors`, then `fidelity.json`."""
        tensors = {"at_lens": self.at_lens, "at_model": self.at_model}
        write_tensors(Path(folder) / "fidelity.safetensors", tensors, {})
        files.write_json(Path(folder) / "fidelity.json", {"layers": list(self.layers)})
        return Path(folder)

    @classmethod
    def load(cls, folder: Path | str) -> Fidelity:
        """Read what `save` wrote. Raises InputError or RunError for a damaged folder."""
        told = read_settings(Path(folder) / "fidelity.json", keys=("layers",))
        return cls(tuple(told["layers"]), **read_tensors(Path(folder) / "fidelity.safetensors")[0])


def fidelity(
    lens: Lens,
    subject: Any,
    tokens: Any,
    *,
    layers: Sequence[int] | None = None,
    k: int = 30,
    skip_first: int = 1,
    starts: int = 2,
    max_iter: int = 30,
    seed: int = 0,
) -> Fidelity:
    """Influence of k causal directions, and of k random ones, on the lens and on the model, layer by layer.

    The first `skip_first` tokens of each row are neither ablated nor measured. All rows are run at once, so
    give few: 8 rows of 256 tokens are 2 k forward passes per layer.
    """
    from glasshouse.subjects import as_subject

    subject = as_subject(subject)
    lens._fitted()
    rows = _long_enough(rows_of(subject, tokens), skip_first)
    wanted = tuple(range(lens.n_layers_) if layers is None else layers)
    scene = _Scene.of(lens, subject, rows, skip_first)
    k = min(k, subject.d_model)
    at_lens, at_model = (torch.zeros(len(wanted), 2, k) for _ in range(2))
    for i, layer in enumerate(wanted):
        h = scene.streams.h[layer]
        found = causal_basis(lens, h, layer, k, starts=starts, max_iter=max_iter, seed=seed).vectors
        noise = torch.randn(subject.d_model, k, generator=torch_generator(seed, "random", layer))
        for n, vectors in enumerate((found, torch.linalg.qr(noise.to(found)).Q)):
            at_lens[i, n] = energies(lens, h, layer, vectors)
            at_model[i, n] = torch.tensor(
                [scene.influence(layer, v, h.float().mean(0)) for v in track(vectors.T, f"layer {layer}")]
            )
    return Fidelity(wanted, at_lens, at_model)


@dataclass(frozen=True)
class _Scene:
    """Some rows of a subject, undisturbed, and its output on them."""

    lens: Lens
    subject: Any
    rows: Rows
    streams: Streams
    final: Tensor  # log-probabilities [n, V]
    places: list[list[int]]

    @classmethod
    def of(cls, lens: Lens, subject: Any, rows: Rows, skip_first: int) -> _Scene:
        streams = read(subject, rows, range(len(rows)))
        streams = streams.take(streams.position >= skip_first)
        with torch.no_grad():
            final = lens.final_logits(streams.h[-1]).log_softmax(-1)
        return cls(lens, subject, rows, streams, final, [list(range(skip_first, len(r))) for r in rows])

    def response(self, layer: int, A: Tensor, mode: Mode, **options: Any) -> Tensor:
        """The output's log-probabilities [n, V] with the columns of A ablated at a layer."""
        site = sites_of(self.subject.n_layers)[-1]
        edited = subspace_ablation(self.subject, layer, A, mode, positions=self.places, **options)
        with edited, torch.no_grad():
            run = self.subject.run(self.rows, read=[site], logits=False)
        real = run.batch.attention_mask.bool()
        kept = run.acts[site][real.to(run.acts[site].device)][self._kept(run.batch.position_ids[real])]
        return self.lens.final_logits(kept).log_softmax(-1)

    def influence(self, layer: int, v: Tensor, mean: Tensor) -> float:
        """KL of the model's output when one direction is mean-ablated, in nats per token."""
        with torch.no_grad():
            return float(measures.kl(self.final, self.response(layer, v, "mean", mean=mean)).mean())

    def _kept(self, position: Tensor) -> Tensor:
        return position >= self.places[0][0]


@dataclass(frozen=True)
class Alignment:
    """Aitchison similarity of the lens's and the model's response, in [-1, 1]: `per_token` [n], `row` [n]."""

    layer: int
    per_token: Tensor
    row: Tensor

    def estimate(self) -> Estimate:
        """The mean with a bootstrap interval over rows."""
        return bootstrap(self.per_token.double().numpy(), clusters=self.row.tolist())

    def beats(self, other: Alignment) -> Estimate:
        """Mean similarity of this lens minus another's, for the same ablation: paired over rows."""
        gap = self.per_token.double() - other.per_token.double()
        return bootstrap(gap.numpy(), clusters=self.row.tolist())


def response_alignment(
    lens: Lens, subject: Any, tokens: Any, layer: int, A: Tensor, *, skip_first: int = 1, seed: int = 0
) -> Alignment:
    """Resample-ablate the columns of A [d, k] at `layer`: do lens and model respond alike?

    The similarity is the cosine between the two changes of log-probabilities, centred and weighted by the
    model's mean output (Aitchison geometry). The same seed swaps the same tokens for every lens.
    """
    from glasshouse.subjects import as_subject

    subject = as_subject(subject)
    lens._fitted()
    scene = _Scene.of(lens, subject, _long_enough(rows_of(subject, tokens), skip_first), skip_first)
    h = scene.streams.h[layer]
    with torch.no_grad():
        moved = ablated(h, projection(A), "resample", seed=seed)
        stimulus = lens.logits(moved, layer).log_softmax(-1) - lens.logits(h, layer).log_softmax(-1)
        response = scene.response(layer, A, "resample", seed=seed) - scene.final
        weights = scene.final.exp().mean(0)
    return Alignment(layer, aitchison(stimulus, response, weights).cpu(), scene.streams.row)


def aitchison(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Cosine of two changes of log-probabilities [..., V] in the Aitchison geometry with `weights` [V]."""
    w = weights / weights.sum()
    a, b = (x - (w * x).sum(-1, keepdim=True) for x in (a, b))
    norm = ((w * a * a).sum(-1) * (w * b * b).sum(-1)).sqrt()
    return torch.where(norm > 0, (w * a * b).sum(-1) / norm.clamp_min(1e-30), 0.0).clamp(-1, 1)


def _long_enough(rows: Rows, skip_first: int) -> Rows:
    short = next((i for i, row in enumerate(rows) if len(row) <= skip_first), None)
    if short is not None:
        raise InputError(
            f"the row has no token after the first {skip_first}", where=f"row {short}", fix="drop it"
        )
    return rows
