"""`glasshouse challenges`: open problems, what bears on them, and the gaps. stdout is data."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from glasshouse.governance.foundational_challenges import ChallengeMap


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("challenges")(challenges)


def challenges(
    gaps: Annotated[bool, typer.Option("--gaps", help="Questions that nothing here addresses.")] = False,
    search: Annotated[str | None, typer.Option(metavar="TEXT", help="Find questions, best first.")] = None,
    classify: Annotated[
        str | None, typer.Option(metavar="TEXT_OR_FILE", help="Which challenges a text is about, or none.")
    ] = None,
    show: Annotated[str | None, typer.Option(metavar="ID", help="One question with its methods.")] = None,
    coverage: Annotated[
        bool, typer.Option("--coverage", help="How much is addressed, by challenge.")
    ] = False,
    plan: Annotated[int | None, typer.Option(metavar="K", help="The K methods that bear on most.")] = None,
    sources: Annotated[bool, typer.Option("--sources", help="Evidence by question.")] = False,
    sql: Annotated[str | None, typer.Option(metavar="SELECT", help="One SELECT over the tables.")] = None,
    export: Annotated[str | None, typer.Option(metavar="FORMAT", help="html, json, graphml or md.")] = None,
    access: Annotated[
        list[str] | None,
        typer.Option(metavar="ACCESS", help="text, logprobs, activations, gradients, ...; repeatable."),
    ] = None,
    challenge: Annotated[int | None, typer.Option(help="Only this challenge.")] = None,
    extra: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Your questions, methods, links; repeatable.")
    ] = None,
    ledger: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Claims of our studies as evidence: docs/ledger.")
    ] = None,
    k: Annotated[int, typer.Option(min=1, help="How many hits.")] = 5,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write here.")] = None,
) -> int:
    """Open problems of assuring safe language models: what bears on them, with what evidence, and the gaps.

    \b
    Examples:
      glasshouse challenges --gaps
      glasshouse challenges --search "backdoor without knowing the trigger"
      glasshouse challenges --plan 3 --access text
      glasshouse challenges --coverage --ledger docs/ledger
      glasshouse challenges --export html --out challenges.html

    Prints JSON lines. The questions are this project's, after the themes of arXiv 2404.09932.
    """  # noqa: D301
    from glasshouse.governance.foundational_challenges import load_map

    found = load_map(extra or ())
    if ledger is not None:
        found = found.with_ledger(ledger)
    wanted = {
        "gaps": gaps or None, "search": search, "classify": classify, "show": show,
        "coverage": coverage or None, "plan": plan, "sources": sources or None, "sql": sql, "export": export,
    }  # fmt: skip
    asked = [name for name, value in wanted.items() if value is not None]
    if len(asked) > 1:
        from glasshouse.runtime.errors import InputError

        raise InputError(f"{' and '.join(asked)} are asked at once", where="challenges", fix="ask one thing")
    if export is not None:
        return _export(found, export, out)
    what = asked[0] if asked else "coverage"
    rows = _answer(found, what, wanted[what], access, challenge, k)
    text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    _emit(text, out)
    print(f"{len(rows)} rows; the questions are this project's, not the paper's", file=sys.stderr)
    return 0


def _answer(
    found: ChallengeMap, what: str, value: Any, access: list[str] | None, challenge: int | None, k: int
) -> list[dict[str, Any]]:
    from glasshouse.governance import foundational_challenges as wing

    if what == "gaps":
        return [
            row for gap in wing.gaps(found, access) if challenge in (None, (row := asdict(gap))["challenge"])
        ]
    if what == "coverage":
        return [row for row in wing.coverage(found, access) if challenge in (None, row["challenge"])]
    if what == "search":
        return [asdict(hit) for hit in wing.Search(found).search(value, k=k, challenge=challenge)]
    if what == "classify":
        return _classified(found, value)
    if what == "show":
        pairs = found.methods_for(value, access)
        methods = [{**m.model_dump(mode="json"), "strength": link.strength} for m, link in pairs]
        return [{**found.question(value).model_dump(mode="json"), "methods": methods}]
    if what == "plan":
        return [asdict(step) for step in wing.plan(found, access=access or ["gradients"], budget=value)]
    if what == "sources":
        return found.tables["sources"]
    return found.sql(value)


def _classified(found: ChallengeMap, value: str) -> list[dict[str, Any]]:
    """A text, a text file, or a JSONL file of rows with title and abstract, such as arXiv's metadata."""
    from glasshouse.governance._plain import read_text
    from glasshouse.governance.foundational_challenges import Classifier, Search

    path = Path(value) if len(value) < 300 else None
    texts, names = [value], ["the text"]
    if path is not None and path.is_file() and path.suffix == ".jsonl":
        from glasshouse.corpora.formats import raw_rows

        rows = [row for _, row in raw_rows(path)]
        texts = [f"{row.get('title', '')}. {row.get('abstract', row.get('text', ''))}" for row in rows]
        names = [str(row.get("arxiv", row.get("id", i))) for i, row in enumerate(rows)]
    elif path is not None and path.is_file():
        texts, names = [read_text(path)], [path.name]
    guesses = Classifier(Search(found)).fit().classify_many(texts)
    titles = {challenge: row["name"] for challenge, row in found.challenges.items()}
    return [
        {
            "id": name, "accepted": guess.accepted, "likeness": guess.likeness,
            "challenges": [{"challenge": c, "name": titles[c], "p": p} for c, p in guess.challenges],
        }
        for name, guess in zip(names, guesses, strict=True)
    ]  # fmt: skip


def _export(found: ChallengeMap, form: str, out: Path | None) -> int:
    from glasshouse.governance.foundational_challenges import export

    _emit(export(found, form), out)
    return 0


def _emit(text: str, out: Path | None) -> None:
    from glasshouse.runtime import files

    if out is None:
        print(text, end="")
    else:
        print(f"written: {files.write_text(out, text)}", file=sys.stderr)
