"""Study: can the map of challenges be searched, and does it place texts where they belong?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from glasshouse.evidence.claims import ClaimSpec, Threshold
from glasshouse.statistics import Estimate
from glasshouse.studies._study import Figure, Table, Yield, study

if TYPE_CHECKING:
    from glasshouse.studies._lab import Lab

K = 5
TOP = 3
KINDS = ("synonyms", "turned", "rare words")


@dataclass(frozen=True)
class Config:
    """`resamples` of every interval; the map is shipped, nothing else is drawn."""

    seeds: int = 1
    resamples: int = 2000


CLAIMS = [
    ClaimSpec(
        "foundational-challenges/2a",
        "Two paraphrases by fixed rules and three rare words find their question among the first five: "
        "recall at least 0.95, by words and meaning together.",
        Threshold(">=", 0.95),
        null=5 / 211,
        control="the same queries for questions exchanged at random",
    ),
    ClaimSpec(
        "foundational-challenges/2br", "The same recall by words alone.", Threshold("report"),
    ),
    ClaimSpec(
        "foundational-challenges/3a",
        "A question's challenge is among the first three by its likeness to the others: at least 0.62.",
        Threshold(">=", 0.62),
        null=40 / 211,
        control="the same with the challenges exchanged between the questions",
        paper="specification's author: top-3 0.66, top-1 0.42 with this encoder",
    ),
    ClaimSpec(
        "foundational-challenges/3b",
        "That is above always naming the three largest challenges.",
        Threshold(">", 0.0),
        control="challenges exchanged between the questions, less the same baseline",
    ),
    ClaimSpec(
        "foundational-challenges/3cr",
        "By how much it is above likeness of words alone.",
        Threshold("report"),
    ),
    ClaimSpec(
        "foundational-challenges/3dr",
        "Share of questions in the right challenge first; confusions in the table.",
        Threshold("report"),
    ),
    ClaimSpec(
        "foundational-challenges/4",
        "Of 45 summaries of papers at least 80 % are placed, among three, in a challenge that the links of "
        "their method name.",
        Threshold(">=", 0.8),
        null=0.5,
        control="summaries exchanged between the methods",
    ),
    ClaimSpec(
        "foundational-challenges/5",
        "Of 50 texts about other things at most 10 % are accepted.",
        Threshold("<=", 0.1),
        null=0.5,
        control="the map's own questions, each left out",
    ),
    ClaimSpec(
        "foundational-challenges/7r",
        "Milliseconds to load the map and answer a first query by words; later queries and 100,000 questions "
        "in the note.",
        Threshold("report"),
    ),
]  # fmt: skip


@study(
    "foundational-challenges",
    wing="governance",
    paper="Anwar et al. 2024, Foundational Challenges in Assuring Alignment and Safety of LLMs, 2404.09932",
    claims=CLAIMS,
    configs={"laptop": Config(), "paper": Config(resamples=10_000)},
)
def foundational_challenges(config: Config, lab: Lab) -> Iterator[Yield]:
    """Foundational challenges: search by words and meaning, placing texts, refusing others, and its cost."""
    recall = lab.step("recall", recalls)
    rate = partial(_recall, recall, config.resamples)
    notes = {
        column: "; ".join(f"{kind} {rate(column, kind).value:.3f}" for kind in KINDS)
        for column in ("hybrid", "words")
    }
    yield lab.claim(
        "foundational-challenges/2a", rate("hybrid"), rate("exchanged"), note=notes["hybrid"]
    )  # fmt: skip
    yield lab.claim("foundational-challenges/2br", rate("words"), note=notes["words"])
    yield Table("recall", recall)
    placed = lab.step("placed", places)
    yield from _placing(lab, placed, config.resamples)
    papers = lab.step("papers", paper_places)
    yield lab.claim(
        "foundational-challenges/4", _share(papers, "hit"), _share(papers, "exchanged"),
        note="missed: " + (", ".join(row["method"] for row in papers if not row["hit"]) or "none"),
    )  # fmt: skip
    yield Table("papers", papers)
    accepted = lab.step("accepted", acceptance)
    off, own = accepted["off_topic"], accepted["own"]
    papers_in = _share(papers, "accepted")
    yield lab.claim(
        "foundational-challenges/5", _wilson(off), _wilson(own),
        note=f"summaries of papers accepted: {papers_in.value:.3f} of {papers_in.n}",
    )  # fmt: skip
    cost = lab.step("cost", costs)
    yield lab.claim(
        "foundational-challenges/7r", Estimate.exact(cost["cold_ms"], 1, method="one process, one core"),
        note=f"warm query {cost['warm_ms']:.2f} ms; 100,000 questions {cost['large_ms']:.1f} ms a query",
    )  # fmt: skip


def recalls() -> list[dict[str, Any]]:
    """One row per question and kind of query: is it among the first five?"""
    import numpy as np

    from glasshouse.governance.foundational_challenges.search import rarest
    from glasshouse.runtime.seeds import rng
    from glasshouse.studies.governance._queries import paraphrases

    search, found = _search(), []
    queries = []
    for one in search.ids:
        text = search.map.questions[one].question
        kinds = ("synonyms", "turned", "rare words")
        queries += [
            (one, k, q) for k, q in zip(kinds, (*paraphrases(text), rarest(text, search.bm25)), strict=True)
        ]
    similar = search.similarity([query for _, _, query in queries])
    other = list(rng(0, "exchanged questions").permutation(search.ids))
    wrong = dict(zip(search.ids, map(str, other), strict=True))
    for (one, kind, query), meaning in zip(queries, similar, strict=True):
        words = search.bm25.scores(query)
        total = 0.5 * _z(words) + 0.5 * _z(meaning)
        first, lexical = (
            {search.ids[int(i)] for i in np.argsort(-s, kind="stable")[:K]} for s in (total, words)
        )
        found.append({
            "question": one, "kind": kind, "query": query, "hybrid": one in first, "words": one in lexical,
            "exchanged": wrong[one] in first,
        })  # fmt: skip
    return found


def places() -> list[dict[str, Any]]:
    """One row per question, left out: its challenge, the first three by meaning, by words, and exchanged."""
    from glasshouse.governance.foundational_challenges import Classifier
    from glasshouse.runtime.seeds import rng

    search = _search()
    classifier = Classifier(search)
    rows, truth = classifier.leave_one_out()
    labels = [search.map.questions[one].challenge for one in search.ids]
    order = classifier.challenges
    shuffled = [int(x) for x in rng(0, "exchanged challenges").permutation(labels)]
    sizes = sorted(order, key=lambda c: -labels.count(c))[:TOP]
    lexical = [search.bm25.scores(text) for text in search.texts]
    meaning = search.vectors @ search.vectors.T
    found = []
    for i, one in enumerate(search.ids):
        ranked = [order[j] for j in sorted(range(len(order)), key=lambda j: -rows[i][j])]
        by_words = _ranked(lexical[i], labels, order, i)
        exchanged = _ranked(meaning[i], shuffled, order, i)
        found.append({
            "question": one, "challenge": labels[i], "first": ranked[0], "top1": ranked[0] == labels[i],
            "top3": labels[i] in ranked[:TOP], "words": labels[i] in by_words[:TOP],
            "largest": labels[i] in sizes, "exchanged": shuffled[i] in exchanged[:TOP],
            "exchanged_largest": shuffled[i] in sizes,
        })  # fmt: skip
    assert [order[k] for k in truth] == labels
    return found


def paper_places() -> list[dict[str, Any]]:
    """One row per method with a summary: is one of its challenges among the first three?"""
    from glasshouse.governance.foundational_challenges import Classifier
    from glasshouse.runtime.seeds import rng

    search = _search()
    classifier = Classifier(search).fit()
    linked: dict[str, set[int]] = {}
    for link in search.map.links:
        linked.setdefault(link.method, set()).add(search.map.questions[link.question].challenge)
    tags = [tag for tag, one in search.map.methods.items() if one.summary and linked.get(tag)]
    guesses = classifier.classify_many([search.map.methods[tag].summary for tag in tags])
    other = [str(tag) for tag in rng(0, "exchanged summaries").permutation(tags)]
    return [
        {
            "method": tag, "labels": ", ".join(map(str, sorted(linked[tag]))),
            "guessed": ", ".join(str(c) for c, _ in guess.challenges),
            "hit": any(c in linked[tag] for c, _ in guess.challenges),
            "exchanged": any(c in linked[wrong] for c, _ in guess.challenges), "accepted": guess.accepted,
        }
        for tag, wrong, guess in zip(tags, other, guesses, strict=True)
    ]  # fmt: skip


def acceptance() -> dict[str, list[bool]]:
    """Which off-topic texts, and which of the map's own questions (left out), are accepted."""
    from glasshouse.governance.foundational_challenges import Classifier
    from glasshouse.governance.foundational_challenges.off_topic import held_out

    search = _search()
    classifier = Classifier(search).fit()
    off = [guess.accepted for guess in classifier.classify_many(held_out())]
    own = [likeness > classifier.threshold_ for likeness in classifier.own_likeness()]
    return {"off_topic": off, "own": own}


