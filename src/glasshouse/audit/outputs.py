"""What an audit writes: `findings.json`, `report.html`, the grader's `graded.json`; each whole or not."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glasshouse.evidence.findings import Findings
from glasshouse.evidence.report import render_report
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError

FINDINGS, REPORT, GRADED = "findings.json", "report.html", "graded.json"


def check_writable(folder: Path) -> None:
    """Raise InputError unless files can be written into `folder` or it can be made; leaves nothing."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise InputError(f"{place} is a file", where=str(folder), fix="give a folder")
    try:
        Path(tempfile.mkdtemp(dir=place, prefix=".glasshouse-")).rmdir()
    except OSError as error:
        raise InputError(
            f"nothing can be written there ({error.strerror})", where=str(folder), fix="give another folder"
        ) from error


def write_outputs(folder: Path, findings: Findings, provenance: Mapping[str, Any]) -> Path:
    """Write `findings.json` and the report; a grade of an earlier audit goes. Returns the report's path."""
    (folder / GRADED).unlink(missing_ok=True)
    files.write_json(folder / FINDINGS, findings.model_dump(mode="json"))
    return files.write_text(folder / REPORT, render_report(findings, provenance=provenance))


def write_graded(
    folder: Path, findings: Findings, graded: Mapping[str, Any], provenance: Mapping[str, Any]
) -> None:
    """Write the grader's verdict beside the findings, and append it to the report as the last section."""
    files.write_json(folder / GRADED, dict(graded))
    files.write_text(folder / REPORT, render_report(findings, graded=graded, provenance=provenance))
