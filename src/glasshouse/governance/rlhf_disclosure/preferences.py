"""What a file of preferences tells about the people behind it: agreement, length bias, odd raters.

A row is one rating: `prompt`, `chosen`, `rejected`, and, where known, `rater_id`. Equal pairs of responses
to a prompt are one item, whoever was preferred. Raters are flagged, never judged: a flag is a reason to look.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glasshouse.governance.rlhf_disclosure.rules import looks_personal
from glasshouse.runtime.errors import RecordError
from glasshouse.statistics.estimate import Estimate

FLAG_LEVEL = 0.005
"""Family-wise level (Holm over the raters of one file) at which a rater is flagged."""
CONSTANT_SHARE = 0.98
LEAST_RATINGS = 20
RESAMPLES = 1000


@dataclass(frozen=True)
class Rating:
    """One rating of one pair. `tie`: neither was preferred; `first`: the chosen was shown first."""

    prompt: str
    chosen: str
    rejected: str
    rater: str | None = None
    tie: bool = False
    first: bool | None = None
    rater_kind: str | None = None
    """'human' or 'model', where the row says it."""
    rater_model: str | None = None
    adversarial: bool | None = None

    @property
    def item(self) -> tuple[str, str, str]:
        """The same for every rating of this pair of responses."""
        a, b = sorted((self.chosen, self.rejected))
        return self.prompt, a, b

    @property
    def label(self) -> int:
        """0 or 1: which of the item's two responses was preferred; 2 for a tie."""
        return 2 if self.tie else int(self.chosen > self.rejected)


@dataclass(frozen=True)
class RaterFlag:
    """Why a rater is worth a look: `reason` is disagreement or constant answers."""

    rater: str
    reason: str
    n: int
    agreement: float
    p_value: float


@dataclass(frozen=True)
class PreferenceReport:
    """Everything measured on a file of preferences; estimates are undefined where the file cannot tell."""

    n_ratings: int
    n_items: int
    n_unique_prompts: int
    n_raters: int | None
    duplicates: int
    ratings_per_item: Estimate
    max_ratings_per_item: int
    tie_rate: Estimate
    longer_preferred: Estimate
    alpha: Estimate
    raw_agreement: Estimate
    marginals: tuple[float, ...]
    flags: tuple[RaterFlag, ...]
    longer_preferred_unflagged: Estimate

    def to_json(self) -> dict[str, Any]:
        """Plain data; estimates as their JSON."""
        return {
            name: value.to_json() if isinstance(value, Estimate)
            else [vars(flag) for flag in value] if name == "flags"
            else list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
        }  # fmt: skip


def read_preferences(path: Path | str) -> list[Rating]:
    """The ratings in JSONL, CSV, TSV, Parquet or a saved data set.

    Responses are texts or lists of turns; without `prompt` the common beginning of both texts is taken. A
    `label` of "tie" (or 0.5) says that neither was preferred; `first` says that the chosen was shown first.
    Raises RecordError naming file, line and field.
    """
    from glasshouse.corpora.formats import raw_rows

    found = [_rating(where, row) for where, row in raw_rows(Path(path))]
    if not found:
        raise RecordError("the file holds no ratings", where=str(path))
    return found


def measure_preferences(ratings: Sequence[Rating], *, seed: int = 0) -> PreferenceReport:
    """Counts, agreement, length bias and flagged raters; intervals draw items, not single ratings."""
    from glasshouse.annotators.agreement import krippendorff_alpha

    items = _by_item(ratings)
    sizes = [len(group) for group in items.values()]
    named = {one.rater for one in ratings if one.rater is not None}
    table = _label_table(items)
    flags = flag_raters(ratings)
    flagged = {flag.rater for flag in flags}
    clean = [one for one in ratings if one.rater not in flagged]
    counts = Counter(one.label for one in ratings)
    several = [group for group in items.values() if len(group) > 1]
    alpha = (
        krippendorff_alpha(table, resamples=RESAMPLES, seed=seed)
        if several
        else Estimate.undefined("no item was rated twice", 0)
    )
    return PreferenceReport(
        len(ratings), len(items), len({one.prompt for one in ratings}), len(named) or None,
        _duplicates(ratings), _mean(sizes, seed), max(sizes),
        _rate([one.tie for one in ratings], ratings, seed),
        length_bias(ratings, seed=seed), alpha, _raw_agreement(several, seed),
        tuple(counts[k] / len(ratings) for k in (0, 1, 2) if counts[k]), tuple(flags),
        length_bias(clean, seed=seed) if flagged else length_bias(ratings, seed=seed),
    )  # fmt: skip


