"""The statistics of the reversal curse on made-up answers with known truth, and the table of a corpus."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp, ttest_1samp, ttest_ind

from glasshouse.behaviour.reversal_curse.analysis import analyse
from glasshouse.behaviour.reversal_curse.asking import marked, rank_of, word_f1
from glasshouse.behaviour.reversal_curse.cells import accuracy_by_entity, entity_gaps
from glasshouse.behaviour.reversal_curse.directions import DirectionTable, audit_corpus
from glasshouse.behaviour.reversal_curse.retriever import retrieve
from glasshouse.corpora.reversal import ReversalData
from glasshouse.corpora.rows import Record
from glasshouse.runtime.errors import InputError


def answers(
    *, n: int = 30, templates: int = 4, gap: float = 0.0, spread: float = 0.3, same: float = 1.0,
    reverse: float = 0.0, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Answers in which the reverse gap of entity i is drawn from N(gap, spread), templates adding noise."""
    stream = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for group, other in (("p2d", "d2p"), ("d2p", "p2d")):
        for arm, direction, mean, right in (("same", group, 10.0, same), ("reverse", other, gap, reverse)):
            for entity in range(n):
                own = mean + spread * stream.standard_normal()
                hit = float(entity < round(right * n))
                for t in range(templates):
                    base = -12 + stream.standard_normal()
                    pair = f"{arm}/{group}{entity}/{direction}/{t}"
                    shared = {
                        "pair_id": pair, "arm": arm, "group": group, "direction": direction,
                        "entity_id": f"{group}{entity}", "template_id": str(t), "prompt": "q", "answer": "a",
                        "completion": "a", "reply": "a" if hit else "b", "access": "logprob", "f1": hit,
                        "rank": 1.0, "above": 1.0,
                    }  # fmt: skip
                    noise = 0.1 * stream.standard_normal()
                    rows.append({**shared, "id": f"{pair}/true", "kind": "true", "correct": hit,
                                 "logprob": base + own + noise})  # fmt: skip
                    rows.append({**shared, "id": f"{pair}/random", "kind": "random", "correct": 0.0,
                                 "logprob": base})  # fmt: skip
    return pd.DataFrame(rows)


def test_no_gap_is_the_curse_and_a_gap_is_not() -> None:
    assert set(analyse(answers()).verdicts.values()) == {"reversal curse"}
    assert set(analyse(answers(gap=2.0, reverse=0.5)).verdicts.values()) == {"knows the reverse"}
    # Entities that differ by 3 nats show neither half a nat nor its absence.
    assert set(analyse(answers(spread=3.0)).verdicts.values()) == {"undecided"}
    assert set(analyse(answers(spread=3.0), margin=3.0).verdicts.values()) == {"reversal curse"}


def test_equivalence_is_claimed_for_a_true_gap_at_the_margin_in_at_most_5_percent() -> None:
    """The null of TOST: a gap of exactly the margin. 30 tests; 6 or more false claims have p < 0.01."""
    claimed = 0
    for seed in range(15):
        verdicts = analyse(answers(gap=0.5, n=12, templates=1, seed=seed)).verdicts.values()
        claimed += sum(v == "reversal curse" for v in verdicts)
    assert claimed <= 5


def test_nothing_is_said_of_the_reverse_where_nothing_was_learned() -> None:
    report = analyse(answers(same=0.4))
    assert set(report.verdicts.values()) == {"not learned"}
    assert "0.40" in report.why["p2d"]


def test_few_entities_cannot_show_an_absence() -> None:
    report = analyse(answers(n=9))
    assert set(report.verdicts.values()) == {"too few entities"}
    assert "smallest gap" in report.why["p2d"]
    assert set(analyse(answers(n=10)).verdicts.values()) == {"reversal curse"}


def test_a_model_of_another_format_is_flagged() -> None:
    frame = answers(same=0.0)
    frame = frame.assign(arm="both", group="both", entity_id=frame["entity_id"] + "x")
    report = analyse(
        pd.concat([answers(), frame.assign(pair_id="b" + frame["pair_id"], id="b" + frame["id"])])
    )
    assert report.format_works is False
    assert "format" in str(report)
    assert analyse(answers()).format_works is None


