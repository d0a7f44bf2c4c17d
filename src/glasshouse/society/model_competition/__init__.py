"""Competition between providers who share a representation: does a better one serve users better?

Model: Jagadeesan, Jordan, Steinhardt, Haghtalab, arXiv 2306.14670. Theory, simulated equilibria with
certificates, representations from poor to rich, and markets of given predictions. Names load when used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glasshouse.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from glasshouse.society.model_competition._result import Equilibrium
    from glasshouse.society.model_competition._users import standardise, with_bias
    from glasshouse.society.model_competition._welfare import WelfareCurve, nonmonotone_test
    from glasshouse.society.model_competition.bayes import bayes_loss
    from glasshouse.society.model_competition.dynamics import equilibrium
    from glasshouse.society.model_competition.encoders import encode
    from glasshouse.society.model_competition.ladder import representation_ladder, welfare_curve
    from glasshouse.society.model_competition.market import CompetitionMarket
    from glasshouse.society.model_competition.predictions import (
        MarketOutcome,
        evaluate,
        from_predictions,
    )
    from glasshouse.society.model_competition.representation import Representation
    from glasshouse.society.model_competition.scenario import CompetitionScenario
    from glasshouse.society.model_competition.theory import (
        closed_form,
        closed_form_unequal,
        expected_social_loss,
        multiclass_equilibria,
        phase_diagram,
        threshold,
    )

_HOMES = {
    "_result": ("Equilibrium",),
    "_users": ("standardise", "with_bias"),
    "_welfare": ("WelfareCurve", "nonmonotone_test"),
    "bayes": ("bayes_loss",),
    "encoders": ("encode",),
    "dynamics": ("equilibrium",),
    "ladder": ("representation_ladder", "welfare_curve"),
    "market": ("CompetitionMarket",),
    "predictions": ("MarketOutcome", "evaluate", "from_predictions"),
    "representation": ("Representation",),
    "scenario": ("CompetitionScenario",),
    "theory": (
        "closed_form",
        "closed_form_unequal",
        "expected_social_loss",
        "multiclass_equilibria",
        "phase_diagram",
        "threshold",
    ),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CompetitionMarket",
    "CompetitionScenario",
    "Equilibrium",
    "MarketOutcome",
    "Representation",
    "WelfareCurve",
    "bayes_loss",
    "closed_form",
    "closed_form_unequal",
    "encode",
    "equilibrium",
    "evaluate",
    "expected_social_loss",
    "from_predictions",
    "multiclass_equilibria",
    "nonmonotone_test",
    "phase_diagram",
    "representation_ladder",
    "standardise",
    "threshold",
    "welfare_curve",
    "with_bias",
]


__getattr__, __dir__ = lazy_names(__name__, _HOME_OF)
