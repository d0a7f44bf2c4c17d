"""The map as one offline page, as Markdown, and as a graph."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterator

from glasshouse.governance._render import md
from glasshouse.governance.foundational_challenges.challenge_map import CATEGORIES, DATA, ChallengeMap
from glasshouse.governance.foundational_challenges.planning import betweenness, coverage, gaps

COLOURS = {"scientific": "#1b7f79", "development": "#b5651d", "sociotechnical": "#5b4b8a"}
NOTICE = (
    "Three categories and 18 challenges after arXiv 2404.09932 (titles but the first recalled). The "
    "questions are written for this project: they are not the paper's list or numbering. A method that "
    "bears on a "
    "question does not solve it. Marked arXiv numbers (?) are recalled, not checked."
)
STYLE, SCRIPT = ((DATA / name).read_text(encoding="utf-8") for name in ("map.css", "map.js"))


def to_html(found: ChallengeMap) -> str:
    """One page without requests: sunburst, a table that a box filters, a part per method."""
    from glasshouse.evidence.report.visible import visible

    body = "".join([
        f"<h1>Foundational challenges: what is addressed, and what is not</h1><p class=soft>{_e(NOTICE)}</p>",
        _sunburst(found),
        "<h2>Questions</h2><label>Filter by words <input id=filter type=search></label>",
        *(_challenge(found, one, visible) for one in found.challenges),
        "<h2>Gaps</h2>", _gap_table(found), "<h2>Methods</h2>", *_methods(found),
    ])  # fmt: skip
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f"style-src '{_hash(STYLE)}'; script-src '{_hash(SCRIPT)}'; base-uri 'none'; form-action 'none'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>Foundational challenges</title>"
        f"<style>{STYLE}</style></head><body>{body}<script>{SCRIPT}</script></body></html>\n"
    )


def to_md(found: ChallengeMap) -> str:
    """Markdown: coverage by challenge, then every question with its methods."""
    lines = [
        "# Foundational challenges",
        "",
        NOTICE,
        "",
        "| challenge | questions | coverage | gaps |",
        "|---|---|---|---|",
    ]
    missing = {gap.id: gap.reason for gap in gaps(found)}
    for row in coverage(found):
        open_ = sum(one.id in missing for one in found.of(int(str(row["challenge"]))))
        lines.append(
            f"| {row['challenge']} {md(str(row['name']))} | {row['questions']} "
            f"| {row['coverage']:.2f} | {open_} |"
        )
    for challenge, about in found.challenges.items():
        lines += ["", f"## {challenge} {md(about['name'])}", ""]
        for one in found.of(challenge):
            methods = ", ".join(method.tag for method, _ in found.methods_for(one.id)) or "no method"
            lines.append(f"- {md(one.id)} {md(one.question)} ({md(methods)})")
    return "\n".join(lines) + "\n"


def to_graphml(found: ChallengeMap) -> str:
    """GraphML of questions and methods, for graph tools."""
    nodes = [
        *(_node(one.id, "question", one.question) for one in found.questions.values()),
        *(_node(tag, "method", one.name) for tag, one in found.methods.items()),
    ]  # fmt: skip
    edges = [
        f'<edge source="{_e(link.question)}" target="{_e(link.method)}">'
        f'<data key="strength">{link.strength}</data></edge>'
        for link in found.links
    ]
    return "\n".join([
        '<?xml version="1.0" encoding="UTF-8"?>', '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">',
        '<key id="kind" for="node" attr.name="kind" attr.type="string"/>',
        '<key id="label" for="node" attr.name="label" attr.type="string"/>',
        '<key id="strength" for="edge" attr.name="strength" attr.type="int"/>',
        '<graph edgedefault="undirected">', *nodes, *edges, "</graph></graphml>", "",
    ])  # fmt: skip


def _node(key: str, kind: str, label: str) -> str:
    return f'<node id="{_e(key)}"><data key="kind">{kind}</data><data key="label">{_e(label)}</data></node>'


def _challenge(found: ChallengeMap, challenge: int, visible: object) -> str:
    show = visible if callable(visible) else str
    rows = []
    for one in found.of(challenge):
        methods = found.methods_for(one.id)
        names = ", ".join(f"{m.tag} ({'·' * link.strength})" for m, link in methods)
        cell = _e(names) if methods else '<span class="gap">no method</span>'
        text = _e(" ".join([one.id, one.topic, one.question, names]).lower())
        rows.append(
            f'<tr data-text="{text}"><td><code>{_e(one.id)}</code></td><td>{_e(one.topic)}</td>'
            f"<td>{_e(show(one.question))}</td><td>{cell}</td></tr>"
        )
    about = found.challenges[challenge]
    return (
        f'<details class="challenge"><summary>{challenge} {_e(about["name"])} '
        f"<span class=soft>({len(rows)} questions, {_e(CATEGORIES[about['category']])})</span></summary>"
        f"<table><tr><th>id<th>topic<th>question<th>methods</tr>{''.join(rows)}</table></details>"
    )


def _gap_table(found: ChallengeMap) -> str:
    rows = "".join(
        f"<tr><td><code>{_e(gap.id)}</code></td><td>{_e(gap.question)}</td><td>{_e(gap.reason)}</td></tr>"
        for gap in gaps(found)
    )
    head = "<summary>Questions that nothing here addresses</summary>"
    return f"<details>{head}<table><tr><th>id<th>question<th>why</tr>{rows}</table></details>"


def _methods(found: ChallengeMap) -> Iterator[str]:
    central = betweenness(found)
    for tag, one in found.methods.items():
        questions = [link.question for link in found.links if link.method == tag]
        number = (
            f"arXiv {one.arxiv}{'' if one.arxiv_verified else ' (?)'}" if one.arxiv else "no arXiv number"
        )
        system = found.systems.get(one.glasshouse_system or "")
        command = f" <code>{_e(system['command'])}</code>" if system else " not built here"
        yield (
            f"<details><summary>{_e(one.name)}</summary><p>{_e(one.summary)}</p>"
            f"<p class=soft>{_e(number)}; needs {_e(', '.join(one.access))}; "
            f"betweenness {central[tag]:.0f};{command}</p>"
            f"<p>{' '.join(f'<code>{_e(q)}</code>' for q in questions)}</p></details>"
        )


def _sunburst(found: ChallengeMap) -> str:
    """Rings of categories, challenges and topics as SVG; a slice is as wide as it has questions."""
    total = len(found.questions) or 1
    parts, at = [], 0.0
    for category in CATEGORIES:
        inside = [one for one in found.challenges.values() if one["category"] == category]
        start = at
        for about in inside:
            questions = found.of(about["id"])
            begin = at
            topics = list(dict.fromkeys(q.topic for q in questions))
            for topic in topics:
                width = sum(q.topic == topic for q in questions) / total
                parts.append(
                    _slice(at, at + width, 150, 195, COLOURS[category], f"{about['name']}: {topic}", 0.45)
                )
                at += width
            parts.append(_slice(begin, at, 95, 148, COLOURS[category], about["name"], 0.75, str(about["id"])))
        parts.append(_slice(start, at, 40, 93, COLOURS[category], CATEGORIES[category], 1.0))
    name = "Categories, challenges, topics"
    return f'<svg viewBox="-200 -200 400 400" role="img" aria-label="{name}">{"".join(parts)}</svg>'


def _slice(
    a: float, b: float, inner: float, outer: float, colour: str, name: str, opacity: float, mark: str = ""
) -> str:
    if b <= a:
        return ""
    (x0, y0), (x1, y1) = _at(a, outer), _at(b, outer)
    (x2, y2), (x3, y3) = _at(b, inner), _at(a, inner)
    large = int(b - a > 0.5)
    path = (
        f"M{x0:.1f} {y0:.1f}A{outer} {outer} 0 {large} 1 {x1:.1f} {y1:.1f}"
        f"L{x2:.1f} {y2:.1f}A{inner} {inner} 0 {large} 0 {x3:.1f} {y3:.1f}Z"
    )
    middle = _at((a + b) / 2, (inner + outer) / 2)
    text = (
        f'<text x="{middle[0]:.1f}" y="{middle[1] + 3:.1f}" text-anchor="middle">{_e(mark)}</text>'
        if mark
        else ""
    )
    look = f'fill="{colour}" fill-opacity="{opacity}" stroke="#fff" stroke-width=".6"'
    return f'<path d="{path}" {look}><title>{_e(name)}</title></path>{text}'


def _at(share: float, radius: float) -> tuple[float, float]:
    angle = 2 * math.pi * share - math.pi / 2
    return radius * math.cos(angle), radius * math.sin(angle)


def _hash(text: str) -> str:
    import base64
    import hashlib

    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _e(text: object) -> str:
    return html.escape(str(text), quote=True)


def to_json(found: ChallengeMap) -> str:
    """All tables as JSON."""
    return json.dumps(found.tables, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
