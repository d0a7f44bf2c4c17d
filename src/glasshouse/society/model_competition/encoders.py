"""Features from a model you can open: the representation that providers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from glasshouse.runtime.errors import InputError
from glasshouse.society.model_competition._users import Floats

if TYPE_CHECKING:
    from glasshouse.subjects import Subject

Pooling = Literal["last", "mean"]
POOLINGS = ("last", "mean")


def encode(
    subject: Subject | str | Any,
    texts: Sequence[Any],
    *,
    sites: Sequence[str] = ("final_norm_in",),
    pooling: Pooling = "last",
    batch: int = 64,
) -> dict[str, Floats]:
    """Activations of `texts` at each site, pooled over tokens: site -> float64 [texts, d].

    `subject` is a folder, a Hugging Face id, or an open subject; it must give activations. `pooling` 'last'
    takes the last token, 'mean' the mean over tokens. Rows of `resid_pre.l` also appear as `layer:l`, so that
    `representation_ladder` takes them by that name.
    Raises AccessError for a subject that only talks, InputError for no text or an unknown pooling.

    >>> encode("EleutherAI/pythia-70m", reviews, sites=["resid_pre.2", "resid_pre.4"])  # doctest: +SKIP
    """
    from glasshouse.subjects import as_subject

    if pooling not in POOLINGS:
        raise InputError(f"there is no pooling {pooling!r}", fix="use one of " + ", ".join(POOLINGS))
    if not len(texts):
        raise InputError("there is nothing to encode", fix="give at least one text")
    opened = as_subject(subject)
    parts: dict[str, list[Floats]] = {site: [] for site in sites}
    for start in range(0, len(texts), batch):
        for site, rows in _batch(opened, texts[start : start + batch], sites, pooling).items():
            parts[site].append(rows)
    found = {site: np.concatenate(rows) for site, rows in parts.items()}
    layers = {f"layer:{s.removeprefix('resid_pre.')}": s for s in sites if s.startswith("resid_pre.")}
    return {**found, **{name: found[site] for name, site in layers.items()}}


def _batch(subject: Any, texts: Sequence[Any], sites: Sequence[str], pooling: str) -> dict[str, Floats]:
    from glasshouse.subjects import Site

    at = (-1,) if pooling == "last" else None
    run = subject.run(list(texts), read=list(sites), positions=at, logits=False)
    pooled = {}
    for site in sites:
        acts = run.acts[Site.parse(site)].double().cpu()  # (B, T, d); rows are padded on the right
        if pooling == "last":
            pooled[site] = acts[:, 0].numpy()
        else:
            lengths = [len(row) for row in subject.encode_all(texts)]
            pooled[site] = np.stack([a[:n].mean(0).numpy() for a, n in zip(acts, lengths, strict=True)])
    return pooled
