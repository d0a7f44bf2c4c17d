"""`glasshouse grow`: grow an organism again and compare it with the one that ships."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("grow")(grow)


def grow(
    name: Annotated[str, typer.Argument(help="Which organism; `glasshouse list` names them.")] = "resident",
    out: Annotated[
        Path | None, typer.Option(help="Folder to grow into (must not exist). Default: ./NAME-SEED.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of world, rows and weights. Default: the shipped one's.")
    ] = None,
) -> None:
    """Grow an organism from nothing, measure what installed, and compare with the shipped one.

    About a minute of one core for each of the two that ship. Exit code 1 when it was grown with the shipped
    one's seed and differs from it in a rate by more than 0.05.
    """
    from glasshouse import __version__, _registry
    from glasshouse.audit.target import grow_into
    from glasshouse.organisms.regrowth import compare, shipped

    organism = _registry.load("organisms", name)
    standing = shipped(name)
    use = seed if seed is not None else (standing[1].seed if standing else 0)
    folder = grow_into(name, out=out or Path(f"{name}-{use}"), seed=use)
    report = compare(folder, standing)
    print(f"{organism.slug} (glasshouse {__version__}), seed {use}, in {folder}")
    for line in report.lines():
        print(line)
    raise typer.Exit(0 if report.agrees else 1)
