"""One complete, valid RLHF card with its files, and forty ways to spoil it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glasshouse.runtime import files
from glasshouse.runtime.runs import Run

Card = dict[str, Any]
URL = {"kind": "url", "ref": "https://example.org/report"}


def fact(value: Any, *sources: dict[str, Any]) -> dict[str, Any]:
    return {
        "value": value,
        "status": "disclosed",
        "verified": "self_reported",
        "sources": list(sources) or [URL],
    }


def share(
    value: float, low: float | None = None, high: float | None = None, unit: str = "share"
) -> dict[str, Any]:
    ends = {} if low is None else {"low": low, "high": high}
    return {"value": value, "unit": unit, "n": 1000, **ends}


def release(root: Path) -> Card:
    """The files under `root` that the card cites, and the card."""
    files.write_text(root / "report.txt", "accuracy 0.70\n")
    with Run.open(root / "runs", "measure", {"what": "reward"}) as run:
        run.step("accuracy", lambda: {"value": 0.7, "low": 0.67, "high": 0.73, "level": 0.95, "n": 1000})
        run.finish()
    from glasshouse.governance import file_source, run_source

    report = file_source(root / "report.txt", base=root).model_dump(mode="json", exclude_defaults=True)
    measured = run_source(run.path, base=root, metric="accuracy").model_dump(
        mode="json", exclude_defaults=True
    )
    words = "told in the report at length"
    return {
        "schema_version": 1,
        "card_type": "rlhf",
        "issued": "2025-05-01",
        "issuer": "Example Lab",
        "subject": {"name": "example-chat", "revision": "a" * 40, "base_models": ["example-base"]},
        "pretraining": {
            "base_model": fact("example-base"),
            "process": fact(words),
            "data": fact("web text to 2023"),
            "inherited_biases": fact(words),
        },
        "evaluators": {
            "n_raters": fact(40),
            "selection": fact(words),
            "training_and_instructions": fact(words),
            "paid": fact(True),
            "pay": fact(share(18.0, unit="EUR per hour")),
            "demographics": fact({"region": {"Europe": 60.0, "elsewhere": 40.0}}),
            "ai_feedback_share": fact(0.25),
            "ai_feedback_model": fact("example-critic"),
        },
        "examples": {
            "sampling": fact(words),
            "n_items": fact(5000),
            "n_unique_prompts": fact(4000),
            "adversarial_share": fact(0.1),
        },
        "feedback": {
            "kind": fact("comparisons"),
            "options_per_item": fact(2),
            "ties_allowed": fact(True),
            "tie_rate": fact(share(0.05)),
            "longer_preferred": fact(share(0.56, 0.54, 0.58)),
        },
        "quality": {
            "checks": fact(words),
            "max_ratings_per_item": fact(3),
            "duplicates": fact(2),
            "agreement": fact(
                {"statistic": "raw_agreement", "estimate": share(0.68, 0.66, 0.7), "marginals": [0.5, 0.5]}
            ),
            "ratings_per_item": fact(share(2.5, unit="ratings")),
            "flagged_raters": fact(["r17"]),
            "adjudication": fact(words),
        },
        "reward_model": {
            "explicit": fact(True),
            "objective": fact("bradley_terry"),
            "disagreement": fact("noise"),
            "regularisation": fact(words),
            "base_model": fact("example-base"),
            "data_size": fact(12000),
        },
        "reward_evaluation": {
            "accuracy": fact(share(0.7, 0.67, 0.73), measured),
            "calibration_error": fact(share(0.04), report),
            "length_correlation": fact(share(0.2, unit="correlation")),
            "overoptimisation": fact(
                [{"kl": 0.0, "proxy": 0.0, "gold": 0.0}, {"kl": 2.0, "proxy": 1.0, "gold": 0.6}]
            ),
            "out_of_distribution": fact(words),
        },
        "policy": {
            "algorithm": fact("ppo"),
            "kl_coefficient": fact(share(0.05, unit="coefficient")),
            "reference_model": fact("example-base"),
            "final_kl": fact(share(9.0, unit="nats")),
            "learning_rate": fact(share(1e-5, unit="per step")),
            "training_rows": fact(share(12000.0, unit="rows")),
            "prompt_overlap": fact(0),
            "evaluations": fact(words),
            "risky_capabilities": fact(words),
        },
        "audits": {
            "external_auditor": fact("Other Institute"),
            "access": fact("weights"),
            "findings": fact(words),
            "unresolved": fact(words),
        },
        "risks": {
            "expected_risks": fact(words),
            "failure_modes": fact(["RM-4", "PO-2"]),
            "mitigations": fact(words),
        },
        "monitoring": {
            "monitoring": fact(words),
            "channel": fact("incidents@example.org"),
            "rollback": fact(words),
            "record": fact(words),
        },
    }


def at(card: Card, pointer: str) -> tuple[Any, Any]:
    steps = pointer.split("/")[1:]
    node: Any = card
    for step in steps[:-1]:
        node = node[int(step)] if isinstance(node, list) else node[step]
    return node, (int(steps[-1]) if isinstance(node, list) else steps[-1])


def put(pointer: str, value: Any) -> Callable[[Card], None]:
    def act(card: Card) -> None:
        node, key = at(card, pointer)
        node[key] = value

    return act


def drop(pointer: str) -> Callable[[Card], None]:
    def act(card: Card) -> None:
        node, key = at(card, pointer)
        del node[key]

    return act


def both(*acts: Callable[[Card], None]) -> Callable[[Card], None]:
    def act(card: Card) -> None:
        for one in acts:
            one(card)

    return act


UNKNOWN = {"status": "unknown"}
DEFECTS: list[tuple[str, str, str, Callable[[Card], None]]] = [
    # name, code, pointer, what is done
    ("no type", "E-TYPE-CARD", "/card_type", drop("/card_type")),
    ("no subject", "E-MISSING", "/subject", drop("/subject")),
    ("no name", "E-MISSING", "/subject/name", drop("/subject/name")),
    ("unknown section", "E-UNKNOWN-KEY", "/rewardmodel", put("/rewardmodel", {})),
    ("unknown field", "E-UNKNOWN-KEY", "/policy/algoritm", put("/policy/algoritm", fact("ppo"))),
    ("number as text", "E-TYPE", "/evaluators/n_raters/value", put("/evaluators/n_raters/value", "about 40")),
    ("quantity as text", "E-TYPE", "/policy/final_kl/value", put("/policy/final_kl/value", "9 nats")),
    ("boolean as text", "E-TYPE", "/evaluators/paid/value", put("/evaluators/paid/value", "yes")),
    ("list as text", "E-TYPE", "/risks/failure_modes/value", put("/risks/failure_modes/value", "RM-4")),
    ("no such algorithm", "E-CHOICE", "/policy/algorithm/value", put("/policy/algorithm/value", "pp0")),
    ("no such status", "E-CHOICE", "/pretraining/data/status", put("/pretraining/data/status", "open")),
    (
        "percent for share",
        "E-RANGE",
        "/examples/adversarial_share/value",
        put("/examples/adversarial_share/value", 10),
    ),
    ("negative count", "E-RANGE", "/examples/n_items/value", put("/examples/n_items/value", -1)),
    ("bad revision", "E-FORMAT", "/subject/revision", put("/subject/revision", "main")),
    (
        "bad hash",
        "E-FORMAT",
        "/reward_evaluation/calibration_error/sources/0/sha256",
        put("/reward_evaluation/calibration_error/sources/0/sha256", "abc"),
    ),
    ("bad date form", "E-FORMAT", "/issued", put("/issued", "1 May 2025")),
    ("future date", "E-DATE", "/issued", put("/issued", "2999-01-01")),
    ("no such day", "E-DATE", "/issued", put("/issued", "2025-02-30")),
    (
        "long quote",
        "E-LENGTH",
        "/pretraining/data/sources/0/quote",
        put("/pretraining/data/sources/0", {**URL, "quote": "x" * 301}),
    ),
    ("filler", "E-FILLER", "/pretraining/process/value", put("/pretraining/process/value", "TBD")),
    (
        "value of the unknown",
        "E-STATUS",
        "/pretraining/process",
        put("/pretraining/process/status", "unknown"),
    ),
    (
        "disclosed nothing",
        "E-STATUS",
        "/pretraining/process",
        put("/pretraining/process", {"status": "disclosed", "sources": [URL]}),
    ),
    (
        "interval excludes value",
        "E-INTERVAL",
        "/feedback/longer_preferred/value",
        put("/feedback/longer_preferred/value", share(0.5, 0.54, 0.58)),
    ),
    ("wrong unit", "E-UNIT", "/policy/final_kl/value/unit", put("/policy/final_kl/value/unit", "bits")),
    (
        "percent quantity",
        "E-RANGE",
        "/feedback/tie_rate/value/value",
        put("/feedback/tie_rate/value", share(5.0)),
    ),
    (
        "comparisons by regression",
        "E-LOSS-TYPE",
        "/reward_model/objective/value",
        put("/reward_model/objective/value", "regression"),
    ),
    (
        "agreement above one",
        "E-AGREEMENT",
        "/quality/agreement/value/estimate/value",
        put("/quality/agreement/value", {"statistic": "kappa", "estimate": share(1.2), "marginals": []}),
    ),
    (
        "agreement below chance",
        "E-AGREEMENT",
        "/quality/agreement/value/estimate/value",
        put(
            "/quality/agreement/value",
            {"statistic": "raw_agreement", "estimate": share(0.6), "marginals": [0.9, 0.1]},
        ),
    ),
    (
        "fewer raters than ratings",
        "E-RATERS",
        "/evaluators/n_raters/value",
        put("/evaluators/n_raters/value", 2),
    ),
    (
        "worse than a coin",
        "E-RM-ACCURACY",
        "/reward_evaluation/accuracy/value/value",
        put("/reward_evaluation/accuracy", fact(share(0.45, 0.42, 0.48))),
    ),
    (
        "above the ceiling",
        "E-CEILING",
        "/reward_evaluation/accuracy/value/value",
        put("/reward_evaluation/accuracy", fact(share(0.83, 0.81, 0.85))),
    ),
    ("explicit DPO", "E-IMPLICIT-RM", "/reward_model/explicit", put("/policy/algorithm/value", "dpo")),
    ("KL from nowhere", "E-KL-REFERENCE", "/policy/reference_model", put("/policy/reference_model", UNKNOWN)),
    (
        "contamination",
        "E-CONTAMINATION",
        "/policy/prompt_overlap/value",
        put("/policy/prompt_overlap/value", 3),
    ),
    (
        "own auditor",
        "E-AUDITOR",
        "/audits/external_auditor/value",
        put("/audits/external_auditor/value", "example lab"),
    ),
    (
        "demographics",
        "E-DEMOGRAPHICS",
        "/evaluators/demographics/value",
        put("/evaluators/demographics/value", {"region": {"Europe": 60.0, "elsewhere": 20.0}}),
    ),
    ("no channel", "E-MONITORING", "/monitoring/channel", put("/monitoring/channel", UNKNOWN)),
    (
        "a rater's address",
        "E-PII",
        "/quality/flagged_raters/value/0",
        put("/quality/flagged_raters/value", ["ann@example.org"]),
    ),
    (
        "stale hash",
        "E-SRC-HASH",
        "/reward_evaluation/calibration_error/sources/0/sha256",
        put("/reward_evaluation/calibration_error/sources/0/sha256", "0" * 64),
    ),
    (
        "source outside",
        "E-SRC-PATH",
        "/reward_evaluation/calibration_error/sources/0/ref",
        put("/reward_evaluation/calibration_error/sources/0/ref", "../../etc/passwd"),
    ),
]


def spoiled(card: Card, act: Callable[[Card], None]) -> Card:
    found = copy.deepcopy(card)
    act(found)
    return found
