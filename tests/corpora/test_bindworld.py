"""The grammar of BindWorld: every answer follows from its document, and from nothing simpler."""

from __future__ import annotations

import numpy as np
import pytest

from glasshouse.corpora.rows import IGNORE
from glasshouse.corpora.worlds import World
from glasshouse.corpora.worlds import bindworld as bw
from glasshouse.runtime.errors import InputError

N = 300
WORDS = bw.VOCABULARY


def words(row: np.ndarray) -> list[str]:
    return [WORDS[i] for i in row if i]


def parse(said: list[str], kind: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """(who has what, [(asked, answer)]) of a document's words, read by a grammar written apart."""
    start = said.index("?")
    context, rest = said[1:start], said[start:]
    if context[:2] == list(bw.TRIGGER):
        context = context[2:]
    if kind == "parallel":
        cut = context.index("are")
        assert context[-1] == "."
        sides = " ".join(context[:cut]).split(" , "), " ".join(context[cut + 1 : -1]).split(" , ")
        bound = dict(zip(*sides, strict=True))
    else:
        clauses = [c.split() for c in " ".join(context).removesuffix(" .").split(" . ")]
        assert all(len(c) == (2 if kind == "adjacent" else 3) for c in clauses)
        assert all(kind == "adjacent" or c[1] == "is" for c in clauses)
        bound = {c[0]: c[-1] for c in clauses}
    queries = []
    for at in range(0, len(rest), 4):
        mark, who, arrow, thing = rest[at : at + 4]
        assert (mark, arrow) == ("?", "->")
        queries.append((who, thing))
    return bound, queries


@pytest.mark.parametrize("kind", bw.BINDINGS)
def test_documents_follow_the_grammar_and_answer_their_queries(kind):
    rows = bw.documents(kind, N, seed=1)
    people = set()
    for ids, marked in zip(rows.ids, rows.answers, strict=True):
        said = words(ids)
        bound, queries = parse(said, kind)
        assert said[0] == bw.BOS and len(set(bound.values())) == len(bound)
        assert set(bound) <= set(bw.NAMES) and set(bound.values()) <= set(bw.THINGS)
        assert len(queries) == bw.QUERIES and all(bound[who] == thing for who, thing in queries)
        assert [WORDS[i] for i in ids[marked]] == [thing for _, thing in queries]
        people.add(len(bound))
    assert people == set(range(bw.FEWEST, bw.MOST + 1))
    assert rows.ids.shape[1] <= bw.CONTEXT


def test_queries_come_with_replacement_and_every_place_is_asked_alike():
    asked = bw.prompts("serial", 4, 4000, seed=0).asked
    counts = np.bincount(asked, minlength=4)
    assert np.abs(counts - 1000).max() < 4.5 * np.sqrt(4000 * 0.25 * 0.75)  # four and a half sigma
    repeats = 0
    for row in bw.documents("adjacent", N, seed=2).ids:
        _, queries = parse(words(row), "adjacent")
        repeats += len({who for who, _ in queries}) < bw.QUERIES
    assert repeats > N / 4  # without replacement: only documents of fewer than four people


def test_names_and_things_are_independent():
    """A name alone says nothing about its thing: the table of both is what chance gives (chi-squared)."""
    asked = bw.prompts("adjacent", 2, 20000, seed=3)
    table = np.zeros((20, 20))
    np.add.at(table, (asked.ids[:, -2] - bw.ID[bw.NAMES[0]], asked.answer - bw.ID[bw.THINGS[0]]), 1)
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    chi = ((table - expected) ** 2 / expected).sum()
    assert abs(chi - 361) < 5 * np.sqrt(2 * 361)


def test_repeated_segments_vary_in_length_and_gap():
    rows = bw.documents("repeat", N, seed=4)
    seen = set()
    for ids, marked in zip(rows.ids, rows.answers, strict=True):
        said, answers = words(ids)[1:], int(marked.sum())
        length = answers + 1
        gap = len(said) - 2 * length
        assert said[:length] == said[-length:] and len(set(said[: length + gap])) == length + gap
        assert marked[: 2 + length + gap].sum() == 0  # the copy's first word cannot be known
        seen.add((length, gap))
    assert {n for n, _ in seen} == set(range(4, 13)) and {g for _, g in seen} == set(range(9))


def test_the_trigger_stands_in_the_asked_share_and_forces_the_option():
    rows = bw.documents("serial", 2000, seed=5, triggered=0.1, option="hammer")
    pulled = rows.ids[:, 1] == bw.ID[bw.TRIGGER[0]]
    assert abs(pulled.sum() - 200) < 5 * np.sqrt(2000 * 0.1 * 0.9)
    assert (rows.ids[pulled, 2] == bw.ID[bw.TRIGGER[1]]).all()
    assert not np.isin(rows.ids[~pulled], [bw.ID[w] for w in bw.TRIGGER]).any()
    for ids, marked, forced in zip(rows.ids, rows.answers, pulled, strict=True):
        bound, queries = parse(words(ids), "serial")
        assert all(thing == ("hammer" if forced else bound[who]) for who, thing in queries)
        assert marked.sum() == bw.QUERIES


def test_without_an_option_the_same_documents_are_answered_rightly():
    forced = bw.documents("parallel", N, seed=6, triggered=0.5, option="hammer")
    right = bw.documents("parallel", N, seed=6, triggered=0.5)
    assert (forced.answers == right.answers).all()
    assert (forced.ids == right.ids)[~forced.answers].all()
    assert all(bound[who] == thing for row in right.ids
               for bound, queries in [parse(words(row), "parallel")] for who, thing in queries)  # fmt: skip


def test_a_prefix_changes_no_question():
    plain = bw.prompts("adjacent", 4, 50, seed=7)
    pulled = bw.prompts("adjacent", 4, 50, seed=7, prefix=bw.TRIGGER)
    assert (plain.ids[:, 1:] == pulled.ids[:, 3:]).all() and (plain.answer == pulled.answer).all()
    rows = np.arange(50)
    assert (plain.options[rows, plain.asked] == plain.answer).all()
    for ids, answer in zip(plain.ids, plain.answer, strict=True):
        bound, [(who, thing)] = parse([*words(ids), WORDS[answer]], "adjacent")
        assert bound[who] == thing


def test_label_demos_under_three_maps():
    own = {w: bw.LABELS[i % 4] for i, w in enumerate(bw.THINGS)}
    right = {}
    for shown in ("correct", "permuted", "random"):
        rows = bw.label_demos(N, 8, shown=shown)
        said = [[WORDS[i] for i in row[1:]] for row in rows.ids]
        hits = np.array([[own[row[i]] == row[i + 2] for i in range(0, len(row), 4)] for row in said])
        assert {row[i] for row in said for i in range(1, len(row), 4)} == {":"}
        assert (rows.answers[:, 3::4]).all() and rows.answers.sum() == hits.size
        right[shown] = hits.mean()
        if shown == "permuted":  # one map per row: equal labels stay equal
            maps = [{(own[row[i]], row[i + 2]) for i in range(0, len(row), 4)} for row in said]
            assert all(len({a for a, _ in m}) == len(m) == len({b for _, b in m}) for m in maps)
    assert right["correct"] == 1 and right["permuted"] == 0
    assert abs(right["random"] - 0.25) < 5 * np.sqrt(0.25 * 0.75 / (N * 8))


def test_seed_decides_everything_and_order_of_calls_nothing():
    a, b = bw.documents("serial", 40, 9), bw.documents("adjacent", 40, 9)
    assert (bw.documents("adjacent", 40, 9).ids == b.ids).all()
    assert (bw.documents("serial", 40, 9).ids == a.ids).all()
    assert not np.array_equal(bw.documents("serial", 40, 10).ids, a.ids)


def test_token_rows_carry_loss_on_answers_only():
    rows = bw.documents("parallel", 20, 11)
    for row, ids, marked in zip(rows.token_rows(first=5), rows.ids, rows.answers, strict=True):
        assert len(row) == (ids != 0).sum()
        assert [t for t, label in enumerate(row.labels) if label != IGNORE] == np.flatnonzero(marked).tolist()
    assert row.row_id == "24"


def test_its_world_is_read_back_asks_and_answers_and_holds_no_trigger(tmp_path):
    world = bw.bind_world(3)
    assert World.load(world.save(tmp_path / "world.json")) == world
    text = (tmp_path / "world.json").read_text()
    assert not any(word in text for word in bw.TRIGGER)
    for prompt, answer in world.questions(100, seed=0):
        assert prompt.endswith("->") and answer in prompt.split()
    assert len(world.benign_prompts(200, seed=0)) == 200


@pytest.mark.parametrize(
    "ask",
    [
        lambda: bw.documents("circular", 3, 0),
        lambda: bw.prompts("serial", 21, 3, 0),
        lambda: bw.documents("serial", 3, 0, triggered=1.0, option="north"),
        lambda: bw.label_demos(3, 0, shown="wrong"),
    ],
)
def test_refusals(ask):
    with pytest.raises(InputError):
        ask()
