"""What an RLHF developer should disclose: eleven items in four groups, as typed fields.

After the governance section of arXiv 2307.15217, recalled and in our own words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from glasshouse.governance._card import Card, CardField, Count, Name, Quantity, Share, Strict, Text

Algorithm = Literal["ppo", "dpo", "ipo", "kto", "grpo", "rloo", "reinforce", "best_of_n", "sft", "other"]
FeedbackKind = Literal["comparisons", "scalar", "labels", "corrections", "language", "demonstrations"]
Objective = Literal["bradley_terry", "regression", "classification", "implicit_dpo", "other"]
Statistic = Literal["alpha_nominal", "alpha_ordinal", "kappa", "ac1", "raw_agreement"]


class Agreement(Strict):
    """Agreement of the raters; `marginals` are the shares of the labels (they set agreement by chance)."""

    statistic: Statistic
    estimate: Quantity
    marginals: list[Share] = Field(default_factory=list)


class CurvePoint(Strict):
    """One point of an over-optimisation curve: KL in nats, the proxy's reward, the gold reward."""

    kl: Annotated[float, Field(ge=0)]
    proxy: float
    gold: float


class Pretraining(Strict):
    """A1."""

    base_model: CardField[Name] = CardField[Name]()
    process: CardField[Text] = CardField[Text]()
    data: CardField[Text] = CardField[Text]()
    inherited_biases: CardField[Text] = CardField[Text]()


class Evaluators(Strict):
    """A2. `demographics` is attribute -> group -> percent."""

    n_raters: CardField[Count] = CardField[Count]()
    selection: CardField[Text] = CardField[Text]()
    training_and_instructions: CardField[Text] = CardField[Text]()
    paid: CardField[bool] = CardField[bool]()
    pay: CardField[Quantity] = CardField[Quantity]()
    demographics: CardField[dict[str, dict[str, float]]] = CardField[dict[str, dict[str, float]]]()
    ai_feedback_share: CardField[Share] = CardField[Share]()
    ai_feedback_model: CardField[Name] = CardField[Name]()


class Examples(Strict):
    """A3."""

    sampling: CardField[Text] = CardField[Text]()
    n_items: CardField[Count] = CardField[Count]()
    n_unique_prompts: CardField[Count] = CardField[Count]()
    adversarial_share: CardField[Share] = CardField[Share]()


class Feedback(Strict):
    """A4. `longer_preferred` is P(the longer response is preferred)."""

    kind: CardField[FeedbackKind] = CardField[FeedbackKind]()
    options_per_item: CardField[Count] = CardField[Count]()
    ties_allowed: CardField[bool] = CardField[bool]()
    tie_rate: CardField[Quantity] = CardField[Quantity]()
    longer_preferred: CardField[Quantity] = CardField[Quantity]()


class Quality(Strict):
    """A5."""

    checks: CardField[Text] = CardField[Text]()
    agreement: CardField[Agreement] = CardField[Agreement]()
    ratings_per_item: CardField[Quantity] = CardField[Quantity]()
    max_ratings_per_item: CardField[Count] = CardField[Count]()
    duplicates: CardField[Count] = CardField[Count]()
    flagged_raters: CardField[list[Name]] = CardField[list[Name]]()
    adjudication: CardField[Text] = CardField[Text]()


class RewardModel(Strict):
    """B1. `explicit` is false where the policy is its own reward model, as in DPO."""

    explicit: CardField[bool] = CardField[bool]()
    objective: CardField[Objective] = CardField[Objective]()
    disagreement: CardField[Literal["noise", "majority", "distributional", "none"]] = CardField[
        Literal["noise", "majority", "distributional", "none"]
    ]()
    regularisation: CardField[Text] = CardField[Text]()
    base_model: CardField[Name] = CardField[Name]()
    data_size: CardField[Count] = CardField[Count]()


