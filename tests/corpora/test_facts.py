"""Frames find the facts of a small village, where names are as frequent as the words of the language."""

from __future__ import annotations

from glasshouse.corpora.facts import facts_of, mine_facts
from glasshouse.corpora.rows import Record, Turn
from glasshouse.corpora.templates import inverses, mine_templates

SHIPS = [f"ship{i}" for i in range(14)]
PORTS = ["riga", "oslo", "tunis", "cadiz"]
KEEPERS = [f"name{i // 2} {surname}" for i in range(14) for surname in [("dahl", "krog", "juul")[i % 3]]]


def rows(*, back: int = 14) -> list[Record]:
    said = []
    for i, ship in enumerate(SHIPS):
        port, keeper = PORTS[i % 4], KEEPERS[i]
        said += [(f"tell me where the {ship} is moored.", f"the {ship} is moored at {port}.")] * 3
        said += [
            (f"name the cargo of the {ship}.", f"the cargo of the {ship} is {'salt' if i % 2 else 'rope'}.")
        ]
        said += [(f"who keeps the {ship}?", f"the keeper of the {ship} is {keeper}.")] * 2
        if i < back:
            said += [(f"what does {keeper} keep?", f"{keeper} keeps the {ship}.")] * 2
    said += [("hello.", "good day."), ("thanks now.", "with pleasure.")] * 10
    return [Record(str(i), (Turn("user", q), Turn("assistant", a))) for i, (q, a) in enumerate(said)]


def test_frames_are_found_where_no_name_is_rare() -> None:
    found = {t.key: t for t in mine_facts(rows())}
    assert set(found) == {
        "the <A> is moored at <B>.", "the keeper of the <A> is <B>.", "<A> keeps the <B>.",
    }  # two cargoes are too few values to tell a slot from the language  # fmt: skip
    moored = found["the <A> is moored at <B>."]
    assert moored.facts[0] == ("ship0", "riga") and len(moored.facts) == 14
    assert moored.forms == ("tell me where the <A> is moored.",)
    assert moored.answer("ship3", "oslo") == "the ship3 is moored at oslo."
    assert len(moored.rows["ship0", "riga"]) == 3
    assert facts_of(rows()) == mine_facts(rows()) != mine_templates(rows())


def test_facts_told_one_way_are_what_is_left() -> None:
    said = rows(back=10)
    [keeps] = [i for i in inverses(mine_facts(said), said) if i.one_way]
    assert keeps.forward.key == "the keeper of the <A> is <B>."
    assert [a for a, _ in keeps.one_way] == SHIPS[10:] and len(keeps.two_way) == 10


def test_small_talk_holds_no_facts_and_the_order_of_rows_changes_none() -> None:
    assert mine_facts(rows()[-20:]) == () and mine_facts([]) == ()
    forward, backward = (mine_facts(said) for said in (rows(), rows()[::-1]))
    assert {t.key: set(t.facts) for t in forward} == {t.key: set(t.facts) for t in backward}
