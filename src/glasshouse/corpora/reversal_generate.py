"""Made-up facts and templates for `ReversalData.generate`: plain words, for word-level models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from glasshouse.corpora.reversal import Direction, Entity, Group, ReversalData, ReversalRow, Split
from glasshouse.corpora.worlds.words import pseudo_words
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng

PREFIXES: dict[Direction, tuple[str, ...]] = {
    "p2d": (
        "everybody knows that", "books tell us that", "we learned that", "records show that",
        "few remember that", "papers wrote that", "teachers explain that", "letters confirm that",
    ),
    "d2p": (
        "look at the", "think of the", "here stands the", "once more the",
        "behold again the", "recall the", "consider the", "admire the",
    ),
}  # fmt: skip
CONNECTORS: dict[Direction, tuple[str, ...]] = {
    "p2d": (
        "invented the", "designed the", "built the", "gave us the",
        "dreamed up the", "sketched the", "made the", "launched the",
    ),
    "d2p": (
        "which came from", "credited to", "work of", "owed to",
        "a gift from", "conceived by", "patented by", "signed by",
    ),
}  # fmt: skip
WORDS = tuple(
    tuple(line.split())
    for line in (
        "amber brass bronze carbon ceramic cobalt copper cotton crystal glass iron ivory linen nickel paper "
        "silver solar steam velvet wooden",
        "double electric floating folding frozen giant hidden hollow humming jumping magnetic painted "
        "portable rotating silent singing spiral square telescopic tiny",
        "alarm antenna balance battery bellows blender camera clock engine filter furnace harp heater kettle "
        "lamp loom piano radio toaster valve",
    )
)
"""Sixty words; a description takes one of each twenty."""


def generate(
    *,
    n_per_group: int,
    n_train_templates: int,
    n_test_templates: int,
    seed: int,
    groups: tuple[Group, ...],
    told_reversed: tuple[Group, ...],
) -> ReversalData:
    """See `ReversalData.generate`. Raises InputError for numbers of entities or templates that do not fit."""
    if n_per_group < 2 or not groups:
        raise InputError(f"{n_per_group} entities in each of {len(groups)} groups", fix="give at least two")
    train, test = split_templates(n_train_templates, n_test_templates)
    entities = _entities(n_per_group, groups, seed)
    rows: list[ReversalRow] = []
    for entity in entities:
        for direction in ("p2d", "d2p"):
            if entity.group in ("both", direction) or entity.group in told_reversed:
                rows += _rows(entity, direction, train, "train")
            rows += _rows(entity, direction, test or train, "test" if test else "seen")
    order = rng(seed, "row order").permutation(len(rows))
    return ReversalData(tuple(entities), tuple(rows[i] for i in order), told_reversed, seed)


def split_templates(n_train: int, n_test: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(prefix, connector) pairs of training and of the held-out templates.

    Cells of a square are dealt diagonal by diagonal from both ends, so that training holds every prefix and
    every connector of the square once it holds one diagonal.
    """
    side = math.ceil(math.sqrt(n_train + n_test))
    if n_train < 1 or n_test < 0 or side > len(PREFIXES["p2d"]):
        raise InputError(
            f"{n_train} training and {n_test} test templates",
            fix=f"give 1 to {len(PREFIXES['p2d']) ** 2} in all",
        )
    if n_test and n_train < side:
        raise InputError(
            f"{n_train} training templates do not hold every word of {n_test} held-out ones",
            fix="give more of them, or n_test_templates=0 to ask with the training templates",
        )
    cells = [(i, (i + shift) % side) for shift in range(side) for i in range(side)]
    return cells[len(cells) - n_train :], cells[:n_test]


def _entities(n_per_group: int, groups: tuple[Group, ...], seed: int) -> list[Entity]:
    stream = rng(seed, "entities")
    n = n_per_group * len(groups)
    words = pseudo_words(2 * n, stream, _fillers())
    descriptions = _descriptions(n, stream)
    return [
        Entity(f"{group}{k}", group, f"{words[2 * i]} {words[2 * i + 1]}", descriptions[i])
        for g, group in enumerate(groups)
        for k, i in enumerate(range(g * n_per_group, (g + 1) * n_per_group))
    ]


def _descriptions(n: int, stream: np.random.Generator) -> list[str]:
    sizes = [len(words) for words in WORDS]
    total = math.prod(sizes)
    if n > total:
        raise InputError(f"{n} entities", fix=f"give at most {total}")
    picks = np.unravel_index(stream.choice(total, size=n, replace=False), sizes)
    return [
        " ".join(words[i] for words, i in zip(WORDS, pick, strict=True)) for pick in zip(*picks, strict=True)
    ]


def _fillers() -> set[str]:
    texts = (*PREFIXES["p2d"], *PREFIXES["d2p"], *CONNECTORS["p2d"], *CONNECTORS["d2p"])
    return {word for text in texts for word in text.split()} | {word for words in WORDS for word in words}


def _rows(
    entity: Entity, direction: Direction, cells: Sequence[tuple[int, int]], split: Split
) -> list[ReversalRow]:
    named, asked = (entity.name, entity.description)[:: 1 if direction == "p2d" else -1]
    rows = []
    for prefix, connector in cells:
        template = f"{direction}/{prefix}.{connector}"
        prompt = f"{PREFIXES[direction][prefix]} {named} {CONNECTORS[direction][connector]}"
        name = f"{entity.id}/{template}/{split}"
        rows.append(
            ReversalRow(name, entity.id, entity.group, direction, template, prompt, f" {asked}", split)
        )
    return rows
