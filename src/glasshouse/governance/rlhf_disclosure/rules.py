"""What a card may not say about one pipeline at once; each contradiction has its code."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from glasshouse.governance._card import CardField, Quantity
from glasshouse.governance._lint import Context, Issue, did_you_mean
from glasshouse.governance.rlhf_disclosure.registry import problems
from glasshouse.governance.rlhf_disclosure.taxonomy import UNITS, Agreement, RLHFCard

CEILING_MARGIN = 0.01
"""A reward model's accuracy may exceed the estimated ceiling by this much: the ceiling is an estimate too."""
_MAIL = re.compile(r"[^@\s]+@[^@\s]+\.[a-zA-Z]{2,}")
_FULL_NAME = re.compile(r"[A-Z][a-z]+(?: [A-Z][a-z'-]+)+")
_PHONE = re.compile(r"\+?\d[\d ()-]{7,}\d")


def check(card: RLHFCard, context: Context) -> Iterator[Issue]:
    """Every L2 issue of an RLHF card."""
    yield from _units(card)
    yield from _feedback(card)
    yield from _agreement(card)
    yield from _reward(card)
    yield from _policy(card)
    yield from _governance(card)


def looks_personal(rater: str) -> bool:
    """Whether a rater's id looks like an address, a telephone number or a full name."""
    return bool(_MAIL.search(rater) or _FULL_NAME.fullmatch(rater.strip()) or _PHONE.fullmatch(rater.strip()))


def agreement_of_two(agreement: Agreement) -> float | None:
    """P(two raters give the same label): as stated, or from a chance-corrected number and the marginals."""
    value = agreement.estimate.value
    if agreement.statistic == "raw_agreement":
        return value
    if agreement.statistic in ("alpha_nominal", "kappa") and agreement.marginals:
        chance = sum(share * share for share in agreement.marginals)
        return value * (1 - chance) + chance
    return None


def noise_ceiling(p_agree: float) -> float | None:
    """The best accuracy any model can reach against one rater's labels, from the agreement of two raters.

    With symmetric noise of rate f two raters agree with p = (1 - f)^2 + f^2, so 1 - f = (1 + sqrt(2p - 1))/2.
    None below agreement one half, where no such f exists.

    >>> round(noise_ceiling(0.68), 3)
    0.8
    """
    return (1 + math.sqrt(2 * p_agree - 1)) / 2 if 0.5 <= p_agree <= 1 else None


def _units(card: RLHFCard) -> Iterator[Issue]:
    for pointer, one in card.fields():
        if pointer not in UNITS or not isinstance(one.value, Quantity):
            continue
        unit, low, high = UNITS[pointer]
        if one.value.unit != unit:
            told = f"{one.value.unit!r} where {unit!r} is due"
            yield Issue("E-UNIT", f"{pointer}/value/unit", told, "convert the number, then state the unit")
        elif not low <= one.value.value <= high:
            hint = f"{one.value.value / 100:g} if you mean {one.value.value:g} %" if unit == "share" else ""
            told = f"{one.value.value:g} is no {unit} between {low:g} and {high:g}"
            yield Issue("E-RANGE", f"{pointer}/value/value", told, hint)


def _feedback(card: RLHFCard) -> Iterator[Issue]:
    people, quality = card.evaluators, card.quality
    n, most = people.n_raters.value, quality.max_ratings_per_item.value
    if n is not None and most is not None and n < most:
        yield Issue("E-RATERS", "/evaluators/n_raters/value", f"{n} raters, and {most} ratings of one item")
    if people.paid.value and people.pay.status == "unknown":
        yield Issue("W-PAY", "/evaluators/pay", "raters are paid, and how much is unknown")
    for attribute, groups in (people.demographics.value or {}).items():
        total = sum(groups.values())
        if not 99 <= total <= 101 or min(groups.values(), default=0) < 0:
            told = f"the groups of {attribute!r} sum to {total:g} percent"
            yield Issue("E-DEMOGRAPHICS", "/evaluators/demographics/value", told, "add a group for the rest")
    for index, rater in enumerate(quality.flagged_raters.value or []):
        if looks_personal(rater):
            place = f"/quality/flagged_raters/value/{index}"
            yield Issue("E-PII", place, "the id looks like a name or an address", "hash the ids")
    kind, objective = card.feedback.kind.value, card.reward_model.objective.value
    if kind == "comparisons" and objective in ("regression", "classification"):
        told = f"comparisons cannot train a reward model by {objective}"
        yield Issue("E-LOSS-TYPE", "/reward_model/objective/value", told)
    if kind == "scalar" and objective in ("bradley_terry", "implicit_dpo"):
        yield Issue("E-LOSS-TYPE", "/reward_model/objective/value", f"{objective} needs comparisons")


