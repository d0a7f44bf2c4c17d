"""What a portrait leaves for its reader: the lens, `lens.parquet`, `lens.json` and the page `lens.html`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasshouse.evidence.findings import Bar, BarsEvidence, TableEvidence
from glasshouse.internals.tuned_lens.evaluation import Evaluation, Metric
from glasshouse.internals.tuned_lens.plots import namer
from glasshouse.internals.tuned_lens.work import Portrait
from glasshouse.runtime import files
from glasshouse.statistics import Estimate

if TYPE_CHECKING:
    import pandas as pd

    from glasshouse.evidence.report import Section
    from glasshouse.internals.tuned_lens.trajectory import Trajectory

TITLE = "What would the model have answered earlier?"
MOST_COLUMNS = 16
"""Positions of a prompt that the page shows; the last ones."""


def write_portrait(folder: Path, portrait: Portrait) -> Path:
    """Write everything, each file whole or not, the page last; returns its path."""
    from glasshouse.evidence.report import render_sections

    portrait.lens.save(folder / "lens")
    frame = portrait_frame(portrait)
    with files.atomic_path(folder / "lens.parquet") as temporary:
        frame.to_parquet(temporary, index=False)
    told = provenance(portrait)
    files.write_json(folder / "lens.json", {"schema_version": 1, **told, "layers": layer_lines(portrait)})
    html = render_sections(TITLE, lead(portrait), sections(portrait), told, all_in="lens.parquet")
    return files.write_text(folder / "lens.html", html)


def portrait_frame(portrait: Portrait) -> pd.DataFrame:
    """Every number of both lenses, one line per lens, layer, metric and use of position 0."""
    import pandas as pd

    return pd.concat([portrait.tuned.to_frame(), portrait.logit.to_frame()], ignore_index=True)


def layer_lines(portrait: Portrait) -> list[dict[str, Any]]:
    """The main numbers of each layer, as JSON."""
    return [
        {"layer": layer,
         **{f"{name}_{metric}": found.estimate(metric, layer).to_json()
            for name, found in _both(portrait) for metric in ("kl", "ce", "entropy")},
         **{f"{name}_bias": found.bias(layer).to_json() for name, found in _both(portrait)}}
        for layer in range(portrait.tuned.n_layers)
    ]  # fmt: skip


def lead(portrait: Portrait) -> str:
    """The answer in two or three sentences."""
    depth = portrait.tuned.n_layers
    better = [k for k in range(depth) if portrait.tuned.difference(portrait.logit, "kl", k).high < 0]
    half = next((k for k in range(depth) if _below_half(portrait.tuned, k)), None)
    told = (
        f"On {portrait.held_out} held-out rows ({portrait.source}) the tuned lens is closer to the model's "
        f"own answer than the logit lens at {len(better)} of {depth} layers (95% intervals over rows). "
    )
    if half is not None:
        told += f"From layer {half} on, less than half of layer 0's distance is left. "
    return told + "Position 0 is left out. " + " ".join(portrait.notes)


def sections(portrait: Portrait) -> list[Section]:
    """Distance by layer, all numbers, and a table for each prompt."""
    from glasshouse.evidence.report import Section

    found = [
        Section(
            "How far is each layer from the answer?",
            "KL divergence from the model's own prediction to what the lens reads, in nats per token.",
            (_bars(portrait, "kl", "Distance to the model's answer"),),
        ),
        Section(
            "All numbers",
            "Cross entropy to the true next token, entropy, and the bias of the mean prediction. The last "
            "line is the model itself.",
            (_table(portrait),),
        ),
    ]
    if portrait.prompts is not None:
        found += [_prompt_section(portrait, row) for row in range(len(portrait.prompts))]
    return found


def provenance(portrait: Portrait) -> dict[str, Any]:
    """What a reader needs to repeat the run."""
    from importlib.metadata import version

    lens, subject = portrait.lens, portrait.subject
    return {
        "subject": {"name": subject.name, "hash": subject.hash, "layers": subject.n_layers,
                    "width": subject.d_model},
        "data": {"source": portrait.source, "rows": portrait.rows, "held_out": portrait.held_out},
        "lens": {**lens._options().facts(), "unembed_hash": lens.head_.hash},
        "versions": {name: version(name) for name in ("glasshouse", "torch", "transformers")},
    }  # fmt: skip


def trajectory_lines(
    trajectory: Trajectory, row: int, words: Any, *, last: int = MOST_COLUMNS
) -> list[list[str]]:
    """A prompt as lines of text: positions as columns, the output first, each cell the top token."""
    name, real = namer(words), trajectory.mask[row]
    count = int(real.sum())
    tops, probs = trajectory.top_ids_[row], trajectory.top_log_probs_[row].exp()
    lines = [["layer", *trajectory.tokens[row][max(0, count - last) :]]]
    for k in reversed(range(len(trajectory.layers))):
        label = "output" if k == len(trajectory.layers) - 1 else str(trajectory.layers[k])
        cells = [
            f"{name(int(tops[k, j, 0]))} {float(probs[k, j, 0]):.2f}"
            for j in range(max(0, count - last), count)
        ]
        lines.append([label, *cells])
    return lines


def _both(portrait: Portrait) -> list[tuple[str, Evaluation]]:
    return [("tuned", portrait.tuned), ("logit", portrait.logit)]


def _value(found: Evaluation, layer: int) -> float:
    return found.estimate("kl", layer).value


def _below_half(found: Evaluation, layer: int) -> bool:
    """Whether less than half of layer 0's distance is left at this layer and all later ones."""
    return all(_value(found, k) < _value(found, 0) / 2 for k in range(layer, found.n_layers))


