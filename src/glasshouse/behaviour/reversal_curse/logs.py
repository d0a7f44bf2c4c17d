"""Inspect logs of the task `reversal_curse` as the frame that `ask` gives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

_ABOUT = ("direction", "entity_id", "template_id", "prompt", "completion")


def read_logs(folder: Path | str, *, model: str | None = None) -> pd.DataFrame:
    """Both kinds of every question in the logs of one model; modes logprob and generate are joined.

    Samples of evaluations that did not succeed are left out. Raises InputError when there is no finished
    log of the task, or when several models are there and `model` names none of them.
    """
    import pandas as pd

    from glasshouse.evaluation import scores_df

    every = scores_df(folder)
    frame = every[every["task"].eq("reversal_curse") & every["counted"]]
    models = sorted(frame["model"].unique()) if len(frame) else []
    if model is not None:
        frame = frame[frame["model"] == model]
    if frame.empty or (model is None and len(models) > 1):
        raise InputError(
            f"there are finished logs of reversal_curse by {', '.join(models) or 'no model'}",
            where=str(folder),
            fix="choose one of them with model=" if models else "run the task first",
        )  # fmt: skip
    parts = [_pair(str(pair), rows) for pair, rows in frame.groupby("pair_id", sort=True)]
    return pd.DataFrame([row for part in parts for row in part])


def _pair(pair: str, rows: pd.DataFrame) -> list[dict[str, object]]:
    def first(column: str) -> object:
        values = rows[column].dropna() if column in rows else ()
        return values.iloc[0] if len(values) else np.nan

    def mean(column: str) -> float:
        """Over epochs and logs; NaN where no log measured it."""
        return float(rows[column].astype(float).mean()) if column in rows else float("nan")

    about = {name: first(f"metadata_{name}") for name in _ABOUT}
    shared = {
        "pair_id": pair, "arm": first("arm"), "group": first("group"), **about,
        "answer": about["completion"], "reply": _reply(rows),
        "access": "logprob" if not np.isnan(mean("score_likelihood_logprob")) else "sampled",
    }  # fmt: skip
    true = {
        **shared, "id": f"{pair}/true", "kind": "true", "correct": mean("score_starts_with_correct"),
        "f1": mean("score_starts_with_f1"), "logprob": mean("score_likelihood_logprob"),
        "rank": mean("score_likelihood_rank"), "above": mean("score_likelihood_above"),
    }  # fmt: skip
    random = {
        **shared, "id": f"{pair}/random", "kind": "random", "f1": np.nan, "rank": np.nan, "above": np.nan,
        "correct": mean("score_starts_with_chance"), "logprob": mean("score_likelihood_logprob_random"),
        "completion": first("metadata_random_completion"),
    }  # fmt: skip
    return [true, random]


def _reply(rows: pd.DataFrame) -> object:
    said = rows["answer_starts_with"].dropna() if "answer_starts_with" in rows else ()
    return said.iloc[0] if len(said) else None