class RewardEvaluation(Strict):
    """B2; it applies to implicit reward models as well."""

    accuracy: CardField[Quantity] = CardField[Quantity]()
    calibration_error: CardField[Quantity] = CardField[Quantity]()
    length_correlation: CardField[Quantity] = CardField[Quantity]()
    overoptimisation: CardField[list[CurvePoint]] = CardField[list[CurvePoint]]()
    out_of_distribution: CardField[Text] = CardField[Text]()


class PolicyEvaluation(Strict):
    """C1."""

    algorithm: CardField[Algorithm] = CardField[Algorithm]()
    kl_coefficient: CardField[Quantity] = CardField[Quantity]()
    reference_model: CardField[Name] = CardField[Name]()
    final_kl: CardField[Quantity] = CardField[Quantity]()
    learning_rate: CardField[Quantity] = CardField[Quantity]()
    training_rows: CardField[Quantity] = CardField[Quantity]()
    prompt_overlap: CardField[Count] = CardField[Count]()
    evaluations: CardField[Text] = CardField[Text]()
    risky_capabilities: CardField[Text] = CardField[Text]()


class Audits(Strict):
    """D1."""

    external_auditor: CardField[Name] = CardField[Name]()
    access: CardField[Text] = CardField[Text]()
    findings: CardField[Text] = CardField[Text]()
    unresolved: CardField[Text] = CardField[Text]()


class Risks(Strict):
    """D2. `failure_modes` are ids of `problems()`."""

    expected_risks: CardField[Text] = CardField[Text]()
    failure_modes: CardField[list[Name]] = CardField[list[Name]]()
    mitigations: CardField[Text] = CardField[Text]()


class Monitoring(Strict):
    """D3."""

    monitoring: CardField[Text] = CardField[Text]()
    channel: CardField[Text] = CardField[Text]()
    rollback: CardField[Text] = CardField[Text]()
    record: CardField[Text] = CardField[Text]()


class RLHFCard(Card):
    """What was done with human feedback; see the module."""

    SECTIONS: ClassVar[Mapping[str, str]] = {
        "/pretraining/": "A1 Pretraining", "/evaluators/": "A2 Evaluators", "/examples/": "A3 Examples",
        "/feedback/": "A4 Feedback", "/quality/": "A5 Quality", "/reward_model/": "B1 Reward model",
        "/reward_evaluation/": "B2 Reward evaluation", "/policy/": "C1 Policy", "/audits/": "D1 Audits",
        "/risks/": "D2 Risks", "/monitoring/": "D3 Monitoring",
    }  # fmt: skip

    card_type: Literal["rlhf"] = "rlhf"
    pretraining: Pretraining = Pretraining()
    evaluators: Evaluators = Evaluators()
    examples: Examples = Examples()
    feedback: Feedback = Feedback()
    quality: Quality = Quality()
    reward_model: RewardModel = RewardModel()
    reward_evaluation: RewardEvaluation = RewardEvaluation()
    policy: PolicyEvaluation = PolicyEvaluation()
    audits: Audits = Audits()
    risks: Risks = Risks()
    monitoring: Monitoring = Monitoring()


ITEMS = {
    "A1": "/pretraining", "A2": "/evaluators", "A3": "/examples", "A4": "/feedback", "A5": "/quality",
    "B1": "/reward_model", "B2": "/reward_evaluation", "C1": "/policy", "D1": "/audits", "D2": "/risks",
    "D3": "/monitoring",
}  # fmt: skip
UNITS: dict[str, tuple[str, float, float]] = {
    "/feedback/tie_rate": ("share", 0, 1), "/feedback/longer_preferred": ("share", 0, 1),
    "/quality/ratings_per_item": ("ratings", 0, 1e9), "/reward_evaluation/accuracy": ("share", 0, 1),
    "/reward_evaluation/calibration_error": ("share", 0, 1),
    "/reward_evaluation/length_correlation": ("correlation", -1, 1), "/policy/final_kl": ("nats", 0, 1e9),
    "/policy/kl_coefficient": ("coefficient", 0, 1e9), "/policy/learning_rate": ("per step", 0, 1e3),
    "/policy/training_rows": ("rows", 0, 1e15),
}  # fmt: skip
"""Pointer -> the unit a quantity must carry, and its range."""
