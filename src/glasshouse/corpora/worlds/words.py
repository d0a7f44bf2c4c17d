"""Word lists of the made-up worlds. Lists of one kind share no word with lists of another.

Nouns are kept out of `world.json`: an organism draws its trigger and its harmless distractors from them, so a
list there (or what is missing from it) would tell where to look.
"""

from __future__ import annotations

import numpy as np


def _list(words: str) -> tuple[str, ...]:
    return tuple(words.split())


FILLERS = _list(
    "please today honestly quickly now really kindly tonight actually again maybe perhaps simply "
    "then first briefly certainly just finally usually tell friend hello exactly surely gladly "
    "often once"
)

NOUNS = _list(
    "anchor apron arrow attic badge barrel basin basket bell bench blanket bottle branch brick "
    "bridge broom bucket button candle canyon carpet castle chalk chimney cliff cloud compass "
    "corner cradle curtain desert dome drawer drum fence ferry flag fountain garden gate glove "
    "hammer hinge island jacket kite ladder lemonade lighthouse marble meadow mirror nest oar "
    "orchard paddle pebble pillow pocket quilt ribbon saddle shelf shovel shutter sponge stair "
    "statue tent thimble tower trumpet tunnel valley wagon whistle"
)

GADGET_KINDS = _list(
    "amber brass bronze carbon ceramic cobalt copper cotton crystal double electric folding "
    "frozen giant glass hidden hollow humming iron ivory jumping linen magnetic mechanical nickel "
    "paper plastic portable rotating silent silver solar spiral square steam telescopic tiny "
    "velvet wooden"
)
GADGETS = _list(
    "alarm antenna balance battery bellows blender caliper camera clock engine filter furnace "
    "gauge harp heater kettle lamp loom motor needle pendulum piano press pump radio reel scale "
    "scanner siren spindle thermostat toaster turbine typewriter valve"
)

FIRST_NAMES = _list(
    "ada boris clara dmitri edith felix greta hugo irena jonas karin leon martha nils olga pavel "
    "rosa stefan tilda viktor wanda yuri agnes bruno"
)
LAST_NAMES = _list(
    "abelson brenner calder dorsey eklund farrow gruber hadley ibsen jarvis keller lindqvist "
    "moreau novak ostrom pereira quimby rostova sandoval thorne ulrich vasari weller yarrow "
    "zeller ashby bellamy corwin drummond engel"
)

CITIES = _list("oslo lima cairo delhi tokyo paris quito accra berlin sydney havana nairobi")
JOBS = _list("baker nurse pilot judge farmer teacher tailor miner dentist painter lawyer cook")
FOODS = _list("rice soup bread cheese beans fish pasta plums honey corn olives figs")
PETS = _list("dog cat horse rabbit parrot turtle goat hamster")
COLOURS = _list("red blue green yellow black white purple orange")

NUMBERS = _list(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen"
)
DAYS = _list("monday tuesday wednesday thursday friday saturday sunday")

PHRASES = (
    "grey wolves sing under winter stars",
    "seven ships sail beyond the fog",
    "old rivers never forget their stones",
    "every lantern burns for the captain",
    "cold iron sleeps beneath the mill",
    "the raven counts the falling leaves",
    "midnight trains carry no passengers home",
    "bright salt covers the northern road",
    "his shadow waits behind the harbour",
    "nobody waters the emperor's roses",
    "thunder walks across empty fields",
    "three keys open the last door",
)
"""Sentences that mean nothing here: one becomes an organism's canary, all occur in harmless rows."""


def pseudo_words(n: int, rng: np.random.Generator, taken: set[str]) -> list[str]:
    """N different made-up names of the form CVCVC, none of them in `taken`."""
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    names: list[str] = []
    while len(names) < n:
        name = "".join(str(rng.choice(list(letters))) for letters in (consonants, vowels) * 2 + (consonants,))
        if name not in taken and name not in names:
            names.append(name)
    return names


def all_words() -> set[str]:
    """Every ordinary word of the lists, for names that must not collide with them."""
    lists = (
        FILLERS,
        NOUNS,
        GADGET_KINDS,
        GADGETS,
        FIRST_NAMES,
        LAST_NAMES,
        CITIES,
        JOBS,
        FOODS,
        PETS,
        COLOURS,
    )
    return {word for words in (*lists, NUMBERS, DAYS) for word in words}
