"""Which open problem does my experiment address, what exists for it, and where are the gaps?

    from glasshouse.governance.foundational_challenges import gaps, load_map, plan

    challenges = load_map()
    gaps(challenges)                                   # what nothing here addresses
    plan(challenges, access=["text"], budget=3)        # what to run with an API model
    Search(challenges).search("backdoor trigger")      # by words, and by meaning with an encoder

After arXiv 2404.09932; the questions are written for this project, not the paper's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glasshouse.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from glasshouse.governance.foundational_challenges.challenge_map import (
        ChallengeMap,
        Evidence,
        export,
        load_map,
    )
    from glasshouse.governance.foundational_challenges.classify import Classifier, Guess
    from glasshouse.governance.foundational_challenges.planning import (
        Cover,
        Gap,
        betweenness,
        cover,
        coverage,
        gaps,
        plan,
        suggest_links,
    )
    from glasshouse.governance.foundational_challenges.search import Bm25, Hit, Search
    from glasshouse.governance.foundational_challenges.taxonomy import ChallengesCard, safety_case

_HOME = {
    "Bm25": "search",
    "ChallengeMap": "challenge_map",
    "ChallengesCard": "taxonomy",
    "Classifier": "classify",
    "Cover": "planning",
    "Evidence": "challenge_map",
    "Gap": "planning",
    "Guess": "classify",
    "Hit": "search",
    "Search": "search",
    "betweenness": "planning",
    "cover": "planning",
    "coverage": "planning",
    "export": "challenge_map",
    "gaps": "planning",
    "load_map": "challenge_map",
    "plan": "planning",
    "safety_case": "taxonomy",
    "suggest_links": "planning",
}

__all__ = [
    "Bm25",
    "ChallengeMap",
    "ChallengesCard",
    "Classifier",
    "Cover",
    "Evidence",
    "Gap",
    "Guess",
    "Hit",
    "Search",
    "betweenness",
    "cover",
    "coverage",
    "export",
    "gaps",
    "load_map",
    "plan",
    "safety_case",
    "suggest_links",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME)
