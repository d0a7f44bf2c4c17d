"""Every command and every Python block of README and docs runs as it stands, or says above itself why not."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from doc_blocks import GROWN, Block, blocks, commands, pages, quiet, run_block, write_files

sys.path.pop(0)

ALL = {page: blocks(page) for page in pages()}
WITH_CODE = [page for page, found in ALL.items() if any(block.runs for block in found)]
GUEST = "docs/tutorials/extend-it.md"
"""The page whose files are a package: `tests/thirdparty` installs it and runs its commands."""

TOGETHER = ("docs/tutorials/audit-my-model.md", "docs/tutorials/in-your-pipeline.md")
"""Read in one folder: the second page's audit is the first's, which is then not asked again."""
JOURNEYS = [TOGETHER, *((page,) for page in WITH_CODE if page not in (GUEST, *TOGETHER))]


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The organism that pages practise on, grown once."""
    from glasshouse.organisms.tiny import grow_tiny

    return grow_tiny(0, tmp_path_factory.mktemp("grown") / "practice")


@pytest.fixture
def work(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, value in quiet(home).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    yield tmp_path


@pytest.mark.timeout(900)
@pytest.mark.parametrize("journey", JOURNEYS, ids=lambda journey: journey[0])
def test_blocks_run_as_they_stand(journey: tuple[str, ...], work: Path, grown: Path) -> None:
    for page in journey:
        _read_along(page, work, grown)


def _read_along(page: str, work: Path, grown: Path) -> None:
    write_files(ALL[page], work)
    told = "".join(block.given + block.code for block in ALL[page] if block.runs)
    if "practice" in told and GROWN not in told:  # a page that begins where the first tutorial has begun
        shutil.copytree(grown, work / "practice")
    for block in ALL[page]:
        if block.runs:
            run_block(block, grown)


def test_every_block_runs_or_says_why_not() -> None:
    shown: dict[str, int] = {"runs": 0, "not run": 0, "file": 0}
    for found in ALL.values():
        for block in found:
            where = f"{block.page}:{block.line}"
            assert block.kind, f"{where}: name the language of the block"
            assert block.why_not is None or len(block.why_not) > 15, f"{where}: say why it is not run"
            if block.file is not None:
                shown["file"] += 1
            elif block.kind in ("bash", "console", "python"):
                shown["not run" if block.why_not else "runs"] += 1
    # Blocks that nobody runs rot.
    assert shown["not run"] <= MOST_NOT_RUN * (shown["runs"] + shown["not run"]), f"{shown}: run some"


MOST_NOT_RUN = 0.4


def test_the_tutorials_are_in_the_navigation() -> None:
    nav = (Path(__file__).parents[2] / "mkdocs.yml").read_text()
    for page in pages():
        if page.startswith("docs/"):
            assert page.removeprefix("docs/") in nav, f"{page} is in no menu"


def test_blocks_are_seen_as_they_are_written() -> None:
    text = (
        "<!-- not run: needs a GPU card -->\n```bash\na\n```\n\n```python\nb\n```\n"
        '```python title="x/y.py"\nc\n```\n- item\n\n  ```console\n  $ d\n  ```\n'
    )
    found = blocks("page", text)
    assert [(b.kind, b.why_not, b.file, b.code) for b in found] == [
        ("bash", "needs a GPU card", None, "a\n"), ("python", None, None, "b\n"),
        ("python", None, "x/y.py", "c\n"), ("console", None, None, "$ d\n"),
    ]  # fmt: skip
    assert [b.runs for b in found] == [False, True, False, True]


def test_shell_blocks_are_taken_apart_where_a_reader_would_press_return() -> None:
    code = (
        "glasshouse list   # all\nls a\ncat > q <<'END'\nglasshouse is not a command here\nEND\n"
        "glasshouse doctor > out\nglasshouse audit x \\\n  --out y\n"
    )
    assert commands(code) == [
        "glasshouse list",
        "ls a\ncat > q <<'END'\nglasshouse is not a command here\nEND\nglasshouse doctor > out",
        "glasshouse audit x    --out y",
    ]


def test_a_block_that_does_not_work_fails_the_test(work: Path) -> None:
    def tried(kind: str, code: str) -> None:
        run_block(Block("page.md", 7, kind, code, None, None))

    for kind, code in (
        ("python", "1 / 0"), ("python", "raise SystemExit(0)"), ("bash", "false\ntrue"),
        ("bash", "glasshouse audit nowhere"), ("bash", "glasshouse report nowhere"),
    ):  # fmt: skip
        with pytest.raises(AssertionError, match=r"page\.md:7"):
            tried(kind, code)
    tried("bash", "glasshouse cache ls\ntrue")
