"""Market entry: how many data points a newcomer needs against an incumbent held to a stricter safety limit.

After "Safety vs. Performance: How Multi-Objective Learning Reduces Barriers to Market Entry" (arXiv
2409.03734). Nothing heavy is imported here; each name is loaded when it is first used.
"""

from __future__ import annotations

from glasshouse.runtime.lazy import lazy_names

_HOME = {
    "ASSUMPTIONS": "scenario",
    "EmpiricalEntry": "empirical",
    "EmpiricalMarket": "empirical",
    "EntryMarket": "scenario",
    "EntryResult": "threshold",
    "ErrorCurve": "tables",
    "SimulatedLoss": "monte_carlo",
    "entry_curve": "threshold",
    "entry_exponent": "exponents",
    "entry_gap_curve": "threshold",
    "entry_threshold": "threshold",
    "excess_exponent": "exponents",
    "finite_sample_curve": "curves",
    "fit_exponent": "exponents",
    "gap_exponents": "exponents",
    "loss_curve": "curves",
    "loss_exponent": "exponents",
    "naive_extrapolation": "curves",
    "regime_breaks": "exponents",
    "simulate_loss": "monte_carlo",
}

__all__ = [
    "ASSUMPTIONS",
    "EmpiricalEntry",
    "EmpiricalMarket",
    "EntryMarket",
    "EntryResult",
    "ErrorCurve",
    "SimulatedLoss",
    "entry_curve",
    "entry_exponent",
    "entry_gap_curve",
    "entry_threshold",
    "excess_exponent",
    "finite_sample_curve",
    "fit_exponent",
    "gap_exponents",
    "loss_curve",
    "loss_exponent",
    "naive_extrapolation",
    "regime_breaks",
    "simulate_loss",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME)