def costs() -> dict[str, float]:
    """Milliseconds: load and first query, a warm query, a query among 100,000 made-up questions."""
    from glasshouse.governance.foundational_challenges import Search, load_map
    from glasshouse.governance.foundational_challenges.search import Bm25
    from glasshouse.runtime.seeds import rng

    cold = _clock(lambda: Search(load_map(), encoder=None).search("backdoor trigger"), 1)
    search = Search(load_map(), encoder=None)
    search.search("backdoor trigger")
    warm = _clock(lambda: search.search("which poisoned samples persist"), 50)
    draw = rng(0, "made-up questions")
    words = [f"word{i}" for i in range(5000)]
    large = Bm25([" ".join(words[int(j)] for j in draw.zipf(1.3, 12) % 5000) for _ in range(100_000)])
    return {
        "cold_ms": cold,
        "warm_ms": warm,
        "large_ms": _clock(lambda: large.scores("word7 word99 word1234"), 10),
    }


def _placing(lab: Lab, placed: list[dict[str, Any]], resamples: int) -> Iterator[Yield]:
    from glasshouse.statistics import bootstrap_paired

    def difference(a: str, b: str) -> Estimate:
        pair = ([float(row[name]) for row in placed] for name in (a, b))
        return bootstrap_paired(*pair, resamples=resamples)

    yield lab.claim("foundational-challenges/3a", _share(placed, "top3"), _share(placed, "exchanged"))
    yield lab.claim(
        "foundational-challenges/3b",
        difference("top3", "largest"),
        difference("exchanged", "exchanged_largest"),
    )
    yield lab.claim(
        "foundational-challenges/3cr", difference("top3", "words"),
        note=f"by words alone {_share(placed, 'words').value:.3f}",
    )  # fmt: skip
    yield lab.claim("foundational-challenges/3dr", _share(placed, "top1"))
    yield Table("placed", placed)
    yield Figure("confusion", _confusion(placed))


