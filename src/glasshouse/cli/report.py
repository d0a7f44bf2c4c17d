"""`glasshouse report`: write the report of an audit anew from its stored findings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from glasshouse.runtime.errors import InputError

SOURCE = typer.Argument(
    metavar="FOLDER_OR_FINDINGS", help="What `glasshouse audit --out` wrote, or its findings.json."
)
FIX = "give the folder or the findings.json that an audit wrote"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report")(report)


def report(
    source: Annotated[str, SOURCE] = "glasshouse-report",
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Where the page goes. Default: report.html beside.")
    ] = None,
) -> None:
    """Render report.html again from stored findings; nothing is asked of a model.

    \b
    Examples:
      glasshouse report                     the last audit's page, in the look of this version
      glasshouse report audits/model-a --out model-a.html
      glasshouse report findings.json

    Exit codes: 0 written, 2 the findings are missing or damaged.
    """  # noqa: D301
    from glasshouse.evidence.report import render_report
    from glasshouse.runtime import files

    path = Path(source).expanduser()
    path = path / "findings.json" if path.is_dir() else path
    findings = read_findings(path)
    graded_at = path.with_name("graded.json")
    graded = _json(graded_at) if graded_at.is_file() else None
    target = Path(out) if out is not None else path.with_name("report.html")
    if target.is_dir():
        raise InputError("this is a folder", where=str(target), fix="give --out a file name")
    page = render_report(findings, graded=graded, provenance={"rendered from": path.name})
    print(f"Report: {files.write_text(target, page)}")


def read_findings(path: Path) -> Any:
    """The findings in a file. Raises InputError for anything that is not whole."""
    from pydantic import ValidationError

    from glasshouse.evidence.findings import Findings

    data = _json(path)
    try:
        return Findings.model_validate(data)
    except ValidationError as error:
        at = ".".join(map(str, error.errors()[0]["loc"])) or "the whole file"
        raise InputError(f"these findings are damaged (at {at})", where=str(path), fix=FIX) from error


def _json(path: Path) -> Any:
    from glasshouse.runtime import files

    try:
        return files.read_json(path)
    except OSError as error:
        raise InputError(
            f"there are no findings to read ({error.strerror})", where=str(path), fix=FIX
        ) from error
    except ValueError as error:  # torn JSON, or bytes that are no text
        raise InputError("this file is damaged: it is not JSON", where=str(path), fix=FIX) from error
