"""What is covered and what is not, and the fewest methods that cover most.

Coverage is counted within each challenge, so that one with more questions weighs no more. It counts methods
that bear on questions; it does not say that anything is solved.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from glasshouse.governance.foundational_challenges.access import can_run
from glasshouse.governance.foundational_challenges.challenge_map import ChallengeMap, Link
from glasshouse.runtime.errors import InputError

FULL = 3
EXACT_LIMIT = 500
"""Questions up to which the smallest cover is worked out exactly."""


@dataclass(frozen=True)
class Gap:
    """A question nobody here can work on: `reason` is why."""

    id: str
    challenge: int
    question: str
    reason: str


@dataclass(frozen=True)
class Cover:
    """Methods that together bear on `covered` of `questions`; greedy is at most `bound` times the optimum.

    For a cover of everything the bound on the size is H(largest set); for the best k methods the greedy
    choice covers at least 1 - 1/e of the best. `exact` says that no smaller (better) one exists.
    """

    methods: tuple[str, ...]
    covered: tuple[str, ...]
    questions: int
    bound: float
    exact: bool


@dataclass(frozen=True)
class PlanStep:
    """One method of a plan: which new questions it bears on and how to run it (None: not built here)."""

    method: str
    name: str
    new_questions: tuple[str, ...]
    command: str | None


def coverage(found: ChallengeMap, access: Sequence[str] | None = None) -> list[dict[str, object]]:
    """One row per challenge: mean over its questions of the strongest link / 3, and how many have any."""
    rows = []
    for challenge, row in found.challenges.items():
        questions = found.of(challenge)
        best = [
            max((link.strength for _, link in found.methods_for(q.id, access)), default=0) for q in questions
        ]
        rows.append({
            "challenge": challenge, "name": row["name"], "category": row["category"],
            "questions": len(questions),
            "coverage": sum(best) / FULL / len(questions) if questions else 0.0,
            "with_method": sum(b >= 1 for b in best), "built_here": sum(b >= 2 for b in best),
            "with_evidence": sum(b >= 3 for b in best),
        })  # fmt: skip
    return rows


def gaps(found: ChallengeMap, access: Sequence[str] | None = None, *, built: bool = True) -> list[Gap]:
    """Questions that nothing here addresses: no method, none `built` here, or too little access."""
    addressed = {q for system in found.systems for q in found.addresses(system)}
    directly = {q for entry in found.systems.values() for q in entry["addresses"]}
    rows = []
    for one in found.questions.values():
        methods = found.methods_for(one.id)
        reason = None
        if not methods and one.id not in addressed:
            reason = "no method"
        elif access is not None and one.id not in directly and not found.methods_for(one.id, access):
            reason = "needs more access: " + ", ".join(sorted({a for m, _ in methods for a in m.access}))
        elif built and one.id not in addressed:
            reason = "not built here: " + ", ".join(m.tag for m, _ in methods)
        if reason is not None:
            rows.append(Gap(one.id, one.challenge, one.question, reason))
    return rows


def cover(found: ChallengeMap, *, k: int | None = None, fraction: float = 1.0, exact: bool = False) -> Cover:
    """The fewest methods that bear on `fraction` of the coverable questions, or the best `k` methods.

    Greedy, or exact by integer programming (up to 500 questions). Raises InputError for k below 1, a fraction
    outside (0, 1], or too many questions for an exact answer.
    """
    sets = method_sets(found)
    universe = set().union(*sets.values()) if sets else set()
    if (k is not None and k < 1) or not 0 < fraction <= 1:
        raise InputError(f"k is {k}, fraction {fraction:g}", fix="give k >= 1, or a fraction in (0, 1]")
    if exact and len(universe) > EXACT_LIMIT:
        raise InputError(
            f"{len(universe)} questions are too many for an exact answer", fix="take exact=False"
        )
    wanted = math.ceil(fraction * len(universe) - 1e-9)
    chosen = _exact(sets, universe, k, wanted) if exact else _greedy(sets, k, wanted)
    covered = set().union(*(sets[name] for name in chosen)) if chosen else set()
    largest = max((len(one) for one in sets.values()), default=1)
    bound = 1 - 1 / math.e if k is not None else sum(1 / i for i in range(1, largest + 1))
    return Cover(tuple(chosen), tuple(sorted(covered)), len(found.questions), 1.0 if exact else bound, exact)


def plan(found: ChallengeMap, *, access: Sequence[str], budget: int) -> list[PlanStep]:
    """The `budget` methods that bear on most questions; none that needs more than this access is proposed."""
    if budget < 1:
        raise InputError(f"a budget of {budget} methods", fix="give at least 1")
    sets = {
        tag: questions
        for tag, questions in method_sets(found).items()
        if can_run(found.methods[tag].access, access)
    }
    steps, seen = [], set[str]()
    for tag in _greedy(sets, budget, sum(map(len, sets.values()))):
        new = tuple(sorted(sets[tag] - seen))
        seen |= sets[tag]
        system = found.methods[tag].glasshouse_system
        command = found.systems[system]["command"] if system is not None and system in found.systems else None
        steps.append(PlanStep(tag, found.methods[tag].name, new, command))
    return steps


def method_sets(found: ChallengeMap) -> dict[str, set[str]]:
    """Method -> questions it is linked to; suggested links do not count."""
    sets: dict[str, set[str]] = {}
    for link in found.links:
        if link.author != "suggested":
            sets.setdefault(link.method, set()).add(link.question)
    return sets


def betweenness(found: ChallengeMap) -> dict[str, float]:
    """Betweenness of each method in the graph of questions and methods (Brandes 2001), unnormalised."""
    graph: dict[str, list[str]] = {}
    for link in found.links:
        for a, b in ((link.question, link.method), (link.method, link.question)):
            if b not in graph.setdefault(a, []):
                graph[a].append(b)
    total = dict.fromkeys(graph, 0.0)
    for source in graph:
        for node, share in _dependencies(graph, source).items():
            total[node] += share / 2  # each pair is met from both ends
    return {tag: total.get(tag, 0.0) for tag in found.methods}


def suggest_links(found: ChallengeMap, search: object, *, least: float = 0.45) -> list[Link]:
    """Links that likeness suggests between methods' summaries and questions; a person must confirm them."""
    known = {(link.question, link.method) for link in found.links}
    tags = [tag for tag, one in found.methods.items() if one.summary]
    similar = search.similarity([found.methods[tag].summary for tag in tags])  # type: ignore[attr-defined]
    return [
        Link(question=one, method=tag, author="suggested", rationale=f"likeness {similar[i][j]:.2f}")
        for i, tag in enumerate(tags)
        for j, one in enumerate(found.questions)
        if similar[i][j] >= least and (one, tag) not in known
    ]


