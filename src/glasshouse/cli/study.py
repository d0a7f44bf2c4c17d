"""`glasshouse study`: run one paper's experiment, or list them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from glasshouse.studies._execute import StudyResult


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("study")(study)


def study(
    slug: Annotated[str | None, typer.Argument(help="Which study; none lists them.")] = None,
    config: Annotated[
        str, typer.Option(help="'laptop' (minutes on two cores) or 'paper' (a GPU or a key).")
    ] = "laptop",
    seeds: Annotated[
        int | None, typer.Option(min=1, help="How many seeds; default: the configuration's.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("glasshouse-runs"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    ledger: Annotated[
        Path | None, typer.Option(help="Also store the claims in this folder, such as docs/ledger.")
    ] = None,
) -> None:
    """Run a study (a killed one resumes) and print its claims; without a slug, list all studies."""
    from glasshouse.studies import available, find

    if slug is None:
        for name in available():
            found = find(name)
            print(f"{name:<18} {found.wing:<14} {len(found.claims):>2} claims  {found.title}")
        return
    from glasshouse.studies._execute import run_study

    result = run_study(find(slug), config=config, seeds=seeds, out=out, device=device)
    stored = result.to_ledger(ledger) if ledger is not None else None
    _show(result)
    if stored is not None:
        print(f"ledger: {stored}")


def _show(result: StudyResult) -> None:
    from glasshouse.evidence.claims import Claim
    from glasshouse.runtime.text import clean_text
    from glasshouse.studies._execute import outputs

    for row in result.claims:
        print(f"{row['verdict']:<10} {row['id']}  {clean_text(row['claim'])}")
        if row["estimate"] is not None:
            claim = Claim.from_json(row)
            print(f"{'':<10} {claim.estimate}; threshold {claim.spec.threshold}")
            if claim.control is not None:
                print(f"{'':<10} control, {clean_text(claim.spec.control)}: {claim.control}")
        if row["note"]:
            print(f"{'':<10} {clean_text(row['note'])}")
    for path in outputs(result.folder):
        print(path)
    print(f"run: {result.folder}")
