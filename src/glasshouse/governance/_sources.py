"""Sources looked up on this disk: hashes, quotes, numbers against the runs they cite. Nothing is fetched."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from glasshouse.governance._card import Card, CardField, Quantity, Source
from glasshouse.governance._errors import CardError
from glasshouse.governance._lint import Context, Issue
from glasshouse.runtime import files
from glasshouse.runtime.errors import GlasshouseError

_WEB = re.compile(r"https?://[^\s<>\"'\\]+", re.IGNORECASE)
_DOI = re.compile(r"(?:doi:|https?://(?:dx\.)?doi\.org/)?10\.\d{4,9}/[^\s<>\"'\\]+", re.IGNORECASE)
_REPO = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w.-]+)?(:[\w./ -]+)?")
TOLERANCE = 1e-6
_SMALL = 50_000_000


def run_hash(folder: Path | str) -> str:
    """One hash for a finished run: of every file it holds, by relative name."""
    root = Path(folder)
    held = sorted(path for path in root.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return files.sha256_json({path.relative_to(root).as_posix(): files.sha256_file(path) for path in held})


def run_source(folder: Path | str, *, base: Path | str, metric: str = "", quote: str = "") -> Source:
    """A `Source` for a finished run under `base`; `metric` is a claim's id, or `step/key/...` in a step."""
    place = Path(folder).resolve().relative_to(Path(base).resolve()).as_posix()
    ref = f"{place}#{metric}" if metric else place
    return Source(kind="run", ref=ref, sha256=run_hash(folder), quote=quote)


def file_source(path: Path | str, *, base: Path | str, quote: str = "", hashed: bool = True) -> Source:
    """A `Source` for a file under `base`; not `hashed` where its quote is what must stay."""
    place = Path(path).resolve().relative_to(Path(base).resolve()).as_posix()
    return Source(
        kind="file", ref=place, sha256=files.sha256_file(path) if hashed else None, quote=quote[:300]
    )


def check_sources(card: Card, context: Context) -> Iterator[Issue]:
    """L3: every source of every field, and stated numbers against the run they cite."""
    for pointer, one in card.fields():
        for index, source in enumerate(one.sources):
            yield from _check(source, one, f"{pointer}/sources/{index}", pointer, context)
    for index, statement in enumerate(card.statements):
        for at, source in enumerate(statement.sources):
            yield from _check(source, None, f"/statements/{index}/sources/{at}", "", context)


def run_metrics(card: Card, context: Context) -> list[dict[str, Any]]:
    """Headline numbers of the runs the card cites: one row per claim, or per metric that a source names."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for _, one in card.fields():
        for source in one.sources:
            if source.kind != "run" or context.base is None:
                continue
            place, _, metric = source.ref.partition("#")
            try:
                run = read_run(inside(context.base, place))
                found = {metric: look_up(run, metric)} if metric else headline(run)
            except (GlasshouseError, KeyError, OSError, ValueError):
                continue  # `check_sources` says why
            for name, value in found.items():
                rows[place, name] = {"run": place, "metric": name, "value": value}
    return list(rows.values())


def inside(base: Path, ref: str) -> Path:
    """`ref` below `base`. Raises CardError (E-SRC-PATH) when it leaves it, by `..`, a root or a link."""
    escape = CardError.of("E-SRC-PATH", f"{ref!r} is not under the card's folder", fix="copy it there")
    if not ref or "\x00" in ref or "\\" in ref or Path(ref).is_absolute() or ":" in ref.split("/")[0]:
        raise escape
    root = base.resolve()
    try:
        target = (root / ref).resolve()
    except (OSError, RuntimeError) as error:
        raise escape from error
    if not target.is_relative_to(root):
        raise escape
    return target


def read_run(folder: Path) -> dict[str, Any]:
    """`spec`, `notes`, `steps` and, for a study, `claims` of a finished run; CardError (E-RUN) otherwise."""
    from glasshouse.runtime.runs import Run

    try:
        summary = files.read_json(folder / "run.json")
        name, spec = summary["name"], summary["spec"]
        if folder.name != f"{name}-{files.sha256_json(spec)[:12]}":
            raise CardError.of("E-RUN", "the folder's name is not that of its settings", where=folder.name)
        with Run.open(folder.parent, name, spec) as run:
            found = {"spec": run.spec, "notes": run.notes, "steps": run.steps, "claims": []}
        claims = folder / "claims.json"
        if claims.is_file():
            found["claims"] = files.read_json(claims)["claims"]
        return found
    except CardError:
        raise
    except (OSError, ValueError, KeyError, TypeError, GlasshouseError) as error:
        raise CardError.of(
            "E-RUN", f"it is no finished run ({type(error).__name__})", where=folder.name
        ) from error


def look_up(run: Mapping[str, Any], metric: str) -> Any:
    """A claim's estimate by its id, or what lies at `step/key/...`; KeyError when it is not there."""
    for claim in run["claims"]:
        if claim["id"] == metric:
            return claim["estimate"]
    steps = run["steps"]
    for name in sorted(steps, key=len, reverse=True):
        if metric == name or metric.startswith(f"{name}/"):
            value = steps[name]
            for key in filter(None, metric[len(name) :].split("/")):
                value = value[int(key)] if isinstance(value, list) else value[key]
            return value
    raise KeyError(metric)


