"""The auditing game: grow flawed and clean organisms, audit them blind, grade from what was planted.

    from glasshouse.audit.game import play

    result = play(organisms=4, seed=0, level="easy", processes=2)
    result.regimes["weights+data"]["flaw_recall"]      # an Estimate
    result.to_frame()                                  # one row per organism, regime and flaw

The audit sees model, rows and suite as its access allows, never `truth.json`; the grader opens that file once
every finding is on disk. `growing` and `auditing` do one organism each and are cached, so that a killed game
resumes; `grading` and `scores` turn findings into numbers; `baselines` are what ours must beat.
"""

from __future__ import annotations

from glasshouse.runtime.lazy import lazy_names

__all__ = ["REGIMES", "Entrant", "GameResult", "entrants", "grow_all", "play"]

_HOME = {
    "REGIMES": "regimes",
    "Entrant": "growing",
    "GameResult": "result",
    "entrants": "growing",
    "grow_all": "growing",
    "play": "playing",
}

__getattr__, __dir__ = lazy_names(__name__, _HOME)
