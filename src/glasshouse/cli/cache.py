"""`glasshouse cache ls|gc`: what is kept, and making room."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Annotated

import typer

from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    from glasshouse.runtime.cache import CacheEntry

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Kind = Annotated[str | None, typer.Option("--kind", help="Only entries of this kind.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(no_args_is_help=True, help="See and clear what is kept under GLASSHOUSE_HOME.")
    group.command("ls")(list_entries)
    group.command("gc")(collect)
    app.add_typer(group, name="cache")


def list_entries(kind: Kind = None, as_json: AsJson = False) -> None:
    """List the entries, the most recently used first."""
    from glasshouse.runtime.cache import Cache

    cache = Cache()
    entries = [entry for entry in cache.ls() if kind in (None, entry.kind)]
    if as_json:
        print(json.dumps([_plain(entry) for entry in entries], indent=2))
        return
    for entry in entries:
        print(_line(entry))
    print(f"{len(entries)} entries, {_size(sum(entry.bytes for entry in entries))}, in {cache.root}")


def collect(
    max_size: Annotated[
        str | None, typer.Option(help="Keep the most recently used up to this size, e.g. 2GB.")
    ] = None,
    older_than: Annotated[
        float | None, typer.Option(min=0, help="Remove what was not used for this many days.")
    ] = None,
    kind: Kind = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove every entry.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove entries; without options only what killed builds left behind."""
    from glasshouse.runtime.cache import Cache

    limit = None if max_size is None else _bytes(max_size)
    removed = Cache().gc(limit, older_than, kind, everything)
    if as_json:
        print(json.dumps([_plain(entry) for entry in removed], indent=2))
        return
    for entry in removed:
        print(f"removed {_line(entry)}")
    print(f"{len(removed)} entries removed, {_size(sum(entry.bytes for entry in removed))} freed")


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B?)", text.strip().upper())
    if match is None:
        raise InputError(f"{text!r} is not a size", fix="write it like 500MB or 2GB")
    unit = match[2] if match[2] in _UNITS else f"{match[2]}B"
    return int(float(match[1]) * _UNITS[unit])


def _size(count: int) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000 * _UNITS[unit]:
            return f"{count / _UNITS[unit]:.3g} {unit}"
    return f"{count / 10**12:.3g} TB"


def _line(entry: CacheEntry) -> str:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
    args = ", ".join(f"{name}={json.dumps(value)[:24]}" for name, value in sorted(entry.args.items()))
    return f"{entry.key[:12]}  {entry.kind:<16} {_size(entry.bytes):>8}  {used}  {args}"[:160]


def _plain(entry: CacheEntry) -> dict[str, object]:
    return {
        "key": entry.key,
        "kind": entry.kind,
        "bytes": entry.bytes,
        "created": entry.created,
        "used": entry.used,
        "args": dict(entry.args),
    }