def headline(run: Mapping[str, Any]) -> dict[str, Any]:
    """Claim id -> verdict and value; for a run without claims, its steps that are one number or estimate."""
    if run["claims"]:
        return {
            claim["id"]: {"verdict": claim["verdict"], "value": (claim["estimate"] or {}).get("value")}
            for claim in run["claims"]
        }
    return {name: value for name, value in run["steps"].items() if number_of(value) is not None}


def number_of(value: Any) -> float | None:
    """The number in a step's value: itself, or the `value` of an estimate."""
    if isinstance(value, Mapping):
        value = value.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)


def safe_ref(source: Source) -> bool:
    """Whether a reference is a web address, a doi, a repository's name or a plain path."""
    if source.kind == "url":
        return bool(_WEB.fullmatch(source.ref))
    if source.kind == "doi":
        return bool(_DOI.fullmatch(source.ref))
    if source.kind == "repo":
        return bool(_WEB.fullmatch(source.ref) or _REPO.fullmatch(source.ref))
    return True


def _check(
    source: Source, one: CardField[Any] | None, pointer: str, field_pointer: str, context: Context
) -> Iterator[Issue]:
    if source.kind not in ("file", "run"):
        if not safe_ref(source):
            yield Issue("W-URL", f"{pointer}/ref", f"this is no {source.kind}", "it is shown, and not linked")
        return
    if context.base is None:
        return
    place, _, metric = source.ref.partition("#") if source.kind == "run" else (source.ref, "", "")
    try:
        target = inside(context.base, place)
        if not target.exists():
            raise CardError.of(
                "E-SRC-MISSING", f"{place!r} is not there", fix="restore it or drop the source"
            )
        yield from (
            _check_file(source, target, pointer)
            if source.kind == "file"
            else _check_run(source, one, target, metric, pointer, field_pointer)
        )
    except CardError as error:
        yield Issue(error.code, f"{pointer}/ref", error.what, error.fix or "")
    except OSError as error:
        yield Issue("E-SRC-MISSING", f"{pointer}/ref", f"it cannot be read ({error.strerror})")


def _check_file(source: Source, target: Path, pointer: str) -> Iterator[Issue]:
    if source.sha256 is not None:
        if not target.is_file() or files.sha256_file(target) != source.sha256:
            yield Issue("E-SRC-HASH", f"{pointer}/sha256", "the file is not the one that was hashed", _STALE)
    elif source.quote and target.is_file() and target.stat().st_size <= _SMALL:
        if source.quote.encode() not in target.read_bytes():
            yield Issue("E-SRC-HASH", f"{pointer}/quote", "the file no longer says this", _STALE)
    else:
        yield Issue("W-SRC-UNHASHED", pointer, "neither hash nor quote", "add sha256")


def _check_run(
    source: Source, one: CardField[Any] | None, target: Path, metric: str, pointer: str, field_pointer: str
) -> Iterator[Issue]:
    run = read_run(target)
    if source.sha256 is None:
        yield Issue("W-SRC-UNHASHED", pointer, "the run has no hash", "add sha256")
    elif run_hash(target) != source.sha256:
        yield Issue("E-SRC-HASH", f"{pointer}/sha256", "the run is not the one that was hashed", _STALE)
    if not metric:
        return
    try:
        measured = look_up(run, metric)
    except (KeyError, IndexError, TypeError, ValueError):
        yield Issue("E-RUN-METRIC", f"{pointer}/ref", f"the run holds no {metric!r}")
        return
    stated = one.value.value if one is not None and isinstance(one.value, Quantity) else one and one.value
    yield from _compare(stated, measured, field_pointer)


def _compare(stated: Any, measured: Any, pointer: str) -> Iterator[Issue]:
    if isinstance(measured, Mapping) and "value" not in measured:
        return  # a whole step is cited, not one of its numbers
    number = number_of(measured)
    if isinstance(stated, int | float) and not isinstance(stated, bool):
        if number is None or not math.isclose(stated, number, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            yield Issue(
                "E-RUN-METRIC", f"{pointer}/value", f"{stated:g} is stated, the run measured {number}"
            )
    elif isinstance(stated, str | bool) and stated != measured:
        yield Issue("E-RUN-METRIC", f"{pointer}/value", "the run says something else")


_STALE = "look again, then write the new hash"
