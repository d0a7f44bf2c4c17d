"""The figures of stored runs, as small SVG files beside the claims: `<ledger>/figures/<study>/<name>.svg`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError

FOLDER = "figures"


@dataclass(frozen=True)
class LedgerFigure:
    """One SVG file beside the ledger, and the run it was drawn from."""

    study: str
    name: str
    path: Path
    run: str


@dataclass(frozen=True)
class StoredFigures:
    """What `store_figures` did: the files it wrote, and why figures were left out, by name."""

    written: tuple[Path, ...]
    left_out: dict[str, str]


def store_figures(folder: Path | str, run: Path | str) -> StoredFigures:
    """Draw the figures in the run folder `run` into the ledger's `folder`, in the place of older ones.

    Raises InputError where `run` is not the folder of a finished study.
    """
    from glasshouse.evidence.plots import figure_svg

    source = Path(run)
    study = _study_of(source)
    target = Path(folder) / FOLDER / study
    written, left_out = list[Path](), dict[str, str]()
    for path in sorted(source.glob("figures/*.json")):
        try:
            svg = figure_svg(files.read_json(path), run=source.name, name=path.stem)
        except InputError as error:
            left_out[path.stem] = str(error)
            continue
        written.append(files.write_text(target / f"{path.stem}.svg", svg))
    for old in target.glob("*.svg"):
        if old not in written:
            old.unlink()
    return StoredFigures(tuple(written), left_out)


def stored_figures(folder: Path | str) -> dict[str, list[LedgerFigure]]:
    """Study slug -> its figures by name; {} where there are none."""
    from glasshouse.evidence.plots import run_of

    found: dict[str, list[LedgerFigure]] = {}
    for path in sorted((Path(folder) / FOLDER).glob("*/*.svg")):
        study = path.parent.name
        run = run_of(path.read_text(encoding="utf-8"))
        found.setdefault(study, []).append(LedgerFigure(study, path.stem, path, run))
    return found


def find_run(roots: Iterable[Path | str], run: str) -> Path | None:
    """The folder of the run called `run` under one of `roots`, at most two folders down; else None."""
    for root in map(Path, roots):
        for pattern in (run, f"*/{run}", f"*/*/{run}"):
            for found in sorted(root.glob(pattern)):
                if (found / "claims.json").is_file():
                    return found
    return None


def _study_of(run: Path) -> str:
    try:
        return str(files.read_json(run / "claims.json")["study"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"this is not the folder of a finished study ({type(error).__name__})",
            where=str(run),
            fix="give a folder that `glasshouse study` wrote",
        ) from error
