"""`glasshouse card`: disclosure as data. stdout is data, stderr is messages."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from glasshouse.governance import Card, Lint

TYPES = "openness, rlhf or challenges"
Kind = Annotated[str | None, typer.Option("--type", "-t", metavar="TYPE", help=f"The type of card: {TYPES}.")]
CardFile = Annotated[Path, typer.Argument(metavar="CARD", help="A card: .json, .yaml, or a README.md.")]
CardFiles = Annotated[list[Path], typer.Argument(metavar="CARDS...", help="Cards: .json, .yaml, README.md.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write here, not to stdout.")]
Bases = Annotated[
    list[Path] | None,
    typer.Option("--base-card", metavar="FILE", help="Card of a base model, for its licence; repeatable."),
]

HELP = """
What is disclosed about a model, as data that can be checked, compared and shown.

\b
Examples:
  glasshouse card init --type openness --from ./model --out ./model/openness.yaml
  glasshouse card validate ./model/openness.yaml
  glasshouse card render ./model/openness.yaml --format html --out openness.html
  glasshouse card diff old.json new.json
  glasshouse card query cards/*.json --status undisclosed

Exit codes: 0 no errors, 1 warnings under --strict, 2 errors.
"""


def register(app: typer.Typer) -> None:
    """Add the command group."""
    group = typer.Typer(no_args_is_help=True, help=HELP, rich_markup_mode="rich", add_completion=False)
    for name, command in COMMANDS.items():
        group.command(name)(command)
    app.add_typer(group, name="card")


def init(
    kind: Annotated[str, typer.Option("--type", "-t", metavar="TYPE", help=f"{TYPES}.")] = "openness",
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="FOLDER_OR_ID", help="A model's folder, or its id on the hub."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name, where no folder tells it.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit of the model, 40 hex digits.")] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="rlhf: preferences (prompt, chosen, rejected, rater_id)."),
    ] = None,
    online: Annotated[bool, typer.Option("--online", help="Ask the hub; else only this disk.")] = False,
    out: Out = None,
) -> int:
    """Start a card: what a model's files tell is filled in, the rest is unknown, nothing is guessed."""
    from glasshouse.governance import from_hf_repo, to_yaml, write_card
    from glasshouse.governance._files import to_card
    from glasshouse.runtime.errors import InputError

    if dataset is not None:
        from glasshouse.governance.rlhf_disclosure import from_artifacts

        folder = Path(source) if source is not None else None
        card = from_artifacts(
            dataset=dataset, policy_dir=folder, name=name, base=out.parent if out else Path()
        )
    elif source is not None:
        card = from_hf_repo(source, kind=kind, revision=revision, online=online)
    elif name is not None:
        subject = {"name": name, **({"revision": revision} if revision else {})}
        card = to_card({"card_type": kind, "subject": subject})
    else:
        raise InputError(
            "nothing says which model", where="card init", fix="give --from FOLDER or --name NAME"
        )
    if out is None:
        print(to_yaml(card), end="")
    else:
        _say(f"card: {write_card(out, card)}")
    _say_coverage(card)
    return 0


def validate(
    card: CardFile,
    kind: Kind = None,
    level: Annotated[int, typer.Option(min=0, max=4, help="0 parse ... 3 sources, 4 policy.")] = 3,
    policy: Annotated[
        str | None, typer.Option(metavar="NAME_OR_FILE", help="What must be disclosed.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where its sources lie; default: beside.")
    ] = None,
    base_card: Bases = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 on warnings.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the lint as JSON.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Also write card-lint.json there.")] = None,
) -> int:
    """Check a card: file, schema, consistency, sources, policy; every complaint has a code and a place."""
    from glasshouse.governance import validate as check

    found = check(card, level=level, policy=policy, kind=kind, base=base, cards=_bases(base_card))
    if out is not None:
        _say(f"lint: {found.save(out)}")
    if as_json:
        _print_json(found.to_json())
    else:
        _print_lint(found)
    return found.exit_code(strict=strict)


def render(
    card: CardFile,
    kind: Kind = None,
    form: Annotated[
        str, typer.Option("--format", "-f", help="html, md, json, yaml, csv, spdx, cyclonedx.")
    ] = "html",
    into: Annotated[
        Path | None, typer.Option(metavar="README", help="md: put it into this README; its own text stays.")
    ] = None,
    out: Out = None,
) -> int:
    """Show a card: one offline page, a README with front matter, or data."""
    from glasshouse.governance import read_card
    from glasshouse.governance._exports import export
    from glasshouse.governance._markdown import conflicts
    from glasshouse.governance._plain import read_text
    from glasshouse.governance._types import card_type

    found = read_card(card, kind)
    readme = read_text(into) if into is not None and into.exists() else ""
    for key in conflicts(readme, card_type(found.card_type).metadata(found)) if into is not None else ():
        _say(f"the README says another {key!r} than the card; the README's stays")
    text = export(found, form, readme=readme, base=card.parent)
    _emit(text, into if form == "md" and into is not None and out is None else out)
    return 0


def diff(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="The earlier card.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="The later card.")],
    kind: Kind = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 when a disclosure was withdrawn.")] = False,
) -> int:
    """List the fields that differ, as JSON lines; what is no longer disclosed is W-REGRESS."""
    from glasshouse.governance import diff as compare
    from glasshouse.governance import read_card, regressions

    changes = compare(read_card(before, kind), read_card(after, kind))
    for change in changes:
        print(json.dumps(change.to_json(), sort_keys=True))
    lost = regressions(changes)
    for issue in lost:
        _say(str(issue))
    return 1 if strict and lost else 0


def schema(
    kind: Annotated[str, typer.Option("--type", "-t", metavar="TYPE", help=f"{TYPES}.")] = "openness",
) -> int:
    """Print the JSON Schema (2020-12) of a type of card."""
    from glasshouse.governance import json_schema

    _print_json(json_schema(kind))
    return 0


def merge(cards: CardFiles, kind: Kind = None, out: Out = None) -> int:
    """One card out of several about one model; where they contradict, the field becomes disputed."""
    from glasshouse.governance import merge as join
    from glasshouse.governance import read_card, to_json, write_card

    joined = join([read_card(card, kind) for card in cards])
    if out is None:
        print(to_json(joined), end="")
    else:
        _say(f"card: {write_card(out, joined)}")
    return 0


def query(
    cards: CardFiles,
    kind: Kind = None,
    field: Annotated[
        str, typer.Option(metavar="PATTERN", help="Pointers such as '/components/training.*'.")
    ] = "*",
    status: Annotated[
        str | None, typer.Option(help="disclosed, undisclosed, unknown or not_applicable.")
    ] = None,
    verified: Annotated[
        str | None, typer.Option(help="verified, self_reported, unverified, disputed.")
    ] = None,
    sql: Annotated[
        str | None, typer.Option(metavar="SELECT", help="One SELECT over the table `fields`.")
    ] = None,
) -> int:
    """Ask cards: their fields as JSON lines, filtered or in SQL."""
    from glasshouse.governance import query_cards, read_card
    from glasshouse.governance._query import run_sql

    rows = query_cards(
        [read_card(card, kind) for card in cards], field=field, status=status, verified=verified
    )
    for row in run_sql(sql, {"fields": rows}) if sql is not None else rows:
        print(json.dumps(row, sort_keys=True, default=str))
    return 0


def score(card: CardFile, base_card: Bases = None) -> int:
    """openness: the score with its bounds, as JSON."""
    from glasshouse.governance import read_card
    from glasshouse.governance.openness import score as grade

    _print_json(grade(read_card(card, "openness"), cards=_bases(base_card)).to_json())
    return 0


def compare(card: CardFile, base_card: Bases = None) -> int:
    """openness: where the card stands among 45 published models, as JSON."""
    from glasshouse.governance import read_card
    from glasshouse.governance.openness import compare as place

    found = place(read_card(card, "openness"), cards=_bases(base_card))
    _print_json({
        "percentile": found.percentile.to_json(), "nearest": dict(found.nearest),
        "surely_above": list(found.surely_above), "surely_below": list(found.surely_below),
        "score": found.score.to_json(),
    })  # fmt: skip
    return 0


def matrix(
    cards: Annotated[
        list[Path] | None, typer.Argument(metavar="CARDS...", help="None: the 45 published.")
    ] = None,
) -> int:
    """openness: models by components, as CSV."""
    import csv

    from glasshouse.governance import read_card
    from glasshouse.governance.openness import matrix as table
    from glasshouse.governance.openness import taxonomy_cards

    given = [read_card(card, "openness") for card in cards] if cards else list(taxonomy_cards().values())
    rows = table(given)
    writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return 0


def stage(
    sheet: Annotated[
        Path | None, typer.Argument(metavar="[SHEET]", help="Your YAML; none: the papers'.")
    ] = None,
) -> int:
    """openness: risks and opportunities by stage of AI development, as JSON."""
    from glasshouse.governance.openness import paper_sheet, read_sheet

    found = paper_sheet() if sheet is None else read_sheet(sheet)
    differs = [] if sheet is None else found.against(paper_sheet())
    _print_json({"rows": found.to_rows(), "by_stage": found.by_stage(), "differs_from_the_papers": differs})
    return 0


COMMANDS: dict[str, Any] = {
    "init": init, "validate": validate, "render": render, "diff": diff, "schema": schema, "merge": merge,
    "query": query, "score": score, "compare": compare, "matrix": matrix, "stage": stage,
}  # fmt: skip


def _bases(paths: list[Path] | None) -> dict[str, Card]:
    from glasshouse.governance import read_card

    cards = [read_card(path, "openness") for path in paths or ()]
    return {card.subject.name: card for card in cards} | {
        card.subject.hf_id: card for card in cards if card.subject.hf_id
    }


def _print_lint(found: Lint) -> None:
    from glasshouse.runtime.text import clean_text

    for issue in found.issues:
        print(clean_text(str(issue)))
    for title, (known, every) in found.coverage.items():
        print(f"{title}: {known} of {every} disclosed")
    for risk in found.exposed:
        print(clean_text(f"exposed: {risk}"))
    _say(f"{len(found.errors)} errors, {len(found.warnings)} warnings, checked to level {found.level}")


def _say_coverage(card: Card) -> None:
    from glasshouse.governance._lint import coverage

    for title, (known, every) in coverage(card).items():
        _say(f"{title}: {known} of {every} disclosed")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False))


def _emit(text: str, out: Path | None) -> None:
    from glasshouse.runtime import files

    if out is None:
        print(text, end="")
    else:
        _say(f"written: {files.write_text(out, text)}")


def _say(message: str) -> None:
    from glasshouse.runtime.text import clean_text

    print(clean_text(message), file=sys.stderr)
