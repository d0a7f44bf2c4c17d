"""An openness card from a model's folder: what its files show, nothing more."""

from __future__ import annotations

from typing import Any

from glasshouse.governance._card import CardField, Source, disclosed
from glasshouse.governance._errors import CardError
from glasshouse.governance._hub import HubFolder
from glasshouse.governance._spdx import hub_license, license_of_text, normalize_license, parse_expression
from glasshouse.governance.openness.licences import license_points
from glasshouse.governance.openness.taxonomy import COMPONENTS, WEIGHTS, OpennessCard, band_to_level


def prefill(folder: HubFolder) -> OpennessCard:
    """Weights that lie in the folder are public here, graded by the stated licence; all else is unknown.

    Code, data and evaluations are not in such a folder: whether they are open, its files cannot tell.
    """
    cells: dict[str, Any] = {name: CardField[Any]().model_dump(exclude_defaults=True) for name in COMPONENTS}
    weights = _weights(folder)
    if weights is not None:
        cells[WEIGHTS] = weights
    subject = folder.subject().model_dump(mode="json", exclude_defaults=True)
    card: OpennessCard = OpennessCard.parse(
        {"card_type": "openness", "subject": subject, "components": cells}
    )
    return card


def metadata(card: OpennessCard) -> dict[str, Any]:
    """Hub keys that the card determines: the licence of the weights, the base models."""
    found: dict[str, Any] = {}
    value = card.cell(WEIGHTS).value
    if value is not None and value.license is not None:
        try:
            name, own = hub_license(str(parse_expression(normalize_license(value.license)[0])))
        except CardError:
            name, own = "other", None
        found["license"] = name
        if own is not None:
            found["license_name"] = own
        if value.license_link:
            found["license_link"] = value.license_link
    if card.subject.base_models:
        bases = list(card.subject.base_models)
        found["base_model"] = bases[0] if len(bases) == 1 else bases
    return found


def _weights(folder: HubFolder) -> dict[str, Any] | None:
    if folder.weights is None:
        return None
    held = Source(kind="file", ref=folder.weights.files[0], quote="")
    dtypes = ", ".join(f"{dtype} {count:,}" for dtype, count in folder.weights.dtypes.items())
    told = f"{folder.weights.parameters:,} parameters ({dtypes}), read from headers"
    licence, sources = _licence(folder)
    access = (
        "gated" if "extra_gated_prompt" in folder.front or "extra_gated_fields" in folder.front else "public"
    )
    level = None
    if licence is not None:
        points = license_points(licence)
        level = band_to_level("data", points.points, access)
    if level is None:
        # Public weights without a licence we know: the level is not determined.
        why = f"stated licence: {licence}" if licence else "no licence is stated"
        return {"status": "unknown", "note": f"{told}; {why}"}
    value: dict[str, Any] = {"level": level, "license": licence, "access": access}
    link = folder.front.get("license_link")
    if isinstance(link, str) and link:
        value["license_link"] = link[:2_000]
    field = disclosed(value, *sources, held, note=told)
    plain: dict[str, Any] = field.model_dump(mode="json", exclude_defaults=True)
    return plain


def _licence(folder: HubFolder) -> tuple[str | None, list[Source]]:
    """The stated licence as SPDX with its sources; the front matter says it, or else a text we know."""
    sources = [folder.source(name) for name in folder.licenses]
    stated = folder.front.get("license")
    if isinstance(stated, list) and len(stated) == 1:
        stated = stated[0]
    if isinstance(stated, str) and stated.strip():
        named = folder.front.get("license_name")
        text = named if stated.strip().lower() == "other" and isinstance(named, str) and named else stated
        return normalize_license(text[:400])[0], [folder.said("license"), *sources]
    for name, text in folder.licenses.items():
        found = license_of_text(text)
        if found is not None:
            return found, [folder.source(name)]
    return None, sources
