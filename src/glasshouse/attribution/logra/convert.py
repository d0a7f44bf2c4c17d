"""Our scores in the sign and scale of the reference implementation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from glasshouse.attribution.scores import ScoreTable
from glasshouse.runtime.errors import InputError


def to_logix(table: ScoreTable, *, self_score: NDArray[Any] | None = None) -> NDArray[np.float32]:
    """A `LoGra` table as logix returns it: `+grad loss` on the training side, not divided by N.

    Its l2 takes off half a self-influence that is not divided by N either, so that mode needs the method's
    `self_score()` [N]. Raises InputError where that is missing or the table has no mode.

    >>> to_logix(method.score(queries, "loss"))  # doctest: +SKIP
    """
    mode, n = table.meta.get("mode"), np.float32(table.meta["n_train"])
    scores = table.dense()
    if mode == "cosine":
        return -scores  # N stands above and below
    if mode == "dot":
        return -scores * n
    if mode != "l2":
        raise InputError(f"the table's mode is {mode!r}", fix="give a table of LoGra")
    if self_score is None:
        raise InputError("l2 scores need the rows' self-influence", fix="pass self_score=method.self_score()")
    own = np.asarray(self_score, dtype=np.float32) * n
    dot = scores + own / (2 * n**2)
    return -dot * n - own / 2
