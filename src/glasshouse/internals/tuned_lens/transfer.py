"""Does the translator of one layer work at another? (Belrose et al. 2023, section 3.)"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glasshouse.internals.tuned_lens import measures
from glasshouse.internals.tuned_lens.disk import read_tensors, write_tensors
from glasshouse.internals.tuned_lens.lens import Lens
from glasshouse.internals.tuned_lens.streams import NONE, rows_of, stream

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Transfer:
    """Translator i applied at layer j: `kl` and `ce` fp32 [L, L] (rows i, columns j), nats per token."""

    kl: Tensor
    ce: Tensor

    @property
    def penalty(self) -> Tensor:
        """How much worse the cross entropy is than with the layer's own translator [L, L]."""
        return self.ce - self.ce.diagonal()

    def to_frame(self) -> pd.DataFrame:
        """One line per pair of layers."""
        import pandas as pd

        i, j = torch.meshgrid(torch.arange(len(self.kl)), torch.arange(len(self.kl)), indexing="ij")
        columns = {"translator": i, "layer": j, "kl": self.kl, "ce": self.ce, "penalty": self.penalty}
        return pd.DataFrame({name: value.flatten().numpy() for name, value in columns.items()})

    def plot(self) -> go.Figure:
        """The penalty as a heat map."""
        import plotly.graph_objects as go

        figure = go.Figure(go.Heatmap(z=self.penalty.tolist(), colorscale="Viridis"))
        return figure.update_layout(xaxis_title="applied at layer", yaxis_title="translator of layer")

    def save(self, folder: Path | str) -> Path:
        """Write `transfer.safetensors`."""
        write_tensors(Path(folder) / "transfer.safetensors", {"kl": self.kl, "ce": self.ce}, {})
        return Path(folder)

    @classmethod
    def load(cls, folder: Path | str) -> Transfer:
        """Read what `save` wrote. Raises RunError for a damaged file."""
        return cls(**read_tensors(Path(folder) / "transfer.safetensors")[0])


def layer_transfer(
    lens: Lens, subject: Any, tokens: Any, *, skip_first: int = 1, batch_tokens: int = 16384
) -> Transfer:
    """Every translator at every layer, L^2 unembeddings per token; the first `skip_first` tokens left out."""
    from glasshouse.subjects import as_subject

    subject = as_subject(subject)
    lens._fitted()
    depth = lens.n_layers_
    kl, ce = (torch.zeros(depth, depth, dtype=torch.float64) for _ in range(2))
    tokens_seen = labels_seen = 0
    with torch.no_grad():
        for streams in stream(subject, rows_of(subject, tokens), batch_tokens):
            kept = streams.take(streams.position >= skip_first)
            tokens_seen, labels_seen = tokens_seen + len(kept), labels_seen + int((kept.next != NONE).sum())
            for at in measures.token_blocks(lens, kept):
                final = measures.layer_log_probs(lens, kept, at, depth)
                label = kept.next[at].to(final.device)
                for i in range(depth):
                    for j in range(depth):
                        here = lens.logits(kept.h[j, at], i).log_softmax(-1)
                        own = here.gather(-1, label.clamp_min(0)[:, None])[:, 0]
                        kl[i, j] += float(measures.kl(final, here).double().sum())
                        ce[i, j] -= float(own[label != NONE].double().sum())
    return Transfer((kl / max(tokens_seen, 1)).float(), (ce / max(labels_seen, 1)).float())
