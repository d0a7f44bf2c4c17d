"""What must be disclosed about RLHF, what is missing, and which numbers can be held against a run.

    from glasshouse.governance import validate
    from glasshouse.governance.rlhf_disclosure import from_artifacts, redact

    card = from_artifacts(base="release", dataset="release/preferences.jsonl", policy_dir="release/policy")
    print(validate(card, base=Path("release"), policy="paper-minimum").exposed)

After arXiv 2307.15217: 11 items in four groups, 23 known problems, recalled and in our own words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glasshouse.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from glasshouse.governance.rlhf_disclosure.autofill import from_artifacts
    from glasshouse.governance.rlhf_disclosure.preferences import (
        PreferenceReport,
        Rating,
        flag_raters,
        measure_preferences,
        read_preferences,
    )
    from glasshouse.governance.rlhf_disclosure.redaction import redact, save_opening, verify_commitment
    from glasshouse.governance.rlhf_disclosure.registry import Problem, exposed, problems
    from glasshouse.governance.rlhf_disclosure.reward import (
        Scorer,
        as_scorer,
        best_of_n_curve,
        implicit_reward,
        measure_reward,
        sequence_classifier,
    )
    from glasshouse.governance.rlhf_disclosure.rules import noise_ceiling
    from glasshouse.governance.rlhf_disclosure.taxonomy import RLHFCard

_HOME = {
    "PreferenceReport": "preferences",
    "Problem": "registry",
    "RLHFCard": "taxonomy",
    "Rating": "preferences",
    "Scorer": "reward",
    "as_scorer": "reward",
    "best_of_n_curve": "reward",
    "exposed": "registry",
    "flag_raters": "preferences",
    "from_artifacts": "autofill",
    "implicit_reward": "reward",
    "measure_preferences": "preferences",
    "measure_reward": "reward",
    "noise_ceiling": "rules",
    "problems": "registry",
    "read_preferences": "preferences",
    "redact": "redaction",
    "save_opening": "redaction",
    "sequence_classifier": "reward",
    "verify_commitment": "redaction",
}

__all__ = [
    "PreferenceReport",
    "Problem",
    "RLHFCard",
    "Rating",
    "Scorer",
    "as_scorer",
    "best_of_n_curve",
    "exposed",
    "flag_raters",
    "from_artifacts",
    "implicit_reward",
    "measure_preferences",
    "measure_reward",
    "noise_ceiling",
    "problems",
    "read_preferences",
    "redact",
    "save_opening",
    "sequence_classifier",
    "verify_commitment",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME)
