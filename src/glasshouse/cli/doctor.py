"""`glasshouse doctor`: is this machine ready?"""

from __future__ import annotations

import json
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Look at Python, packages, devices, memory, disk and extras; exit 1 if something must be fixed."""
    from dataclasses import asdict

    from glasshouse.runtime.doctor import examine

    observations = examine()
    if as_json:
        print(json.dumps([asdict(observation) for observation in observations], indent=2))
    else:
        width = max(len(observation.name) for observation in observations)
        for observation in observations:
            mark = {True: "ok", False: "FIX", None: "-"}[observation.ok]
            advice = f"   ({observation.advice})" if observation.advice else ""
            print(f"{mark:<4} {observation.name:<{width}}  {observation.value}{advice}")
    if any(observation.ok is False for observation in observations):
        raise typer.Exit(1)