def _agreement(card: RLHFCard) -> Iterator[Issue]:
    found = card.quality.agreement.value
    if found is None:
        return
    place, value = "/quality/agreement/value", found.estimate.value
    if found.statistic == "raw_agreement":
        chance = sum(share * share for share in found.marginals)
        if not 0 <= value <= 1:
            yield Issue("E-AGREEMENT", f"{place}/estimate/value", f"{value:g} is no share")
        elif found.marginals and value < chance:
            told = f"{value:g} is below {chance:.3f}, what the label shares give by chance"
            yield Issue("E-AGREEMENT", f"{place}/estimate/value", told)
    elif not -1 <= value <= 1:
        yield Issue("E-AGREEMENT", f"{place}/estimate/value", f"{value:g} is outside [-1, 1]")
    if found.marginals and abs(sum(found.marginals) - 1) > 0.01:
        yield Issue("E-AGREEMENT", f"{place}/marginals", "the label shares do not sum to 1")


def _reward(card: RLHFCard) -> Iterator[Issue]:
    accuracy = card.reward_evaluation.accuracy.value
    place = "/reward_evaluation/accuracy/value/value"
    if accuracy is not None and 0 <= accuracy.value < 0.5 and not _reaches_half(accuracy):
        yield Issue("E-RM-ACCURACY", place, f"{accuracy.value:g} is worse than a coin", "is the sign right?")
    agreement = card.quality.agreement.value
    p_agree = agreement_of_two(agreement) if agreement is not None else None
    ceiling = noise_ceiling(p_agree) if p_agree is not None else None
    if accuracy is not None and ceiling is not None and accuracy.value - ceiling > CEILING_MARGIN:
        told = f"{accuracy.value:.3f}, and raters who agree {p_agree:.3f} of the time allow {ceiling:.3f}"
        yield Issue("E-CEILING", place, told, "tested on its training data, or on adjudicated labels?")
    if card.policy.algorithm.value in ("dpo", "ipo"):
        described = any(one.status == "disclosed" for _, one in _section(card, "/reward_model/"))
        if described and card.reward_model.explicit.value is not False:
            told = f"{card.policy.algorithm.value} has no explicit reward model"
            yield Issue("E-IMPLICIT-RM", "/reward_model/explicit", told, "say explicit: false")


def _reaches_half(accuracy: Quantity) -> bool:
    """Whether the stated interval allows a coin's accuracy: few pairs show nothing worse."""
    return accuracy.high is not None and accuracy.high >= 0.5


def _policy(card: RLHFCard) -> Iterator[Issue]:
    policy = card.policy
    stated = policy.kl_coefficient.value or policy.final_kl.value
    if stated is not None and policy.reference_model.status != "disclosed":
        yield Issue("E-KL-REFERENCE", "/policy/reference_model", "a KL is stated, and not from which model")
    overlap = policy.prompt_overlap.value
    if overlap:
        told = f"{overlap} prompts of the evaluation are in the training data"
        yield Issue("E-CONTAMINATION", "/policy/prompt_overlap/value", told, "evaluate on other prompts")


def _governance(card: RLHFCard) -> Iterator[Issue]:
    auditor = card.audits.external_auditor.value
    if auditor is not None and card.issuer and auditor.strip().casefold() == card.issuer.strip().casefold():
        yield Issue("E-AUDITOR", "/audits/external_auditor/value", "the issuer audits itself")
    watching = (
        card.monitoring.monitoring.status == "disclosed" or card.monitoring.rollback.status == "disclosed"
    )
    if watching and card.monitoring.channel.status != "disclosed":
        told = "monitoring is claimed, and nobody can report anything"
        yield Issue("E-MONITORING", "/monitoring/channel", told, "disclose the channel")
    known = problems()
    for index, mode in enumerate(card.risks.failure_modes.value or []):
        if mode not in known and not mode.startswith("X-"):
            hint = did_you_mean(mode, known) or "see `problems()`; own ids start with X-"
            yield Issue(
                "E-CHOICE", f"/risks/failure_modes/value/{index}", f"there is no problem {mode!r}", hint
            )


def _section(card: RLHFCard, prefix: str) -> Iterator[tuple[str, CardField[Any]]]:
    return ((pointer, one) for pointer, one in card.fields() if pointer.startswith(prefix))
