"""Untrusted bytes to plain data, and plain data to text that reads back as the same data.

A card comes from anyone. Size, depth and number of nodes are bounded before anything is built; YAML is read
as plain scalars, lists and maps only, without aliases (a few lines of them unfold to gigabytes), without
repeated keys, and without YAML's own dates and its `no` for false, so that it means what JSON means.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from glasshouse.governance._errors import CardError

MAX_BYTES = 5_000_000
MAX_DEPTH = 40
MAX_NODES = 200_000
_BOOL = re.compile(r"true|false|True|False|TRUE|FALSE")


def read_text(path: Path | str, *, limit: int = MAX_BYTES) -> str:
    """The text of a file of at most `limit` bytes, UTF-8.

    Raises CardError (E-READ, E-SIZE, E-ENCODING) naming the file.
    """
    source = Path(path)
    try:
        if not source.is_file():
            raise CardError.of("E-READ", "there is no such file", where=str(source), fix="give a card's file")
        with source.open("rb") as handle:
            data = handle.read(limit + 1)
    except OSError as error:
        raise CardError.of("E-READ", f"it cannot be read ({error.strerror})", where=str(source)) from error
    if len(data) > limit:
        raise CardError.of(
            "E-SIZE", f"the file has more than {limit:,} bytes", where=str(source), fix="a card is small text"
        )
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise CardError.of(
            "E-ENCODING", f"byte {error.start} is not UTF-8", where=str(source), fix="save it as UTF-8"
        ) from error


def parse_json(text: str, *, where: str = "JSON") -> Any:
    """JSON without NaN, repeated keys or deep nesting. Raises CardError with the line."""
    _check_length(text, where)
    try:
        data = json.loads(text, object_pairs_hook=_unique(where), parse_constant=_no_constant(where))
    except RecursionError:
        raise _too_deep(where) from None
    except json.JSONDecodeError as error:
        raise CardError.of("E-PARSE", f"line {error.lineno}: {error.msg}", where=where) from error
    except ValueError as error:
        if isinstance(error, CardError):
            raise
        raise CardError.of("E-PARSE", f"a number is out of range ({error})", where=where) from error
    return check_plain(data, where)


def parse_yaml(text: str, *, where: str = "YAML", first_line: int = 1) -> Any:
    """YAML as plain data (JSON's types). Raises CardError with the line, counted from `first_line`."""
    import yaml

    _check_length(text, where)
    try:
        _check_events(text, where, first_line)
        data = yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f"line {mark.line + first_line}: " if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise CardError.of("E-PARSE", f"{at}{problem}", where=where, fix="repair the YAML") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, CardError):
            raise
        raise CardError.of("E-PARSE", f"a value cannot be read ({error})", where=where) from error
    return check_plain(data, where)


def check_plain(data: Any, where: str = "data") -> Any:
    """`data` if it is JSON's types within the bounds and without NaN or lone surrogates; else CardError."""
    for nodes, (depth, value) in enumerate(_walk(data), 1):
        if depth > MAX_DEPTH:
            raise _too_deep(where)
        if nodes > MAX_NODES:
            raise CardError.of("E-SIZE", f"it has more than {MAX_NODES:,} values", where=where)
        if isinstance(value, float) and not math.isfinite(value):
            raise CardError.of(
                "E-NAN", "it holds NaN or infinity", where=where, fix="leave the field unknown"
            )
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            raise CardError.of("E-ENCODING", "it holds half a character (a lone surrogate)", where=where)
        if not isinstance(value, str | int | float | bool | list | dict | None):
            raise CardError.of("E-PARSE", f"it holds a {type(value).__name__}", where=where)
    return data


def canonical(data: Any) -> str:
    """The one JSON text of plain data: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def dump_yaml(data: Any) -> str:
    """YAML that `parse_yaml` reads back as the same data, whatever characters the strings hold."""
    import yaml

    return str(yaml.dump(data, Dumper=_dumper(), sort_keys=True, allow_unicode=True, width=1000))


def _loader() -> Any:
    """SafeLoader (the C one where there is one) with JSON's scalars only and no repeated keys."""
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):
        """Keeps to what JSON can say."""

        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
            first: [(tag, rule) for tag, rule in rules if not tag.endswith((":timestamp", ":bool"))]
            for first, rules in base.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys: set[str] = set()
            for key_node, _ in node.value:
                key = key_node.value
                if not isinstance(key, str) or key in keys:
                    said = repr(key[:60]) if isinstance(key, str) else "a list or map"
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {said} cannot be used twice or is no text", key_node.start_mark
                    )
                keys.add(key)
            return {str(k): v for k, v in super().construct_mapping(node, deep=deep).items()}

    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(f"^(?:{_BOOL.pattern})$"), list("tTfF"))
    return Loader


def _dumper() -> Any:
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes every text that any YAML reader could take for something else."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: Any, value: str) -> Any:
        plain = re.fullmatch(r"[A-Za-z][\w ./:()-]*[\w./)-]|[A-Za-z]", value, re.ASCII)
        words = value.lower() not in ("yes", "no", "on", "off", "y", "n", "true", "false", "null")
        style = None if plain and words and ": " not in value else '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return Dumper


def _check_events(text: str, where: str, first_line: int) -> None:
    """Refuse aliases, anchors, tags, depth and size from the stream of events, before anything is built."""
    import yaml

    depth = nodes = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        line = event.start_mark.line + first_line if event.start_mark is not None else first_line
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise CardError.of(
                "E-ALIAS", f"line {line}: anchors and aliases are not read", where=where, fix="write it out"
            )
        tag = getattr(event, "tag", None)
        if tag and tag.startswith(("!", "tag:yaml.org,2002:python")):
            raise CardError.of("E-TAG", f"line {line}: the tag {tag[:60]} is not read", where=where)
        starts = isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent)
        depth += starts - isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent)
        nodes += starts or isinstance(event, yaml.ScalarEvent)
        if depth > MAX_DEPTH:
            raise _too_deep(where)
        if nodes > MAX_NODES:
            raise CardError.of("E-SIZE", f"it has more than {MAX_NODES:,} values", where=where)


def _walk(data: Any) -> Iterator[tuple[int, Any]]:
    """Every value and key with its depth, without recursion."""
    waiting = [(0, data)]
    while waiting:
        depth, value = waiting.pop()
        yield depth, value
        if isinstance(value, Mapping):
            waiting += [(depth + 1, item) for pair in value.items() for item in pair]
        elif isinstance(value, list):
            waiting += [(depth + 1, item) for item in value]


def _unique(where: str) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in items:
            if key in found:
                raise CardError.of("E-PARSE", f"the key {key[:60]!r} stands twice", where=where)
            found[key] = value
        return found

    return pairs


def _no_constant(where: str) -> Any:
    def refuse(name: str) -> Any:
        raise CardError.of("E-NAN", f"it holds {name}", where=where, fix="leave the field unknown")

    return refuse


def _check_length(text: str, where: str) -> None:
    if len(text) > MAX_BYTES:
        raise CardError.of("E-SIZE", f"the text has more than {MAX_BYTES:,} characters", where=where)


def _too_deep(where: str) -> CardError:
    return CardError.of("E-DEPTH", f"it is nested more than {MAX_DEPTH} deep", where=where)
