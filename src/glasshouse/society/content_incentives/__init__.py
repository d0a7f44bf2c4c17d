"""Content incentives: the quality that a platform's learning rule induces from strategic producers.

After "Incentivizing High-Quality Content in Online Recommender Systems" (arXiv 2306.07479). Nothing heavy is
imported here; each name is loaded when it is first used.
"""

from __future__ import annotations

from glasshouse.runtime.lazy import lazy_names

_HOME = {
    "ASSUMPTIONS": "scenario",
    "ContentEquilibrium": "equilibria",
    "ContentMarket": "scenario",
    "Platform": "logs",
    "RuleAudit": "logs",
    "best_response": "responses",
    "break_even": "theory",
    "certify": "equilibria",
    "compare_algorithms": "sweeps",
    "direction_welfare": "theory",
    "examine_rule": "logs",
    "exp3_exposures": "exp3",
    "exposures": "platforms",
    "fit_eta": "logs",
    "optimal_criteria": "theory",
    "punish_threshold": "theory",
    "regret": "platforms",
    "solve": "equilibria",
    "steady_quality": "theory",
    "sweep_eta": "sweeps",
    "sweep_horizon": "sweeps",
    "switch_angle": "theory",
    "symmetric_foc": "theory",
    "tabulate": "costs",
    "upper_bound": "theory",
    "utilities": "platforms",
    "welfare": "platforms",
}

__all__ = [
    "ASSUMPTIONS",
    "ContentEquilibrium",
    "ContentMarket",
    "Platform",
    "RuleAudit",
    "best_response",
    "break_even",
    "certify",
    "compare_algorithms",
    "direction_welfare",
    "examine_rule",
    "exp3_exposures",
    "exposures",
    "fit_eta",
    "optimal_criteria",
    "punish_threshold",
    "regret",
    "solve",
    "steady_quality",
    "sweep_eta",
    "sweep_horizon",
    "switch_angle",
    "symmetric_foc",
    "tabulate",
    "upper_bound",
    "utilities",
    "welfare",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME)
