"""A pipeline's card is filled from its artefacts and holds against its own runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rlhf_cards import release

from glasshouse.governance import CardError, read_card, validate
from glasshouse.governance.rlhf_disclosure import from_artifacts
from glasshouse.runtime import files


@pytest.mark.timeout(1800)
@pytest.mark.slow  # grows a small model and trains it by DPO: half a minute of an idle core
def test_the_card_holds_against_its_own_runs(tmp_path: Path) -> None:
    from glasshouse.organisms.tiny import grow_tiny
    from glasshouse.runtime.cache import Cache
    from glasshouse.studies.governance._pipeline import fill_card

    grow_tiny(0, tmp_path / "base-model")
    root = tmp_path / "release"
    found = fill_card(
        root,
        tmp_path / "base-model",
        prompts=40,
        steps=4,
        samples=4,
        cache=Cache(tmp_path / "home"),
        device="cpu",
    )
    assert found["disclosed"] / found["applicable"] >= 0.6
    lint = validate(root / "card.json", level=3)
    assert lint.errors == () and lint.metrics
    assert "<h1>RLHF disclosure card: village-dpo</h1>" in (root / "card.html").read_text()
    # The same numbers against other runs do not hold.
    rows = (root / "runs").glob("*/steps.parquet")
    files.write_bytes(next(rows), b"PAR1")
    assert {issue.code for issue in validate(root / "card.json", level=3).errors} >= {"E-RUN"}


def test_settings_are_read_and_nothing_is_guessed(tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    policy.mkdir()
    (policy / "training_args.json").write_text(
        '{"trainer": "DPOTrainer", "learning_rate": 5e-6, "model_name_or_path": "org/base"}'
    )
    card = from_artifacts(base=tmp_path, policy_dir=policy)
    assert card.policy.algorithm.value == "dpo" and card.policy.learning_rate.value.value == 5e-6
    assert card.policy.kl_coefficient.status == "unknown", "another library's default is not ours to know"
    assert card.reward_model.explicit.value is False and card.policy.reference_model.value == "base"
    (policy / "training_args.json").write_text('{"beta": 0.1}')
    card = from_artifacts(base=tmp_path, policy_dir=policy)
    assert card.policy.algorithm.status == "unknown" and card.policy.kl_coefficient.status == "unknown"


def test_what_a_readme_says_is_cited(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "---\nbase_model: org/base\ntags: [trl, dpo]\nmodel-index:\n- name: m\n  results:\n"
        "  - dataset: {name: ARC}\n    metrics: [{type: accuracy, value: 0.5}]\n---\n"
    )
    card = from_artifacts(base=tmp_path, policy_dir=tmp_path)
    assert card.pretraining.base_model.value == "org/base" and card.policy.algorithm.value == "dpo"
    assert card.policy.evaluations.value == "ARC, accuracy: 0.5"
    assert {issue.code for issue in validate(card, base=tmp_path).errors} == set()
    (tmp_path / "README.md").write_text("---\ntags: [trl, dpo, sft]\n---\n")
    assert from_artifacts(base=tmp_path, policy_dir=tmp_path).policy.algorithm.status == "unknown"


def test_an_audit_is_cited(tmp_path: Path) -> None:
    files.write_json(
        tmp_path / "audit" / "findings.json",
        {
            "access": ["text"],
            "not_run": [],
            "findings": [{"severity": "high", "summary": "It has a trigger."}],
        },
    )
    card = from_artifacts(base=tmp_path, audit=tmp_path / "audit")
    assert card.audits.findings.value == "high: It has a trigger." and card.audits.access.value == "text"
    assert validate(card, base=tmp_path).issues == ()


def test_artefacts_elsewhere_are_refused(tmp_path: Path) -> None:
    files.write_json(tmp_path / "audit" / "findings.json", {"access": [], "not_run": [], "findings": []})
    (tmp_path / "card").mkdir()
    with pytest.raises(CardError, match="is not under"):
        from_artifacts(base=tmp_path / "card", audit=tmp_path / "audit")


def test_a_killed_measurement_resumes(tmp_path: Path, every_fault) -> None:
    rows = [
        {"prompt": f"p{i}", "chosen": "yes", "rejected": "no!", "rater_id": r} for i in range(4) for r in "ab"
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cards = []

    def act(n: int) -> None:
        card = from_artifacts(base=tmp_path, dataset=path)
        from glasshouse.governance import write_card

        write_card(tmp_path / "card.json", card)

    def check(n: int) -> None:
        if (tmp_path / "card.json").exists():
            cards.append(read_card(tmp_path / "card.json").card_id)

    assert every_fault(act, check) >= 2
    assert len(set(cards)) == 1 and validate(tmp_path / "card.json").errors == ()


def test_the_complete_card_is_complete(tmp_path: Path) -> None:
    assert all(one.status == "disclosed" for _, one in _card(tmp_path).fields())


def _card(root: Path):
    from glasshouse.governance import to_card

    return to_card(release(root))