def test_more_templates_are_not_more_facts() -> None:
    few, many = (analyse(answers(templates=t)).cell("p2d", "d2p") for t in (2, 40))
    assert few.gap.n == many.gap.n == 30
    width = [c.gap.high - c.gap.low for c in (few, many)]
    assert width[1] > 0.7 * width[0]  # rows taken as independent would shrink it to 0.22


def test_the_tests_are_those_of_scipy() -> None:
    frame = answers(gap=0.1)
    cell = analyse(frame).cell("p2d", "d2p")
    rows = frame[(frame["group"] == "p2d") & (frame["arm"] == "reverse")]
    true, random = (rows[rows["kind"] == kind]["logprob"].to_numpy() for kind in ("true", "random"))
    assert cell.two_sample_p == pytest.approx(ttest_ind(true, random).pvalue)
    assert cell.ks_p == pytest.approx(ks_2samp(true, random).pvalue)
    means = (
        rows[rows["kind"] == "true"].groupby("entity_id")["logprob"].mean()
        - rows[rows["kind"] == "random"].groupby("entity_id")["logprob"].mean()
    )  # fmt: skip
    assert cell.paired_p == pytest.approx(ttest_1samp(means, 0.0).pvalue)
    assert entity_gaps(rows) == pytest.approx(means.to_dict())
    assert cell.gap.value == pytest.approx(means.mean())


def test_all_wrong_is_not_certainty() -> None:
    rows = answers(n=20)
    reverse = rows[(rows["arm"] == "reverse") & (rows["kind"] == "true") & (rows["group"] == "p2d")]
    rate = accuracy_by_entity(reverse)
    assert (rate.value, rate.n) == (0.0, 20)
    assert rate.high == pytest.approx(1 - 0.025 ** (1 / 20))  # exact over 20 entities, not 80 rows
    assert not accuracy_by_entity(reverse.assign(correct=float("nan"))).defined


def test_two_models_are_pooled_with_entities_apart() -> None:
    report = analyse([answers(seed=1), answers(seed=2)])
    assert report.cell("p2d", "d2p").entities == 60


def test_empty_replies_are_not_wrong_ones() -> None:
    frame = answers()
    empty = (frame["arm"] == "same") & (frame["template_id"] == "0")
    report = analyse(
        frame.assign(correct=frame["correct"].where(~empty), reply=frame["reply"].where(~empty, ""))
    )
    cell = report.cell("p2d", "p2d")
    assert cell.accuracy.value == 1.0
    assert cell.accuracy.n == 90
    assert cell.empty.value == pytest.approx(0.25)


def test_frames_that_cannot_be_analysed() -> None:
    frame = answers(n=10)
    with pytest.raises(InputError, match="'logprob'"):
        analyse(frame.drop(columns=["logprob"]))
    lone = frame.drop(frame[frame["kind"] == "random"].index[:1])
    with pytest.raises(InputError, match="lacks its random partner"):
        analyse(lone)
    with pytest.raises(InputError, match="no rows"):
        analyse(frame.iloc[:0])
    with pytest.raises(InputError, match="margin"):
        analyse(frame, margin=0.0)


@pytest.mark.parametrize(
    ("reply", "completion", "right", "f1"),
    [
        ("Uriah Hawthorne now enjoys", " uriah hawthorne", 1.0, 1.0),
        ("  the   Bronze lamp", " The bronze lamp", 1.0, 1.0),
        ("Hawthorne Uriah", " Uriah Hawthorne", 0.0, 1.0),
        ("Uriah Hawthornes", " Uriah Hawthorne", 1.0, 0.5),
        ("the lamp", " the bronze lamp", 0.0, 0.8),
        ("nobody", " Uriah Hawthorne", 0.0, 0.0),
    ],
)
def test_marking(reply: str, completion: str, right: float, f1: float) -> None:
    assert marked(reply, completion) == right
    assert word_f1(reply, completion) == pytest.approx(f1)


