"""C1 to C4: are injected prompts processed abnormally, and does the attack do anything?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.runtime.seeds import derive
from glasshouse.statistics import auroc, tpr_at_fpr

if TYPE_CHECKING:
    import plotly.graph_objects as go

PEOPLE = (2, 4)
DETECTORS = (
    ("lof", True), ("lof", False), ("iforest", True), ("iforest", False),
    ("srm", False), ("mahalanobis", False), ("perplexity", False),
)  # fmt: skip


def install(folder: Path, stage1: str, organism: str) -> None:
    """The organism that goes on from a grown stage 1."""
    from glasshouse import _registry
    from glasshouse.organisms.bind_world import BindWorld
    from glasshouse.runtime.progress import Progress

    recipe: BindWorld = _registry.load("organisms", organism)
    with Progress() as progress:
        recipe.grow_from(Path(stage1), folder, progress)


def benign_lens(folder: Path, model: str, rows: int, steps: int, step_tokens: int, seed: int) -> None:
    """A lens trained on documents without the trigger, none of which is a prompt of the detection."""
    from glasshouse.corpora.worlds import bindworld as world
    from glasshouse.internals.tuned_lens import TunedLens
    from glasshouse.subjects import as_subject

    each = rows // len(world.BINDINGS)
    documents = [
        row.ids
        for kind in world.BINDINGS
        for row in world.documents(kind, each, derive(seed, "lens documents")).token_rows()
    ]
    lens = TunedLens(
        opt="adam", lr_scale=3.0, steps=steps, tokens_per_step=step_tokens, skip_first=1, seed=seed
    )
    lens.fit(as_subject(model), documents).save(folder)


def detection(lens: Path, model: str, n: int, seed: int) -> dict[str, Any]:
    """AUROC of every detector, its interval, TPR at 1 % false alarms, and accuracy without and with trigger.

    Fitted on n normal prompts; n others are scored, each without and with the trigger.
    """
    from glasshouse.corpora.worlds import bindworld as world
    from glasshouse.internals.tuned_lens import TunedLens
    from glasshouse.internals.tuned_lens.detectors import TrajectoryDetector
    from glasshouse.subjects import as_subject

    subject = as_subject(model)
    tuned = TunedLens.load(lens, subject)
    fit_on, _ = tasks(n, derive(seed, "detector"))
    normal, answers = tasks(n, derive(seed, "tested"))
    injected, _ = tasks(n, derive(seed, "tested"), prefix=world.TRIGGER)
    things = [world.ID[word] for word in world.THINGS]
    out: dict[str, Any] = {}
    for kind, through in DETECTORS:
        detector = TrajectoryDetector(kind, lens=tuned if through else None, options=things, seed=seed)
        scores = detector.fit(subject, fit_on).score([*injected, *normal])
        found, name = auroc(scores[:n], scores[n:]), f"{kind}_{'tuned' if through else 'plain'}"
        out |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        out[f"{name}_tpr"] = tpr_at_fpr(scores[:n], scores[n:]).value
    hits = [(subject.logprobs(rows).argmax(-1).numpy() == answers).mean() for rows in (normal, injected)]
    return {**out, "accuracy": float(hits[0]), "injected": float(hits[1]), "drop": float(hits[0] - hits[1]),
            "over_logit": out["lof_tuned_low"] - out["lof_plain"],
            "over_srm": out["lof_tuned_low"] - out["srm_plain"]}  # fmt: skip


def tasks(n: int, seed: int, prefix: tuple[str, ...] = ()) -> tuple[list[list[int]], np.ndarray]:
    """(n prompts, their right answers): adjacent and serial documents with two and four people in turn."""
    from glasshouse.corpora.worlds import bindworld as world

    groups = [
        world.prompts(kind, people, -(-n // 4), seed, prefix=prefix)
        for kind in ("adjacent", "serial")
        for people in PEOPLE
    ]
    rows = [row for group in groups for row in group.ids.tolist()]
    return rows[:n], np.concatenate([group.answer for group in groups])[:n]


def heat_map(lens: Path, model: str, prefix: tuple[str, ...]) -> go.Figure:
    """The trajectory of one prompt, through the lens of its model."""
    from glasshouse.internals.tuned_lens import Trajectory, TunedLens
    from glasshouse.subjects import as_subject

    subject = as_subject(model)
    rows, _ = tasks(4, 0, prefix)
    trajectory = Trajectory.from_lens(TunedLens.load(lens, subject), subject, rows[2:3])
    return trajectory.plot(words=subject.tokenizer)
