"""The version of the code behind a stored result: a hash of what the code does, not of how it is explained.

The hash covers the docstring-stripped syntax tree of the defining module and of every glasshouse module it
imports, transitively (imports inside functions count, imports for type checkers do not). Modules that only
show things (command line, progress, plots, reports) are left out: changing them cannot change a number. So is
the registry, a list of names: whoever loads something by name puts its code version into the key.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from glasshouse.runtime.errors import InputError

LEFT_OUT = frozenset({"cli", "progress", "plots", "figures", "report", "doctor", "_registry"})
_OURS = "glasshouse"


@dataclass(frozen=True)
class _Code:
    digest: str
    imports: frozenset[tuple[str, tuple[str, ...]]]
    lazy_names: frozenset[str]
    home_of: frozenset[tuple[str, str]]
    """Pairs (name, module) of the package's dictionaries of lazy names, in either direction of writing."""


def code_version(obj: ModuleType | Callable[..., Any] | str) -> str:
    """Hex hash (16 characters) of the code behind a module, a module name, a function or a class.

    Raises InputError when the source cannot be found.
    """
    name, source = _origin(obj)
    if source is not None:
        first = _parse(source, name, is_package=False)
    else:
        path = _module_path(name)
        if path is None:
            raise InputError(f"the source of {name!r} cannot be found", fix="define it in a module on disk")
        first = _read(path, name)
    digests = {name: first.digest}
    waiting = list(_targets(first, name))
    while waiting:
        module = waiting.pop()
        path = None if module in digests else _module_path(module)
        if path is not None:
            code = _read(path, module)
            digests[module] = code.digest
            waiting += _targets(code, name)
    text = "\n".join(f"{module} {digest}" for module, digest in sorted(digests.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _origin(obj: ModuleType | Callable[..., Any] | str) -> tuple[str, str | None]:
    """Name of the defining module, with its source text where it is no importable file (script, notebook)."""
    if isinstance(obj, str):
        return obj, None
    if isinstance(obj, ModuleType):
        name: str = obj.__name__
    else:
        while isinstance(obj, functools.partial):
            obj = obj.func
        target = inspect.unwrap(obj)
        name = getattr(target, "__module__", None) or type(target).__module__
        obj = target
    if name != "__main__" and _module_path(name) is not None:
        return name, None
    main = getattr(sys.modules.get(name), "__file__", None)
    if main is not None and Path(main).is_file():
        return name, Path(main).read_text(encoding="utf-8")
    if isinstance(obj, str):
        return obj, None
    try:
        return name, inspect.cleandoc("\n" + inspect.getsource(obj))
    except (OSError, TypeError) as error:
        raise InputError(f"the source of {obj!r} cannot be found", fix="define it in a file") from error


def _counts(module: str, start: str) -> bool:
    parts = module.split(".")
    return parts[0] in {_OURS, start.split(".")[0]} and not LEFT_OUT.intersection(parts[1:])


def _targets(code: _Code, start: str) -> Iterator[str]:
    """Modules that `code` imports; a name taken from a package may be a module or a lazy re-export."""
    for source, names in code.imports:
        if not _counts(source, start):
            continue
        yield source
        for name in names:
            submodule = f"{source}.{name}"
            if _module_path(submodule) is None:
                yield from (module for module in _lazy_modules(source, name) if _counts(module, start))
            elif _counts(submodule, start):
                yield submodule


def _lazy_modules(package: str, wanted: str) -> Iterator[str]:
    """Modules a package with a module-level `__getattr__` may load for a name.

    Those its dictionaries give for the name, or, where they do not tell, any that it names in strings.
    """
    path = _module_path(package)
    if path is None or path.name != "__init__.py":
        return
    code = _read(path, package)
    homes = {home for name, home in code.home_of if name == wanted}
    for name in homes or code.lazy_names:
        for candidate in (name, f"{package}.{name.lstrip('.')}"):
            if candidate.startswith(f"{package}.") and _module_path(candidate) is not None:
                yield candidate


def _module_path(module: str) -> Path | None:
    """The file of a module, found without importing anything but its top package."""
    if not all(part.isidentifier() for part in module.split(".")):
        return None
    top, *rest = module.split(".")
    for root in _roots(top):
        base = root.joinpath(*rest)
        if (base / "__init__.py").is_file():
            return base / "__init__.py"
        if rest and base.with_suffix(".py").is_file():
            return base.with_suffix(".py")
        if not rest and root.suffix == ".py":
            return root
    return None


def _roots(top: str) -> list[Path]:
    try:
        spec = importlib.util.find_spec(top)
    except (ValueError, ImportError):
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [Path(folder) for folder in spec.submodule_search_locations]
    return [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") else []


def _read(path: Path, module: str) -> _Code:
    stat = path.stat()
    return _read_version(path, module, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1024)
def _read_version(path: Path, module: str, mtime_ns: int, size: int) -> _Code:
    return _parse(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py")


def _parse(source: str, module: str, *, is_package: bool) -> _Code:
    tree = _Strip().visit(ast.parse(source))
    lazy = any(_defines_getattr(node) for node in tree.body)
    hashed = ast.Module([node for node in tree.body if not (lazy and _is_list_of_names(node))], [])
    digest = hashlib.sha256(ast.dump(hashed, annotate_fields=False).encode("utf-8", "replace")).hexdigest()
    package = module if is_package else module.rpartition(".")[0]
    nodes = list(ast.walk(tree))
    names = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    homes = {pair for node in nodes if isinstance(node, ast.Dict) for pair in _home_pairs(node)}
    return _Code(
        digest,
        frozenset(_imports(nodes, package)),
        frozenset(names if lazy else ()),
        frozenset(homes if lazy else ()),
    )


def _defines_getattr(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign):  # __getattr__, __dir__ = lazy_names(...)
        return any(
            isinstance(name, ast.Name) and name.id == "__getattr__"
            for target in node.targets
            for name in ast.walk(target)
        )
    return isinstance(node, ast.FunctionDef) and node.name == "__getattr__"


def _is_list_of_names(node: ast.stmt) -> bool:
    """Tables of lazy names and `__all__`: what a name stands for counts by the module that is brought in."""
    if not isinstance(node, ast.Assign):
        return False
    if isinstance(node.value, ast.Dict):
        return any(True for _ in _home_pairs(node.value))
    return any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)


def _home_pairs(node: ast.Dict) -> Iterator[tuple[str, str]]:
    """(name, module) of `{name: module}` and of `{module: (name, ...)}`."""
    for key, value in zip(node.keys, node.values, strict=True):
        if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
            continue
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield key.value, value.value
        elif isinstance(value, ast.Tuple | ast.List):
            for one in value.elts:
                if isinstance(one, ast.Constant) and isinstance(one.value, str):
                    yield one.value, key.value


def _imports(nodes: list[ast.AST], package: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ()
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                base = package.split(".")[: len(package.split(".")) - node.level + 1]
                source = ".".join([*base, source] if source else base)
            yield source, tuple(alias.name for alias in node.names)


class _Strip(ast.NodeTransformer):
    """Remove what cannot change a result: docstrings (also of attributes) and imports for type checkers."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt] | None:
        name = node.test.attr if isinstance(node.test, ast.Attribute) else getattr(node.test, "id", None)
        if name == "TYPE_CHECKING":
            return [self.visit(statement) for statement in node.orelse] or None
        return self.generic_visit(node)
