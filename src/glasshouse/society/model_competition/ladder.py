"""Representations from poor to rich, and users' welfare along them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from glasshouse.runtime.errors import InputError
from glasshouse.runtime.executors import Executor, Store, get_executor
from glasshouse.runtime.progress import track
from glasshouse.runtime.seeds import derive, rng
from glasshouse.society.model_competition._users import Floats, with_bias
from glasshouse.society.model_competition._welfare import WelfareCurve
from glasshouse.society.model_competition.bayes import bayes_loss
from glasshouse.society.model_competition.dynamics import equilibrium
from glasshouse.society.model_competition.market import CompetitionMarket

Ladder = Sequence[tuple[str, Any]]
"""(name, features [n, d] with the constant last) of each rung, the poorest first."""
KINDS = ("pca", "randproj", "noise", "layer", "checkpoint")
PCA_RUNGS = ("pca:0", "pca:1", "pca:2", "pca:4", "pca:8", "pca:16", "pca:32")


def representation_ladder(
    X: Any, kinds: Sequence[str] = PCA_RUNGS, *, seed: int = 0
) -> list[tuple[str, Floats]]:
    """One representation per kind, each with a constant feature last.

    `pca:k` the k leading principal components, divided by the first one's standard deviation; `randproj:k` k
    random projections; `noise:s` all features with Gaussian noise of s standard deviations; these need an
    array X [n, d]. `layer:l`, `checkpoint:t` take X to be a mapping from such names to arrays [n, d] (what
    `encode` returns), or a function from a name to an array. Raises InputError for an unknown kind, more
    components than features, or a name that the mapping does not hold.

    >>> [(name, features.shape) for name, features in representation_ladder(np.eye(5), ["pca:0", "pca:2"])]
    [('pca:0', (5, 1)), ('pca:2', (5, 3))]
    """
    made = []
    for name in kinds:
        kind, _, option = name.partition(":")
        if kind not in KINDS or not option:
            raise InputError(f"there is no representation {name!r}", fix="use " + ":N, ".join(KINDS) + ":N")
        if kind in ("layer", "checkpoint"):
            made.append((name, with_bias(_scaled(_named(X, name)))))
        else:
            made.append((name, with_bias(_made(_array(X), kind, option, seed))))
    return made


def welfare_curve(
    ladder: Ladder,
    y: Any,
    market: CompetitionMarket,
    *,
    resamples: int = 10,
    seed: int = 0,
    executor: str | Executor = "local",
    store: Store | None = None,
    **options: Any,
) -> WelfareCurve:
    """Bayes loss and users' loss at equilibrium on each rung, with bootstrap intervals over users.

    Every rung is solved on all users and on `resamples` bootstrap samples of them (the same ones on every
    rung, each with its own random initialisation). `options` go to `equilibrium`. A `store` (such as
    `Run.step`) keeps what was computed. Raises InputError for an empty ladder or rungs of other lengths.
    """
    rungs = [(str(name), np.asarray(features, dtype=np.float64)) for name, features in ladder]
    labels = np.asarray(y)
    if not rungs:
        raise InputError("the ladder is empty", fix="give at least one representation")
    if resamples < 0:
        raise InputError(f"resamples is {resamples}", fix="give 0 or more")
    for name, features in rungs:
        if len(features) != len(labels):
            raise InputError(f"{name} has {len(features)} rows and y {len(labels)}")
    shards = [(rungs, labels, market, seed, draw, options) for draw in range(resamples + 1)]
    rows = list(_solved(shards, get_executor(executor), store))
    return WelfareCurve(tuple(rows), market.m, len(labels))


def solve_rungs(shard: tuple[Any, ...]) -> list[dict[str, Any]]:
    """One bootstrap sample (0: everybody) on every rung. A rung of the same kind starts where the last ended,
    so that the Bayes loss cannot rise with nested representations.
    """
    rungs, labels, market, seed, draw, options = shard
    users = np.arange(len(labels))
    if draw:
        users = rng(seed, "resample", draw).integers(len(labels), size=len(labels))
    rows, last = [], ("", None)
    for name, features in rungs:
        kind = name.partition(":")[0]
        warm = [last[1]] if kind == "pca" == last[0] and len(last[1]) <= features.shape[1] else []
        X, y = features[users], labels[users]
        opt = bayes_loss(X, y, market=market, seed=seed, warm=warm)
        found = equilibrium(X, y, market, seed=derive(seed, "draw", draw), bayes=opt, **options)
        last = (kind, opt[1])
        rows.append({
            "name": name, "draw": draw, "bayes": opt[0], "SL": found.SL, "agreement": found.agreement,
            "k_hetero": found.k_hetero, "eps_nash": found.eps_nash, "converged": found.converged,
            "rounds": len(found.trajectory),
        })  # fmt: skip
    return rows


def _solved(shards: list[Any], executor: Executor, store: Store | None) -> Iterator[dict[str, Any]]:
    if store is None:
        for rows in track(executor.map(solve_rungs, shards), "market equilibria", len(shards)):
            yield from rows
        return
    total: list[dict[str, Any]] = executor.map_reduce(solve_rungs, shards, _joined, store=store)
    yield from total


def _joined(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*a, *b]


def _array(X: Any) -> Floats:
    if isinstance(X, Mapping) or callable(X):
        raise InputError(
            "these kinds need an array of features", fix="give X [n, d], or layer:/checkpoint: kinds"
        )
    array = np.asarray(X, dtype=np.float64)
    if array.ndim != 2 or not np.isfinite(array).all():
        raise InputError(f"X has shape {array.shape}", fix="give finite numbers of shape (users, features)")
    return array


def _named(X: Mapping[str, Any] | Callable[[str], Any] | Any, name: str) -> Floats:
    if isinstance(X, Mapping):
        if name not in X:
            raise InputError(f"there are no features {name!r}", fix="use one of: " + ", ".join(map(str, X)))
        return _array(X[name])
    if not callable(X):
        raise InputError(f"{name!r} needs features by name", fix="give a mapping from names to arrays")
    return _array(X(name))


def _made(X: Floats, kind: str, option: str, seed: int) -> Floats:
    if kind == "noise":
        spread = _spread(option)
        return X + spread * X.std(0) * rng(seed, "noise").normal(size=X.shape)
    if not option.isdigit():
        raise InputError(f"{option!r} is not a number of features", where=f"{kind}:{option}")
    k = int(option)
    if k > X.shape[1]:
        raise InputError(f"{k} features of {X.shape[1]}", where=f"{kind}:{k}", fix="give fewer")
    return _pca(X, k) if kind == "pca" else X @ rng(seed, "projection").normal(size=(X.shape[1], k))


def _spread(option: str) -> float:
    try:
        spread = float(option)
    except ValueError:
        spread = math.nan
    if not 0 <= spread < math.inf:
        raise InputError(f"{option!r} is not a number of standard deviations", where=f"noise:{option}")
    return spread


def _pca(X: Floats, k: int) -> Floats:
    centred = X - X.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    if k > len(directions):
        raise InputError(f"{k} components of {len(X)} users", where=f"pca:{k}", fix="give fewer")
    # The sign of a direction is arbitrary: its largest entry is made positive.
    signs = np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(1)])
    scores = centred @ (directions * signs[:, None]).T
    return scores[:, :k] / scores[:, 0].std()


def _scaled(X: Floats) -> Floats:
    """Centred, divided by the standard deviation of its first principal component."""
    centred = X - X.mean(0)
    top = float(np.linalg.norm(centred, 2)) / np.sqrt(len(X))
    return centred / top if top > 0 else centred