def _greedy(sets: Mapping[str, set[str]], k: int | None, wanted: int) -> list[str]:
    chosen: list[str] = []
    covered: set[str] = set()
    while len(covered) < wanted and (k is None or len(chosen) < k):
        best = max(sorted(sets), key=lambda name: len(sets[name] - covered), default=None)
        if best is None or not sets[best] - covered:
            break
        chosen.append(best)
        covered |= sets[best]
    return chosen


def _exact(sets: Mapping[str, set[str]], universe: set[str], k: int | None, wanted: int) -> list[str]:
    """Variables: which methods (first), which questions are covered (then)."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    names, questions = sorted(sets), sorted(universe)
    m, n = len(names), len(questions)
    held = np.array([[question in sets[name] for name in names] for question in questions], dtype=float)
    # A question counts as covered only when one of its methods is chosen: y <= A x.
    rows = [LinearConstraint(np.hstack([held, -np.eye(n)]), lb=0)]
    picks = np.concatenate([np.ones(m), np.zeros(n)])
    covers = np.concatenate([np.zeros(m), np.ones(n)])
    if k is None:
        cost = picks
        rows.append(LinearConstraint(covers[None], lb=wanted))
    else:
        cost = -covers
        rows.append(LinearConstraint(picks[None], ub=k))
    solved = milp(cost, constraints=rows, integrality=np.ones(m + n), bounds=Bounds(0, 1))
    if solved.x is None:
        raise InputError(f"no exact cover was found ({solved.message})", fix="take exact=False")
    return [name for name, x in zip(names, solved.x[:m], strict=True) if x > 0.5]


def _dependencies(graph: Mapping[str, Sequence[str]], source: str) -> dict[str, float]:
    """How much of the shortest paths from `source` passes through each other node."""
    distance, paths = {source: 0}, {source: 1.0}
    order, before = [], dict[str, list[str]]()
    waiting = deque([source])
    while waiting:
        node = waiting.popleft()
        order.append(node)
        for near in graph[node]:
            if near not in distance:
                distance[near], paths[near], before[near] = distance[node] + 1, 0.0, []
                waiting.append(near)
            if distance[near] == distance[node] + 1:
                paths[near] += paths[node]
                before[near].append(node)
    share = dict.fromkeys(order, 0.0)
    for node in reversed(order):
        for above in before.get(node, ()):
            share[above] += paths[above] / paths[node] * (1 + share[node])
    share[source] = 0.0
    return share
