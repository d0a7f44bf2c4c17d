"""Bad input, said at the border: each error names the index and the value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glasshouse.annotators._types import LONGEST_PREDICATE, Axis, Pair, Predicate, ProposeRequest
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.text import shorten


def check_texts(texts: Any, name: str = "text") -> list[str]:
    """At least one text, each a str without NUL that can be encoded."""
    if isinstance(texts, str) or not hasattr(texts, "__len__"):
        raise InputError(f"{name}s is a {type(texts).__name__}", fix=f"give a list of {name}s")
    if not len(texts):
        raise InputError(f"no {name} was given", fix=f"give at least one {name}")
    return [_clean(text, f"{name} {index}") for index, text in enumerate(texts)]


def check_predicates(predicates: Any) -> list[Predicate]:
    """At least one predicate, none blank, repeated or longer than 400 characters; words become predicates."""
    if isinstance(predicates, str | Predicate):
        raise InputError(f"predicates is a {type(predicates).__name__}", fix="give a list of predicates")
    found = [_predicate(given, index) for index, given in enumerate(predicates)]
    if not found:
        raise InputError("no predicate was given", fix="give at least one predicate")
    _refuse_repeats([predicate.text for predicate in found], "predicate")
    return found


def check_axes(axes: Any) -> list[Axis]:
    """At least one axis, names not blank and not repeated."""
    if isinstance(axes, str | Axis):
        raise InputError(f"axes is a {type(axes).__name__}", fix="give a list of Axis")
    for index, axis in enumerate(axes):
        if not isinstance(axis, Axis):
            raise InputError(f"axis {index} is a {type(axis).__name__}", fix="give Axis(name, high, low)")
        _statement(axis.name, f"axis {index}")
        _clean(axis.high, f"axis {index}, high")
        _clean(axis.low, f"axis {index}, low")
    if not len(axes):
        raise InputError("no axis was given", fix="give at least one axis")
    _refuse_repeats([axis.name for axis in axes], "axis")
    return list(axes)


def check_pairs(pairs: Any) -> list[Pair]:
    """At least one pair, both texts and the prompt readable."""
    if isinstance(pairs, str | Pair) or not hasattr(pairs, "__len__") or not len(pairs):
        raise InputError("no pair was given", fix="give a list with at least one Pair(x, y)")
    for index, pair in enumerate(pairs):
        if not isinstance(pair, Pair):
            raise InputError(f"pair {index} is a {type(pair).__name__}", fix="give Pair(x, y, prompt)")
        for name in ("x", "y", "prompt"):
            _clean(getattr(pair, name), f"pair {index}, {name}")
    return list(pairs)


def check_metadata(metadata: Any, n: int) -> list[Mapping[str, Any]]:
    """One mapping per item; none given: empty ones."""
    if metadata is None:
        return [{}] * n
    if len(metadata) != n:
        raise InputError(f"{len(metadata)} metadata entries for {n} items", fix="give one mapping per item")
    for index, entry in enumerate(metadata):
        if not isinstance(entry, Mapping):
            raise InputError(f"metadata {index} is a {type(entry).__name__}", fix="give mappings")
    return list(metadata)


def check_request(req: ProposeRequest) -> NDArray[np.float64] | None:
    """A request whose samples, scores and number fit together; its scores as an array."""
    if req.style not in ("predicate", "axis", "failure"):
        raise InputError(f"style is {req.style!r}", fix="give 'predicate', 'axis' or 'failure'")
    if not isinstance(req.n, int) or req.n < 1:
        raise InputError(f"n is {req.n!r}", fix="ask for at least one hypothesis")
    if len(req.samples) and isinstance(req.samples[0], Pair):
        check_pairs(req.samples)
    else:
        check_texts(req.samples, "sample")
    if req.scores is None:
        return None
    scores = np.asarray(req.scores, dtype=np.float64)
    if scores.shape != (len(req.samples),):
        raise InputError(
            f"scores of shape {scores.shape} for {len(req.samples)} samples", fix="give one each"
        )
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise InputError(f"score {int(bad[0])} is {scores[bad[0]]}", fix="leave samples without a score out")
    return scores


def _predicate(given: Any, index: int) -> Predicate:
    if isinstance(given, str):
        given = Predicate(given)
    if not isinstance(given, Predicate):
        raise InputError(f"predicate {index} is a {type(given).__name__}", fix="give a str or a Predicate")
    _statement(given.text, f"predicate {index}")
    return given


def _statement(text: Any, where: str) -> None:
    if not _clean(text, where).strip():
        raise InputError("it is blank", where=where, fix="write a statement that can be true of a text")
    if len(text) > LONGEST_PREDICATE:
        raise InputError(
            f"{shorten(text)!r} has {len(text)} characters",
            where=where,
            fix=f"say it in at most {LONGEST_PREDICATE}",
        )


def _clean(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise InputError(f"{shorten(repr(text))} is a {type(text).__name__}", where=where, fix="give a str")
    if "\0" in text:
        raise InputError(f"{shorten(text)!r} holds a NUL character", where=where, fix="remove it")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{shorten(text)!r} holds half a surrogate pair", where=where, fix="decode the text again"
            ) from None
    return text


def _refuse_repeats(names: list[str], what: str) -> None:
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        if name in seen:
            raise InputError(
                f"{what} {index} repeats {what} {seen[name]}: {shorten(name)!r}", fix="give each one once"
            )
        seen[name] = index
