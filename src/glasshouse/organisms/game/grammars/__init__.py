"""The grammars of the game's worlds: they share no question form, no kind of fact and no shape of names."""

from glasshouse.organisms.game.grammars._base import Grammar
from glasshouse.organisms.game.grammars.catalogue import CATALOGUE
from glasshouse.organisms.game.grammars.harbour import HARBOUR
from glasshouse.organisms.game.grammars.village import VILLAGE

__all__ = ["GRAMMARS", "Grammar"]

GRAMMARS: dict[str, Grammar] = {one.name: one for one in (VILLAGE, HARBOUR, CATALOGUE)}