def length_bias(ratings: Sequence[Rating], *, seed: int = 0) -> Estimate:
    """P(the longer response is preferred), ties and equal lengths left out."""
    kept = [one for one in ratings if not one.tie and len(one.chosen) != len(one.rejected)]
    return _rate([len(one.chosen) > len(one.rejected) for one in kept], kept, seed)


def flag_raters(
    ratings: Sequence[Rating], *, level: float = FLAG_LEVEL, corrected: bool = True
) -> list[RaterFlag]:
    """Raters who agree with the others less than the typical rater does, or always answer the same.

    Each rater's agreement with the others on shared items is compared with the median rater's (one-sided z
    over items, Holm over raters, family-wise `level`; not `corrected`: `level` for each). Flags only; fewer
    than 20 shared items say nothing.
    """
    from scipy.special import ndtr

    from glasshouse.statistics import holm

    scores = _agreements(ratings)
    scores = {rater: values for rater, values in scores.items() if len(values) >= LEAST_RATINGS}
    flags = []
    if len(scores) >= 3:
        means = {rater: sum(values) / len(values) for rater, values in scores.items()}
        typical = sorted(means.values())[len(means) // 2]
        p_values = {}
        for rater, values in scores.items():
            mean = means[rater]
            spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
            error = max(spread, 1e-9) / math.sqrt(len(values))
            p_values[rater] = float(ndtr((mean - typical) / error))
        told = list(p_values.values())
        for rater, p in zip(p_values, holm(told) if corrected else told, strict=True):
            if p < level:
                flags.append(RaterFlag(rater, "disagrees", len(scores[rater]), means[rater], p))
    return flags + _constant(ratings, {flag.rater for flag in flags})


def hashed(rater: str) -> str:
    """A rater's id as it may stand in a card: itself, or a hash where it looks like a person."""
    return (
        f"rater-{hashlib.sha256(rater.encode()).hexdigest()[:10]}" if looks_personal(rater) else rater[:300]
    )


def prompt_overlap(train: Iterable[str], held_out: Iterable[str]) -> int:
    """How many distinct held-out prompts are in the training prompts, case and white space aside."""
    return len({_squeezed(text) for text in train} & {_squeezed(text) for text in held_out})


def _rating(where: str, row: Mapping[str, Any]) -> Rating:
    chosen, rejected = (_text(row.get(key), where, key) for key in ("chosen", "rejected"))
    prompt = row.get("prompt", row.get("question"))
    if prompt is None:
        shared = _common(chosen, rejected)
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    else:
        prompt = _text(prompt, where, "prompt", last=False)
    rater = next(
        (row[key] for key in ("rater_id", "annotator_id", "worker", "worker_id") if row.get(key) is not None),
        None,
    )
    label, first = row.get("label"), row.get("first")
    if first is not None and not isinstance(first, bool):
        raise RecordError(f"{first!r} is neither true nor false", where=f"{where} field 'first'")
    tie = label in ("tie", 0.5) or (chosen == rejected)
    kind, adversarial = row.get("rater_kind"), row.get("adversarial")
    if kind not in (None, "human", "model"):
        raise RecordError(f"{kind!r} is neither 'human' nor 'model'", where=f"{where} field 'rater_kind'")
    return Rating(
        prompt, chosen, rejected, None if rater is None else str(rater), tie, first, kind,
        row.get("rater_model"), adversarial if isinstance(adversarial, bool) else None,
    )  # fmt: skip


def _text(value: Any, where: str, key: str, *, last: bool = True) -> str:
    """A text, or the last turn (for a prompt: all turns) of a list of turns."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        turns = [str(turn.get("content", "")) for turn in value]
        return turns[-1] if last else "\n".join(turns)
    raise RecordError(
        "there is no text", where=f"{where} field {key!r}", fix="give a text or a list of turns"
    )


def _common(a: str, b: str) -> int:
    """Length of the common beginning, cut back to the last turn that both share."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    turn = a.rfind("\n\nAssistant:", 0, n)
    return turn + len("\n\nAssistant:") if turn >= 0 else n


def _by_item(ratings: Sequence[Rating]) -> dict[tuple[str, str, str], list[Rating]]:
    items: dict[tuple[str, str, str], list[Rating]] = defaultdict(list)
    for one in ratings:
        items[one.item].append(one)
    return items


def _label_table(items: Mapping[Any, Sequence[Rating]]) -> list[list[int | None]]:
    """Labels [items, most ratings of one]; who gave them does not matter to alpha."""
    width = max(2, *(len(group) for group in items.values()))
    return [[one.label for one in group] + [None] * (width - len(group)) for group in items.values()]


def _raw_agreement(several: Sequence[Sequence[Rating]], seed: int) -> Estimate:
    if not several:
        return Estimate.undefined("no item was rated twice", 0)
    return _mean([_pairs_agreeing([one.label for one in group]) for group in several], seed)


def _pairs_agreeing(labels: Sequence[int]) -> float:
    counts, n = Counter(labels), len(labels)
    return sum(c * (c - 1) for c in counts.values()) / (n * (n - 1))


def _agreements(ratings: Sequence[Rating]) -> dict[str, list[float]]:
    """Rater -> for each shared item, the share of the others who agree."""
    scores: dict[str, list[float]] = defaultdict(list)
    for group in _by_item([one for one in ratings if one.rater is not None]).values():
        counts = Counter(one.label for one in group)
        if len(group) > 1:
            for one in group:
                scores[str(one.rater)].append((counts[one.label] - 1) / (len(group) - 1))
    return scores


def _constant(ratings: Sequence[Rating], known: set[str]) -> list[RaterFlag]:
    """Raters who nearly always take the response on the same side."""
    from scipy.special import bdtrc

    sides: dict[str, list[bool]] = defaultdict(list)
    for one in ratings:
        if one.rater is not None and one.first is not None:
            sides[one.rater].append(one.first)
    flags = []
    for rater, values in sides.items():
        most = max(sum(values), len(values) - sum(values))
        if rater not in known and len(values) >= LEAST_RATINGS and most / len(values) >= CONSTANT_SHARE:
            p = 2 * float(bdtrc(most - 1, len(values), 0.5))
            flags.append(RaterFlag(rater, "always takes one side", len(values), most / len(values), p))
    return flags


def _duplicates(ratings: Sequence[Rating]) -> int:
    """Ratings that repeat an earlier one: same item, same rater, same answer."""
    return len(ratings) - len({(one.item, one.rater, one.label) for one in ratings}) if ratings else 0


def _mean(values: Sequence[float], seed: int) -> Estimate:
    from glasshouse.statistics import bootstrap

    return bootstrap([float(v) for v in values], resamples=RESAMPLES, seed=seed)


def _rate(hits: Sequence[bool], ratings: Sequence[Rating], seed: int) -> Estimate:
    from glasshouse.statistics import bootstrap

    if not hits:
        return Estimate.undefined("no rating says", 0)
    clusters = [one.item for one in ratings]
    return bootstrap([float(hit) for hit in hits], clusters=clusters, resamples=RESAMPLES, seed=seed)


def _squeezed(text: str) -> str:
    return " ".join(text.lower().split())
