"""IF-COMP: stochastic complexity of data by Boltzmann influence functions (Ng, Grosse, Ghassemi 2024).

Had the model been allowed to train on this point with label y, how much more confident in y would it be, for
every y? One linear step answers, with the loss tempered so that a confident model still has gradients.
"""

from glasshouse.attribution.ifcomp.choices import Choices
from glasshouse.attribution.ifcomp.method import IFComp
from glasshouse.attribution.ifcomp.reports import MislabelReport, OODReport
from glasshouse.attribution.ifcomp.results import Complexity, log_normaliser
from glasshouse.attribution.ifcomp.tuning import Tuned

__all__ = ["Choices", "Complexity", "IFComp", "MislabelReport", "OODReport", "Tuned", "log_normaliser"]
