"""`glasshouse list`: what is plugged in."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from glasshouse import _registry
from glasshouse.runtime.errors import GlasshouseError

SHOWN = ("checks", "organisms", "studies", "tasks", "executors")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("list")(list_)


def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """List the checks, organisms, studies, tasks and executors installed here, third parties' included."""
    found = {group: [_describe(group, name) for name in _names(group)] for group in SHOWN}
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for group, entries in found.items():
        print(f"{group}")
        width = max((len(entry["name"]) for entry in entries), default=0)
        for entry in entries:
            print(f"  {entry['name']:<{max(width, 20)}} {entry['about']}".rstrip())
        if not entries:
            print("  (none)")


def _names(group: str) -> list[str]:
    if group == "studies":
        from glasshouse.studies._study import available

        return available()
    return sorted(_tasks()) if group == "tasks" else _registry.names(group)


def _load(group: str, name: str) -> Any:
    if group == "studies":
        from glasshouse.studies._study import find

        return find(name)
    return _tasks()[name] if group == "tasks" else _registry.load(group, name)


def _tasks() -> dict[str, Any]:
    """Our evaluations, by the names `glasshouse eval` takes."""
    import glasshouse._inspect as registered

    found = {name: getattr(thing, "__registry_info__", None) for name, thing in vars(registered).items()}
    return {name: getattr(registered, name) for name, info in found.items() if info and info.type == "task"}


def _describe(group: str, name: str) -> dict[str, str]:
    try:
        thing = _load(group, name)
    except GlasshouseError as error:
        return {"name": name, "about": f"cannot be loaded: {error}"}
    return {"name": name, "about": _about(thing)}


def _about(thing: Any) -> str:
    title = getattr(thing, "title", None)
    if isinstance(title, str) and title:
        return title
    doc = getattr(thing, "__doc__", None) or ""
    return doc.strip().splitlines()[0] if doc.strip() else ""