def _search() -> Any:
    from glasshouse.governance.foundational_challenges import Search, load_map

    return Search(load_map())


def _ranked(similar: Any, labels: list[int], order: list[int], leave: int) -> list[int]:
    scores = {}
    for challenge in order:
        members = [float(similar[j]) for j, label in enumerate(labels) if label == challenge and j != leave]
        best = sorted(members, reverse=True)[:TOP]
        scores[challenge] = sum(best) / len(best) if best else -1.0
    return sorted(order, key=lambda challenge: -scores[challenge])


def _z(values: Any) -> Any:
    spread = float(values.std())
    return (values - values.mean()) / spread if spread else values * 0


def _recall(rows: list[dict[str, Any]], resamples: int, column: str, kind: str | None = None) -> Estimate:
    from glasshouse.statistics import bootstrap

    kept = [row for row in rows if kind in (None, row["kind"])]
    clusters = [row["question"] for row in kept]
    return bootstrap([float(row[column]) for row in kept], clusters=clusters, resamples=resamples)


def _share(rows: list[dict[str, Any]], column: str) -> Estimate:
    return _wilson([bool(row[column]) for row in rows])


def _wilson(hits: list[bool]) -> Estimate:
    from glasshouse.statistics import wilson

    return wilson(sum(hits), len(hits))


def _clock(act: Any, times: int) -> float:
    import time

    started = time.perf_counter()
    for _ in range(times):
        act()
    return 1000 * (time.perf_counter() - started) / times


def _confusion(placed: list[dict[str, Any]]) -> Any:
    import plotly.graph_objects as go

    names = sorted({row["challenge"] for row in placed})
    counts = [[sum(r["challenge"] == a and r["first"] == b for r in placed) for b in names] for a in names]
    heat = go.Heatmap(z=counts, x=names, y=names, colorscale="Tealgrn")
    return go.Figure(heat).update_layout(
        title="Questions by challenge: where they belong, and where they are placed first",
        xaxis_title="placed in", yaxis_title="belongs to", yaxis={"autorange": "reversed"},
    )  # fmt: skip