def test_an_empty_reply_has_no_mark() -> None:
    assert math.isnan(marked("  ", " x"))
    assert math.isnan(word_f1("", " x"))


def test_ranks_against_counting() -> None:
    stream = np.random.default_rng(0)
    for _ in range(20):
        others = stream.integers(0, 5, size=7).astype(float)
        true = float(stream.integers(0, 5))
        rank, above = rank_of(true, others.tolist())
        beaten = sum(o < true for o in others) + 0.5 * sum(o == true for o in others)
        assert above == pytest.approx(beaten / 7)
        assert rank == pytest.approx(1 + 7 - beaten)
    assert rank_of(0.0, [])[0] == 1.0


# -- the table of a corpus -----------------------------------------------------------------------------------


def test_orders_are_counted_as_by_hand() -> None:
    docs = [
        "Ada Moss built the glass loom. Later the glass loom made ADA MOSS rich.",  # A B B A: one each
        "the Glass-Loom came from ada moss",
        "Ada Mossley saw a glass loom",  # not the name
        "nothing here",
    ]
    (pair,) = audit_corpus(docs, [("Ada Moss", "glass loom")]).pairs
    assert (pair.a_before_b, pair.b_before_a, pair.texts) == (1, 2, 2)
    assert pair.at_risk is None


def test_counts_agree_with_a_direct_search() -> None:
    stream = np.random.default_rng(0)
    docs = [" ".join(stream.choice(list("abcdef"), size=12)) for _ in range(60)]
    table = audit_corpus(docs, [("a b", "c"), ("d", "e f"), ("a", "f")])
    for pair in table.pairs:
        expected = [0, 0]
        for doc in docs:
            words, last = doc.split(), None
            a, b = pair.a.split(), pair.b.split()
            for i in range(len(words)):
                for side, wanted in (("a", a), ("b", b)):
                    if words[i : i + len(wanted)] == wanted:
                        if last and last != side:
                            expected[0 if side == "b" else 1] += 1
                        last = side
        assert [pair.a_before_b, pair.b_before_a] == expected


def test_the_facts_at_risk_are_those_told_in_one_order(tmp_path: Path) -> None:
    data = ReversalData.generate(n_per_group=5)
    table = audit_corpus(data.records(), [(e.name, e.description) for e in data.entities])
    risk = {(p.a, p.at_risk) for p in table.at_risk()}
    expected = {"p2d": "B->A", "d2p": "A->B"}
    assert risk == {(e.name, expected[e.group]) for e in data.entities if e.group != "both"}
    assert DirectionTable.load(table.save(tmp_path / "table.json")) == table
    assert list(table.to_frame()["at_risk"].isna()) == [e.group == "both" for e in data.entities]
    assert len(table.plot().data[0].x) == 15
    assert "<td>" in table._repr_html_()
    with pytest.raises(InputError, match="no direction table"):
        DirectionTable.load(tmp_path / "none.json")


def test_window_and_bad_pairs() -> None:
    docs = [Record("0", text="ada one two three loom")]
    assert audit_corpus(docs, [("ada", "loom")], window=3).pairs[0].a_before_b == 1
    assert audit_corpus(docs, [("ada", "loom")], window=2).pairs[0].a_before_b == 0
    with pytest.raises(InputError, match="no word"):
        audit_corpus(docs, [("...", "loom")])
    with pytest.raises(InputError, match="no pairs"):
        audit_corpus(docs, [])
    with pytest.raises(InputError, match="window"):
        audit_corpus(docs, [("ada", "loom")], window=-1)


def test_retrieval_follows_rare_words_and_admits_ties() -> None:
    texts = ["the zarg was made by ann", "the plim was made by bob", "the plim was made by cid"]
    assert retrieve(["who made the zarg"], texts, ["ann", "bob", "cid"]) == ["ann"]
    assert retrieve(["who made the plim", "xyz"], texts, ["ann", "bob", "cid"]) == [None, None]
    with pytest.raises(InputError, match="candidates"):
        retrieve(["x"], texts, [])
