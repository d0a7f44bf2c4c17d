"""What preferences and reward models tell, against known truths and brute force."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import krippendorff
import numpy as np
import pytest

from glasshouse.governance.rlhf_disclosure import (
    Rating,
    as_scorer,
    best_of_n_curve,
    flag_raters,
    from_artifacts,
    measure_preferences,
    measure_reward,
    read_preferences,
)
from glasshouse.governance.rlhf_disclosure.preferences import hashed, length_bias, prompt_overlap
from glasshouse.governance.rlhf_disclosure.reward import calibration_error
from glasshouse.runtime.errors import InputError, RecordError
from glasshouse.studies.governance._raters import INVERTED, SPAMMER, Crowd, flipped, simulate


def test_alpha_is_krippendorffs() -> None:
    """On a crowd with missing ratings, and on one whose items differ in how many they have."""
    for ratings in (simulate(Crowd(items=300), 0), simulate(Crowd(items=200, raters=5, per_item=4), 1)[::3]):
        raters = sorted({one.rater for one in ratings})
        items = {item: i for i, item in enumerate(dict.fromkeys(one.item for one in ratings))}
        table = np.full((len(raters), len(items)), np.nan)
        for one in ratings:
            table[raters.index(one.rater), items[one.item]] = one.label
        theirs = krippendorff.alpha(reliability_data=table, level_of_measurement="nominal")
        assert measure_preferences(ratings).alpha.value == pytest.approx(theirs, abs=1e-9)


def test_planted_raters_are_flagged_and_honest_ones_are_not() -> None:
    flags = {flag.rater: flag for flag in flag_raters(simulate(Crowd(), 3))}
    assert set(flags) == {SPAMMER, INVERTED}
    assert flags[INVERTED].agreement < flags[SPAMMER].agreement
    assert flag_raters(simulate(Crowd(bad=False), 3)) == []


def test_a_rater_who_always_takes_one_side() -> None:
    rows = [Rating(f"p{i}", f"a{i}", f"b{i}", rater="r", first=True) for i in range(40)]
    rows += [Rating(f"p{i}", f"a{i}", f"b{i}", rater="s", first=i % 2 == 0) for i in range(40)]
    assert [(f.rater, f.reason) for f in flag_raters(rows)] == [("r", "always takes one side")]


def test_planted_length_bias() -> None:
    found = length_bias(simulate(Crowd(longer=0.7), 0))
    assert found.low < 0.7 < found.high and found.low > 0.5
    shuffled = length_bias(flipped(1000, 3, 0.5, 0))
    assert shuffled.low < 0.5 < shuffled.high


def test_order_of_rows_changes_nothing() -> None:
    ratings = simulate(Crowd(items=200), 0)
    a, b = measure_preferences(ratings), measure_preferences(ratings[::-1])
    assert a.alpha.value == b.alpha.value and a.longer_preferred.value == b.longer_preferred.value
    assert {f.rater for f in a.flags} == {f.rater for f in b.flags}


def test_what_cannot_be_computed_is_unknown_not_zero(tmp_path: Path) -> None:
    once = [Rating(f"p{i}", "yes", "no") for i in range(5)]
    found = measure_preferences(once)
    assert not found.alpha.defined and not found.raw_agreement.defined and found.n_raters is None
    same = [Rating(f"p{i}", "yes", "no", rater=str(r)) for i in range(5) for r in range(3)]
    assert not measure_preferences(same).alpha.defined, "nobody ever varied"
    path = tmp_path / "p.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": o.prompt, "chosen": o.chosen, "rejected": o.rejected}) + "\n" for o in once
        )
    )
    card = from_artifacts(base=tmp_path, dataset=path)
    assert (
        card.quality.agreement.status == "unknown"
        and "no item was rated twice" in card.quality.agreement.note
    )
    assert card.evaluators.n_raters.status == "unknown" and card.feedback.ties_allowed.status == "unknown"
    assert card.examples.n_items.value == 5


def test_rows_are_read_in_the_usual_forms(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows = [
        {"prompt": "Hi", "chosen": chat, "rejected": [*chat[:1], {"role": "assistant", "content": "No"}]},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: Hex"},
        {"prompt": "Hi", "chosen": "a", "rejected": "b", "label": "tie", "rater_id": 7},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second, third = read_preferences(path)
    assert (first.chosen, first.rejected) == ("Hello", "No")
    assert second.prompt.endswith("Assistant:") and second.chosen == " Hello" and second.rejected == " Hex"
    assert third.tie and third.rater == "7"
    path.write_text('{"prompt": "a", "chosen": "b"}\n')
    with pytest.raises(RecordError, match=r"rows\.jsonl:1 field 'rejected'"):
        read_preferences(path)


def test_personal_rater_ids_are_hashed(tmp_path: Path) -> None:
    assert hashed("r17") == "r17" and hashed("ann@example.org").startswith("rater-")
    assert hashed("Ann Example") == hashed("Ann Example") != hashed("Bob Example")


def test_prompt_overlap_sees_through_case_and_space() -> None:
    assert prompt_overlap(["What is it?", "b"], ["what  IS it?", "c", "What is it?"]) == 1


def test_a_reward_model_is_measured() -> None:
    held_out = [Rating(f"p{i}", "x" * (i + 2), "x" * (i + 1)) for i in range(50)]
    longer = measure_reward(as_scorer(lambda p, r: len(r), name="length"), held_out)
    assert longer.accuracy.value == 1 and longer.length_correlation.value == pytest.approx(1)
    constant = measure_reward(as_scorer(lambda p, r: 0.0, name="none"), held_out[:1] * 9)
    assert constant.accuracy.value == 0, "an equal reward for both is no preference"
    with pytest.raises(InputError, match="not finite"):
        measure_reward(as_scorer(lambda p, r: math.nan, name="nan"), held_out)
    with pytest.raises(InputError, match="no held-out preference"):
        measure_reward(as_scorer(lambda p, r: 0, name="none"), [Rating("p", "a", "a", tie=True)])


def test_calibration_error_by_hand() -> None:
    """Ten gaps of ln 3 (confidence 3/4), seven right: off by 0.05."""
    gaps = [math.log(3)] * 7 + [-math.log(3)] * 3
    assert calibration_error(gaps) == pytest.approx(0.05)


def test_best_of_n_is_the_mean_over_all_subsets() -> None:
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=(3, 6)), rng.normal(size=(3, 6))
    for n in (1, 2, 4):
        brute = [
            np.mean(
                [gold[p][max(s, key=lambda i, p=p: proxy[p][i])] for s in itertools.combinations(range(6), n)]
            )
            for p in range(3)
        ]
        point = best_of_n_curve(proxy, gold, sizes=[n])[0]
        assert point["gold"] == pytest.approx(np.mean(brute)) and point["kl"] == pytest.approx(
            math.log(n) - (n - 1) / n
        )
    whole = best_of_n_curve(proxy, proxy)
    assert [p["proxy"] for p in whole] == sorted(p["proxy"] for p in whole), "the proxy only rises"
