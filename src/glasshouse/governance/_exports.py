"""A card in our formats and, best effort, others: SPDX 3.0 (AI profile), CycloneDX 1.6 (ML-BOM)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glasshouse.governance._card import Card
from glasshouse.governance._errors import CardError
from glasshouse.governance._files import FORMATS, to_json, to_markdown, to_yaml
from glasshouse.governance._lint import did_you_mean, validate
from glasshouse.governance._render import say, to_csv, to_html
from glasshouse.governance._types import card_type


def export(card: Card, form: str, *, readme: str = "", base: Path | None = None) -> str:
    """The card as `form`: json, yaml, md (into `readme`), html, csv, spdx, cyclonedx.

    `base` is where its sources lie, for the lint on the page. Raises CardError for another form.
    """
    if form == "html":
        return to_html(card, lint=validate(card, level=3 if base else 2, base=base))
    if form == "md":
        return to_markdown(card, readme)
    writers = {"json": to_json, "yaml": to_yaml, "csv": to_csv, "spdx": to_spdx, "cyclonedx": to_cyclonedx}
    if form not in writers:
        hint = did_you_mean(form, FORMATS) or f"choose from {', '.join(FORMATS)}"
        raise CardError.of("E-PARSE", f"no format is called {form[:40]!r}", fix=hint)
    return writers[form](card)


def to_spdx(card: Card) -> str:
    """An SPDX 3.0.1 document (JSON-LD) with one AI package; only what the card discloses is said."""
    name = f"urn:glasshouse:card:{card.card_id}"
    created = f"{card.issued or '1970-01-01'}T00:00:00Z"
    info = {
        "type": "CreationInfo", "@id": "_:creation", "specVersion": "3.0.1", "created": created,
        "createdBy": [f"{name}#issuer"],
    }  # fmt: skip
    issuer = {
        "type": "Organization",
        "spdxId": f"{name}#issuer",
        "creationInfo": "_:creation",
        "name": card.issuer or "not said",
    }
    package: dict[str, Any] = {
        "type": "ai_AIPackage", "spdxId": f"{name}#model", "creationInfo": "_:creation",
        "name": card.subject.name, "software_primaryPurpose": "model",
    }  # fmt: skip
    if card.subject.revision:
        package["software_packageVersion"] = card.subject.revision
    package |= _ai_fields(card)
    elements: list[dict[str, Any]] = [info, issuer, package]
    licence = card_type(card.card_type).metadata(card).get("license")
    if licence:
        elements += [
            {"type": "simplelicensing_LicenseExpression", "spdxId": f"{name}#licence",
             "creationInfo": "_:creation", "simplelicensing_licenseExpression": _spdx_licence(card)},
            {"type": "Relationship", "spdxId": f"{name}#declares", "creationInfo": "_:creation",
             "from": f"{name}#model", "relationshipType": "hasDeclaredLicense", "to": [f"{name}#licence"]},
        ]  # fmt: skip
    elements.append({
        "type": "SpdxDocument", "spdxId": name, "creationInfo": "_:creation",
        "rootElement": [f"{name}#model"], "profileConformance": ["core", "software", "ai"],
    })  # fmt: skip
    document = {"@context": "https://spdx.org/rdf/3.0.1/spdx-context.jsonld", "@graph": elements}
    return json.dumps(document, indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def to_cyclonedx(card: Card) -> str:
    """A CycloneDX 1.6 document with one machine-learning model and its model card."""
    component: dict[str, Any] = {
        "type": "machine-learning-model", "bom-ref": card.card_id, "name": card.subject.name,
        "modelCard": {
            "modelParameters": {}, "properties": [
                {"name": f"glasshouse:{card.card_type}{pointer}", "value": say(one.value)[:2_000]}
                for pointer, one in card.fields() if one.value is not None
            ],
        },
    }  # fmt: skip
    if card.subject.revision:
        component["version"] = card.subject.revision
    if card_type(card.card_type).metadata(card).get("license"):
        component["licenses"] = [{"expression": _spdx_licence(card)}]
    if card.subject.base_models:
        component["pedigree"] = {
            "ancestors": [
                {"type": "machine-learning-model", "name": base} for base in card.subject.base_models
            ]
        }
    document = {
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
        "serialNumber": f"urn:uuid:{_uuid(card.card_id)}", "components": [component],
    }  # fmt: skip
    return json.dumps(document, indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def _ai_fields(card: Card) -> dict[str, Any]:
    """Fields of the AI profile that a card's sections speak of."""
    told: dict[str, list[str]] = {"ai_informationAboutTraining": [], "ai_limitation": [], "ai_metric": []}
    for pointer, one in card.fields():
        if one.value is None:
            continue
        line = f"{pointer.strip('/')}: {say(one.value)}"
        if "/evaluation" in pointer or pointer.startswith("/reward_model"):
            told["ai_metric"].append(line)
        elif "risk" in pointer or "failure" in pointer:
            told["ai_limitation"].append(line)
        else:
            told["ai_informationAboutTraining"].append(line)
    found: dict[str, Any] = {}
    for key, lines in told.items():
        if lines and key == "ai_metric":
            found[key] = [
                {"type": "DictionaryEntry", "key": k, "value": v} for k, v in (_pair(line) for line in lines)
            ]
        elif lines:
            found[key] = "\n".join(lines)[:20_000]
    return found


def _pair(line: str) -> tuple[str, str]:
    key, _, value = line.partition(": ")
    return key, value


def _spdx_licence(card: Card) -> str:
    from glasshouse.governance._spdx import normalize_license

    for pointer, one in card.fields():
        licence = getattr(one.value, "license", None)
        if pointer.endswith("/deployment.data.weights") and licence:
            return normalize_license(licence)[0]
    return "NOASSERTION"


def _uuid(card_id: str) -> str:
    import uuid

    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"urn:glasshouse:card:{card_id}"))
