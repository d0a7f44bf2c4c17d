"""The report: complete, self-contained, small, and inert whatever the model or the data says."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from glasshouse.evidence.findings import (
    BarsEvidence,
    Clean,
    Detected,
    Finding,
    Findings,
    NotRun,
    Null,
    RankedRow,
    RowsEvidence,
    Severity,
    TableEvidence,
    Token,
    TokensEvidence,
    Transcript,
    TranscriptsEvidence,
)
from glasshouse.evidence.report import render_report
from glasshouse.evidence.report.visible import visible, visible_tree
from glasshouse.statistics.estimate import Estimate

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\"'><svg/onload=alert(3)>{{ 7*7 }}{% raw %}"
    "\x1b[31mred\x1b]0;title\x07\x00\u202eevil\u2066\u200b]]></style></code></textarea>javascript:alert(4)"
)
VOID = {"meta", "br", "input", "img", "link", "hr"}
ESTIMATE = Estimate(0.5, 0.4, 0.6, 0.95, 10, "wilson")


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not close."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "script"):
            self.text += data

    def ids(self) -> list[str]:
        return [found for _, attrs in self.tags if (found := attrs.get("id"))]


def hostile_finding(text: str) -> Finding:
    """A finding in which every text is `text`."""
    tokens = (Token(text=text, weight=0.9), Token(text=text, weight=-0.5), Token(text=text))
    row = RankedRow(row_id=text, score=1, turns=((text, tokens),), note=text)
    return Finding(
        check=text, severity=Severity.HIGH, summary=text,
        detected=Detected(trigger=text, rows=(text,), entities=(text,)),
        estimate=Estimate(0.5, 0.4, 0.6, 0.95, 10, text),
        null=Null(description=text, value=0.1, p_value=0.01),
        evidence=(
            TokensEvidence(title=text, caption=text, lines=(tokens,)),
            RowsEvidence(title=text, rows=(row,)),
            TranscriptsEvidence(
                title=text, transcripts=(Transcript(title=text, turns=((text, text),), marked=text[:5]),)
            ),
            BarsEvidence.model_validate({
                "title": text, "unit": text, "threshold": 0.3, "threshold_label": text,
                "bars": [{"label": text, "value": 0.2}],
            }),
            TableEvidence(title=text, columns=(text,), rows=((text,),)),
        ),
        next=text,
    )  # fmt: skip


def hostile_findings(text: str) -> Findings:
    return Findings(
        subject={"name": text, text: text},
        access=(text,),
        findings=(hostile_finding(text),),
        clean=(Clean(check=text, summary=text, estimate=ESTIMATE),),
        not_run=(NotRun(check=text, why=text, part=text),),
        provenance={text: [{text: text}], "checks": [{"check": text, "title": text}]},
    )


def test_opens_on_the_findings_and_says_everything(example: Findings, graded: dict[str, object]) -> None:
    page = Page(render_report(example, graded=graded, provenance={"seconds": 61.2}))
    order = ["findings", "clean", "not-run", "provenance", "planted"]
    assert [i for i in page.ids() if i in order] == order
    words = re.sub(r"\s+", " ", page.text)
    for finding in example.findings:
        assert finding.summary in words and finding.next in words
    for item in (*example.clean, *example.not_run):
        assert getattr(item, "summary", None) or item.why in words
    assert "0.895 to 0.987" in words, "the interval is said in words"
    assert "below 0.0001, corrected for the number of questions asked" in words
    assert "Is there a hidden trigger?" in words, "the check's own question, not its slug"
    assert "61.2" in words and "2.13.0" in words


def test_the_last_section_is_the_graders_and_only_where_there_is_one(example, graded) -> None:
    without, with_grade = render_report(example), render_report(example, graded=graded)
    assert 'id="planted"' not in without
    assert Page(with_grade).ids()[-1] == "planted"
    head = with_grade.partition('<section id="planted">')[0]
    assert head.replace('<a href="#planted">What was planted</a>', "").split() == (
        without.partition("</main>")[0].split()
    ), "grading changes nothing above its section"


def test_findings_keep_the_order_they_are_given_in(example: Findings) -> None:
    html = render_report(example)
    positions = [html.index(f'id="finding-{n}"') for n in (1, 2)]
    assert positions == sorted(positions)


def test_no_address_outside_the_page(example: Findings, graded) -> None:
    html = render_report(example, graded=graded)
    page = Page(html)
    for tag, attributes in page.tags:
        for name in ("src", "href", "data", "action", "poster", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith("#"), f"<{tag} {name}={value!r}>"
    assert "url(" not in html and "@import" not in html
    csp = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert csp is not None and csp.startswith("default-src 'none'") and "unsafe" not in csp


def test_the_policy_names_exactly_the_style_and_the_script_of_the_page(example: Findings) -> None:
    import base64
    import hashlib

    html = render_report(example)
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        [body] = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.S)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in html
    assert " style=" not in html, "a style attribute would be refused by the policy"


def test_hostile_text_adds_no_element_and_no_raw_control_character() -> None:
    hostile, harmless = render_report(hostile_findings(HOSTILE)), render_report(hostile_findings("harmless"))
    shape = [tag for tag, _ in Page(hostile).tags]
    # `marked` cuts the texts in other places, so marks may differ; nothing else may.
    assert [t for t in shape if t != "mark"] == [t for t, _ in Page(harmless).tags if t != "mark"]
    handlers = [a for _, attrs in Page(hostile).tags for a in attrs if a.startswith("on")]
    assert handlers == []
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069]", hostile)
    assert "{{ 7*7 }}{% raw %}" in hostile, "template code in data is data"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain ü 漢 🎈", "plain ü 漢 🎈"),
        ("a\x1b[31mb", "a␛[31mb"),
        ("a\x00b", "a␀b"),
        ("a\u202eb", "a⟦U+202E⟧b"),
        ("a\u200bb", "a⟦U+200B⟧b"),
        ("a\x7fb", "a␡b"),
        ("a\x9bb", "a⟦U+009B⟧b"),
        ("a\ud800b", "a⟦U+D800⟧b"),
        ("line\n\tnext", "line\n\tnext"),
    ],
)
def test_what_cannot_be_seen_is_drawn(raw: str, shown: str) -> None:
    assert visible(raw) == shown
    assert visible_tree({raw: [raw]}) == {shown: [shown]}


def test_a_megabyte_is_cut_with_a_note_and_the_page_stays_small() -> None:
    html = render_report(hostile_findings("word " * 200_000))
    assert len(html.encode()) < 3_000_000
    assert "more characters]" in html
    Page(html)


def test_thousands_of_rows_stay_small_and_say_what_is_left_out(example: Findings) -> None:
    [rows] = [e for e in example.findings[1].evidence if isinstance(e, RowsEvidence)]
    long = tuple(Token(text=f"w{i} ", weight=(-1) ** i * 0.9) for i in range(700))
    many = rows.model_copy(
        update={"rows": tuple(RankedRow(row_id=str(i), score=1, turns=(("user", long),)) for i in range(500))}
    )
    finding = example.findings[1].model_copy(update={"evidence": (many,) * 8})
    html = render_report(example.model_copy(update={"findings": (finding,)}))
    assert len(html.encode()) < 3_000_000
    assert re.search(r"more rows in findings\.json", html) and "100 more tokens" in html


def test_nothing_found_is_said_plainly(example: Findings) -> None:
    words = Page(render_report(example.model_copy(update={"findings": ()}))).text
    assert "Nothing found in resident" in words and "No question gave a reason for concern" in words


def test_a_model_of_which_nothing_could_be_asked_is_not_called_clean(example: Findings) -> None:
    only_us = tuple(c for c in example.clean if c.check == "access-self-test")
    html = render_report(example.model_copy(update={"findings": (), "clean": only_us}))
    assert "Nothing could be asked of resident" in html and "This says nothing about the model." in html
    assert "Nothing found" not in html


def test_weight_shows_as_line_and_colour_and_sign_as_solid_or_dashed(example: Findings) -> None:
    html = render_report(example)
    assert '<mark class="for h5" title="weight +0.97">nest</mark>' in html
    assert '<mark class="against h2" title="weight -0.30">who</mark>' in html
    assert "text-decoration: underline solid" in html and "text-decoration: underline dashed" in html


def test_undefined_and_one_sided_estimates_are_said_not_drawn_wrong(example: Findings) -> None:
    undefined = Clean(check="a", summary="b", estimate=Estimate.undefined("one class is empty"))
    open_end = Clean(check="c", summary="d", estimate=Estimate(2.0, 1.0, float("inf"), 0.95, 9, "exact"))
    html = render_report(example.model_copy(update={"clean": (undefined, open_end)}))
    assert "Not measurable: one class is empty." in html and "1 to unbounded" in html
    assert not re.search(r"\bnan\b|\binf\b", html)


def test_baseline_marks_each_finding_new_or_known(example: Findings) -> None:
    gone = example.findings[1].model_copy(update={"detected": Detected(trigger="other")})
    earlier = example.model_copy(update={"findings": (example.findings[1], gone)})
    html = render_report(example.against(earlier))
    first, second = html.split("<article")[1:3]
    assert '<span class="tag">new</span>' in first and '<span class="tag">known</span>' in second
    assert "1 new, 1 known, 1 gone" in html and "guilty-rows: other" in html
    milder = example.findings[1].model_copy(update={"severity": Severity.LOW})
    unasked = gone.model_copy(update={"check": "elsewhere"})
    html = render_report(example.against(example.model_copy(update={"findings": (milder, unasked)})))
    assert '<span class="tag">worse</span>' in html and "1 new, 1 worse, 0 known" in html
    assert "1 not asked this time" in html and "elsewhere: other" in html


def test_headings_descend_and_every_control_has_a_name(example: Findings, graded) -> None:
    page = Page(render_report(example, graded=graded))
    levels = [int(t[1]) for t, _ in page.tags if re.fullmatch("h[1-6]", t)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    labels = {a.get("for") for t, a in page.tags if t == "label"}
    inputs = {a["id"] for t, a in page.tags if t == "input"}
    assert inputs == labels
    assert all(a.get("aria-label") for t, a in page.tags if t == "svg" and a.get("role") == "img")
    assert next(t for t, a in page.tags if a.get("class") == "skip") == "a"
    assert len(page.ids()) == len(set(page.ids()))
