"""Which commit set a claim's threshold, and every change since: read from the syntax trees in git's history.

Comparing what is declared (relation, values, null, control), not lines: reformatting is no change, moving a
number is, also when the number stands in a module constant.
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glasshouse.runtime.files import sha256_bytes

UNCOMMITTED = "uncommitted"
BUILT_BY_CODE = "built by code, version"
_SPEC_FIELDS = ("id", "claim", "threshold", "null", "control", "paper")
_THRESHOLD_FIELDS = ("relation", "value", "upper", "why")


@dataclass(frozen=True)
class Change:
    """One declaration of a claim: the commit (or "uncommitted"), its ISO date, and what it declared."""

    commit: str
    when: str | None
    declared: str

    def to_json(self) -> dict[str, Any]:
        """`{"commit","when","declared"}`."""
        return {"commit": self.commit, "when": self.when, "declared": self.declared}


def threshold_history(files: Sequence[Path], ids: Sequence[str]) -> dict[str, list[Change]]:
    """For each claim id the changes of its declaration in `files`, oldest first; empty outside git.

    An id whose ClaimSpec is not written out as a literal call (built in a loop, say) counts as changed by
    every change of the files: the reader is warned too often rather than too seldom.
    """
    history: dict[str, list[Change]] = {claim: [] for claim in ids}
    root = _git_root(files)
    if root is None:
        return history
    names = [path.resolve().relative_to(root).as_posix() for path in files]
    for commit, when in _commits(root, names):
        sources = [_git(root, "show", f"{commit}:{name}") or "" for name in names]
        _append(history, sources, commit, when)
    _append(history, [path.read_text(encoding="utf-8") for path in files], UNCOMMITTED, None)
    return history


def declarations(source: str) -> dict[str, str]:
    """Claim id -> what its literal `ClaimSpec(...)` declares, in canonical text; {} for unparsable source."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return {}
    constants = _constants(tree)
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and _called(node) == "ClaimSpec"):
            continue
        fields = _arguments(node, _SPEC_FIELDS, constants)
        claim = fields.get("id")
        if isinstance(claim, ast.Constant) and isinstance(claim.value, str):
            found[claim.value] = _declared(fields, constants)
    return found


def _append(history: dict[str, list[Change]], sources: list[str], commit: str, when: str | None) -> None:
    literal: dict[str, str] = {}
    for source in sources:
        literal.update(declarations(source))
    for claim, changes in history.items():
        declared = literal.get(claim)
        if declared is None and any(claim.partition("/")[2] in source for source in sources):
            declared = f"{BUILT_BY_CODE} {_digest(sources)}"
        if declared is not None and (not changes or changes[-1].declared != declared):
            changes.append(Change(commit, when, declared))


def _declared(fields: dict[str, ast.expr], constants: dict[str, ast.expr]) -> str:
    threshold = fields.get("threshold")
    parts: list[str] = []
    if isinstance(threshold, ast.Call):
        inner = _arguments(threshold, _THRESHOLD_FIELDS, constants)
        parts += [f"{name}={ast.unparse(inner[name])}" for name in _THRESHOLD_FIELDS[:3] if name in inner]
    elif threshold is not None:
        parts.append(f"threshold={ast.unparse(threshold)}")
    parts += [f"{name}={ast.unparse(fields[name])}" for name in ("null", "control") if name in fields]
    return ", ".join(parts)


def _arguments(call: ast.Call, order: Sequence[str], constants: dict[str, ast.expr]) -> dict[str, ast.expr]:
    given = dict(zip(order, call.args, strict=False))
    given |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    return {name: _Resolve(constants).visit(ast.parse(ast.unparse(value), mode="eval").body)
            for name, value in given.items()}  # fmt: skip


class _Resolve(ast.NodeTransformer):
    """Put the value of a module constant in the place of its name."""

    def __init__(self, constants: dict[str, ast.expr]) -> None:
        self.constants = constants

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.constants.get(node.id, node)


def _constants(tree: ast.Module) -> dict[str, ast.expr]:
    found: dict[str, ast.expr] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            found[node.target.id] = node.value
    return found


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _canonical(source: str) -> str:
    try:
        return ast.unparse(ast.parse(source))
    except (SyntaxError, ValueError):
        return source


def _digest(sources: list[str]) -> str:
    """Stands for the whole of the sources: the commit holds them."""
    return sha256_bytes("\n".join(_canonical(source) for source in sources).encode())[:12]


def _git_root(files: Sequence[Path]) -> Path | None:
    """The work tree that holds all `files`, None outside git (an installed wheel) or without git."""
    if not files or not all(path.is_file() for path in files):
        return None
    folder = _git(files[0].resolve().parent, "rev-parse", "--show-toplevel")
    root = Path(folder.strip()).resolve() if folder else None
    if root is None or not all(path.resolve().is_relative_to(root) for path in files):
        return None
    # A file in an ignored folder (a virtual environment inside a checkout) has no history to speak of.
    ignored = _git(root, "check-ignore", *(str(path.resolve()) for path in files))
    return None if ignored else root


def _commits(root: Path, names: list[str]) -> list[tuple[str, str]]:
    """(hash, ISO date) of the commits that touched the files, oldest first."""
    log = _git(root, "log", "--reverse", "--topo-order", "--format=%H %cI", "--", *names) or ""
    return [(line.split()[0], line.split()[1]) for line in log.splitlines()]


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True, text=True, encoding="utf-8", check=False,
        )  # fmt: skip
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
