"""The code version moves when a result could, and only then."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from glasshouse.runtime import seeds
from glasshouse.runtime.codeversion import code_version
from glasshouse.runtime.errors import InputError

PACKAGE = {
    "__init__.py": "",
    "top.py": "from toyhouse.middle import half\nfrom toyhouse import tools\ndef train(x): return half(x)\n",
    "middle.py": (
        "from typing import TYPE_CHECKING\n\nfrom toyhouse.progress import bar\n\n"
        "if TYPE_CHECKING:\n    from toyhouse.types import Kind\n\n\n"
        "def half(x):\n    from .deep import scale\n    from toyhouse.lazy import offered\n"
        "    from toyhouse.named import wanted\n\n"
        "    bar()\n    return scale(x) / 2 + offered\n"
    ),
    "deep.py": (
        '"""Deep."""\n\nFACTOR = 3\n"""What it scales by."""\n\n\n'
        'def scale(x):\n    """Scale."""\n    return FACTOR * x\n'
    ),
    "progress.py": "def bar():\n    pass\n",
    "types.py": "Kind = int\n",
    "tools/__init__.py": "",
    "unrelated.py": "x = 1\n",
    "lazy/__init__.py": (
        "_WHERE = {'offered': 'toyhouse.lazy.hidden'}\n\n\n"
        "def __getattr__(name):\n    import importlib\n\n"
        "    return getattr(importlib.import_module(_WHERE[name]), name)\n"
    ),
    "lazy/hidden.py": "offered = 0\n",
    "named/__init__.py": (
        "from toyhouse.tools import lazily\n\n_HOMES = {'near': ('wanted', 'also'), 'far': ('other',)}\n"
        "__getattr__, __dir__ = lazily(__name__, _HOMES)\n"
    ),
    "named/near.py": "wanted = also = 0\n",
    "named/far.py": "other = 0\n",
    "cli/__init__.py": "",
    "loop.py": "from toyhouse import loop2\n",
    "loop2.py": "from toyhouse import loop\n",
}

Edit = Callable[[str, str, str], None]


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Edit]:
    """Writes the toy package; returns a function that replaces text in one of its files."""
    for name, text in PACKAGE.items():
        (tmp_path / "toyhouse" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "toyhouse" / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))

    def replace(name: str, old: str, new: str) -> None:
        path = tmp_path / "toyhouse" / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    yield replace
    for module in [name for name in sys.modules if name.split(".")[0] == "toyhouse"]:
        del sys.modules[module]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("top.py", "half(x)", "half(x + 1)"),
        ("middle.py", "/ 2", "/ 4"),
        ("deep.py", "FACTOR = 3", "FACTOR = 4"),
        ("deep.py", "FACTOR * x", "x * FACTOR"),
        ("lazy/hidden.py", "0", "1"),
        ("named/near.py", "0", "1"),
        ("named/__init__.py", "'near': ('wanted', 'also'), 'far': ('other',)", "'far': ('wanted',)"),
        ("tools/__init__.py", "", "x = 1"),
    ],
)
def test_it_moves_with_code_that_is_imported(edit: Edit, name: str, old: str, new: str) -> None:
    before = code_version("toyhouse.top")
    edit(name, old, new)
    assert code_version("toyhouse.top") != before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("deep.py", '"""Scale."""', '"""Multiply, at length."""'),
        ("deep.py", '"""Deep."""\n', ""),
        ("deep.py", '"""What it scales by."""', '"""The factor."""'),
        ("deep.py", "    return", "    # why\n    return"),
        ("deep.py", "FACTOR * x", "(FACTOR\n            *    x)"),
        ("progress.py", "pass", "print(1)"),
        ("types.py", "int", "str"),
        ("middle.py", "import Kind", "import Kind as K"),
        ("named/far.py", "0", "1"),  # what the package would load for another name
        ("named/__init__.py", "('other',)", "('other', 'new')"),
        ("unrelated.py", "1", "2"),
        ("cli/__init__.py", "", "x = 1"),
    ],
)
def test_it_stays_when_no_number_can_change(edit: Edit, name: str, old: str, new: str) -> None:
    before = code_version("toyhouse.top")
    edit(name, old, new)
    assert code_version("toyhouse.top") == before


def test_every_way_to_name_the_code_agrees(edit: Edit) -> None:
    top = importlib.import_module("toyhouse.top")
    wrapped = functools.wraps(top.train)(lambda x: top.train(x))
    for thing in (top, top.train, functools.partial(top.train, 1), wrapped):
        assert code_version(thing) == code_version("toyhouse.top")


def test_circles_end(edit: Edit) -> None:
    assert code_version("toyhouse.loop") != code_version("toyhouse.top")


def test_ours_are_found_without_being_imported() -> None:
    before = set(sys.modules)
    assert len(code_version("glasshouse.runtime.runs")) == 16
    assert code_version(seeds.derive) == code_version("glasshouse.runtime.seeds")
    assert not {name for name in set(sys.modules) - before if name.startswith("glasshouse")}


@pytest.mark.parametrize("thing", ["glasshouse.no_such_module", "no such name", len])
def test_code_without_source_is_refused(thing: object) -> None:
    with pytest.raises(InputError, match="source"):
        code_version(thing)  # type: ignore[arg-type]


def test_a_function_without_a_module_on_disk_is_hashed_by_itself(tmp_path: Path) -> None:
    def version(body: str) -> str:
        path = tmp_path / f"script{len(list(tmp_path.iterdir()))}.py"
        path.write_text(f"def f():\n    '''Doc.'''\n    return {body}\n")
        scope: dict[str, Callable[[], int]] = {"__name__": "__console__"}
        exec(compile(path.read_text(), str(path), "exec"), scope)
        return code_version(scope["f"])

    assert version("1") == version("1") != version("2")
