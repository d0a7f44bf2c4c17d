"""Trajectories as heat maps and frames."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

from glasshouse.runtime.errors import InputError
from glasshouse.runtime.text import clean_text

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from glasshouse.internals.tuned_lens.trajectory import Trajectory

VALUES = ("entropy", "kl", "js", "target", "rank", "adjacent", "margin")


def heat_map(trajectory: Trajectory, row: int, value: str, words: Any = None) -> go.Figure:
    """Layers (upwards) by positions of one row, coloured by `value` (nats; rank counts tokens).

    `words` names token ids: a tokenizer or a function from an id to text; without it cells show `#id`. Texts
    are escaped. Raises InputError for an unknown value or row.
    """
    import plotly.graph_objects as go

    if value not in VALUES:
        raise InputError(f"there is no value {value!r}", fix=f"use one of {', '.join(VALUES)}")
    if not 0 <= row < len(trajectory):
        raise InputError(f"row {row} of {len(trajectory)}", fix="count from 0")
    name, real = namer(words), trajectory.mask[row]
    z = getattr(trajectory, value)()[row][:, real].double()  # (K, n)
    tops, probs = trajectory.top_ids_[row][:, real], trajectory.top_log_probs_[row][:, real].exp()
    cells = [[escape(name(int(ids[0]))) for ids in layer] for layer in tops]
    hover = [
        [
            "<br>".join(f"{escape(name(int(i)))} {float(p):.3f}" for i, p in zip(ids, ps, strict=True))
            for ids, ps in zip(*pair, strict=True)
        ]
        for pair in zip(tops, probs, strict=True)
    ]
    labels = ["output" if layer == trajectory.layers[-1] else str(layer) for layer in trajectory.layers]
    tokens = [f"{p}: {escape(clean_text(t))}" for p, t in zip(
        trajectory.positions[row][real].tolist(), trajectory.tokens[row], strict=True)]  # fmt: skip
    figure = go.Figure(
        go.Heatmap(
            z=z.tolist(), x=list(range(len(tokens))), y=labels, text=cells, texttemplate="%{text}",
            customdata=hover, colorbar={"title": value}, colorscale="Viridis",
            hovertemplate="layer %{y}<br>%{customdata}<br>" + value + " %{z:.3f}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_layout(
        title=f"{value} of the predictions, row {row}", yaxis_title="layer", yaxis_type="category",
        xaxis={"title": "token read", "tickvals": list(range(len(tokens))), "ticktext": tokens},
    )  # fmt: skip
    return figure


def namer(words: Any) -> Callable[[int], str]:
    """A function from token ids to harmless text."""
    if words is None:
        return lambda i: f"#{i}"
    read = words.convert_ids_to_tokens if hasattr(words, "convert_ids_to_tokens") else words
    return lambda i: clean_text(str(read(i)))


def trajectory_frame(trajectory: Trajectory) -> pd.DataFrame:
    """One line per row, layer and real position; `top` and `top_p` are the most likely token."""
    import pandas as pd

    columns = {
        "entropy": trajectory.entropy_, "kl": trajectory.kl_, "js": trajectory.js_,
        "adjacent": trajectory.adjacent_, "target_logprob": trajectory.target_, "rank": trajectory.rank_,
        "top": trajectory.argmax_, "top_p": trajectory.top_log_probs_[..., 0].exp(),
    }  # fmt: skip
    depth = trajectory.depth()
    parts = []
    for row in range(len(trajectory)):
        real = trajectory.mask[row]
        for k, layer in enumerate(trajectory.layers):
            parts.append(pd.DataFrame({
                "row": row, "layer": layer, "position": trajectory.positions[row][real].numpy(),
                "token": list(trajectory.tokens[row]), "target": trajectory.targets[row][real].numpy(),
                **{name: array[row, k][real].numpy() for name, array in columns.items()},
                "depth": depth[row][real].numpy(),
            }))  # fmt: skip
    return pd.concat(parts, ignore_index=True)