def _bars(portrait: Portrait, metric: Metric, title: str) -> BarsEvidence:
    bars = []
    for layer in range(portrait.tuned.n_layers):
        for name, found in _both(portrait):
            e = found.estimate(metric, layer)
            low, high = (x if abs(x) < float("inf") else None for x in (e.low, e.high))
            bars.append(Bar(label=f"layer {layer}, {name} lens", value=e.value, low=low, high=high,
                            highlighted=name == "tuned"))  # fmt: skip
    return BarsEvidence(title=title, unit="nats per token", bars=tuple(bars))


def _table(portrait: Portrait) -> TableEvidence:
    columns = (
        "layer", "lens", "KL", "bias", "cross entropy", "bits per byte", "entropy", "KL with position 0",
    )  # fmt: skip
    rows = []
    for layer in range(portrait.tuned.n_layers + 1):
        for name, found in _both(portrait):
            output = layer == portrait.tuned.n_layers
            if output and name == "logit":
                continue
            known = not math.isnan(found.bytes_per_token)
            bits = _told(found.estimate("ce", layer, unit="bits_per_byte")) if known else "no tokenizer"
            kl, ce, entropy = (_told(found.estimate(metric, layer)) for metric in ("kl", "ce", "entropy"))
            bias = "0" if output else _told(found.bias(layer))
            who = ("output", "model") if output else (str(layer), name)
            first = _told(found.estimate("kl", layer, first=True))
            rows.append((*who, kl, bias, ce, bits, entropy, first))
    caption = f"95% intervals over {portrait.held_out} rows; bias: over groups of rows, position 0 left out."
    return TableEvidence(title="By layer, nats per token", caption=caption, columns=columns, rows=tuple(rows))


def _told(e: Estimate) -> str:
    return f"{e.value:.3g} [{e.low:.3g}, {e.high:.3g}]"


def _prompt_section(portrait: Portrait, row: int) -> Section:
    from glasshouse.evidence.report import Section

    trajectory = portrait.prompts
    assert trajectory is not None
    lines = trajectory_lines(trajectory, row, portrait.subject.tokenizer)
    real = trajectory.mask[row]
    depth = trajectory.depth()[row][real]
    table = TableEvidence(
        title="Top token at every layer, and its probability", columns=tuple(lines[0]),
        rows=tuple(tuple(line) for line in lines[1:]),
        caption=f"The last {min(MOST_COLUMNS, int(real.sum()))} of {int(real.sum())} positions.",
    )  # fmt: skip
    text = f"At the last position the answer settles at layer {int(depth[-1])} of {trajectory.layers[-1]}."
    return Section(f"Prompt {row + 1}", text, (table,))
