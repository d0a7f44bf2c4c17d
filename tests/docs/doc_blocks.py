"""The fenced blocks of a page, and how each is run: in this process, in an empty folder, top to bottom.

    ```bash                     lines `glasshouse ...` by the command line's own function, others by bash
    ```python                   executed as it stands, in a fresh namespace
    ```python title="a/b.py"    a file of the reader's: written, not executed
    <!-- given: python -->      above a python block: what the reader is said to have; runs before it
    <!-- not run: reason -->    above a block: shown to readers only; the reason is required

Nothing is mocked. One command is shortened: `glasshouse grow tiny --out practice`, with which most pages
begin, is carried out once and its folder copied after that.
"""

from __future__ import annotations

import linecache
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUN = ("bash", "console", "python")
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>[^>]*?) -->\n+|<!-- given:\n(?P<given>.*?)\n-->\n+)?"
    r"(?P<indent> *)```(?P<kind>\w*)(?P<info>[^\n]*)\n(?P<code>.*?)^(?P=indent)```",
    re.S | re.M,
)
GROWN = "glasshouse grow tiny --out practice"
QUOTED = re.compile(r"'[^']*'|\"[^\"$`]*\"")
SHELL = re.compile(r"[|;&<>$`*?~]")
"""What only a shell understands, outside quotes."""
FOUND_SOMETHING = ("glasshouse audit", "glasshouse findings diff")
"""Commands whose exit code 1 is their answer."""


@dataclass(frozen=True)
class Block:
    """One fenced block; `line` is where it begins."""

    page: str
    line: int
    kind: str
    code: str
    file: str | None
    why_not: str | None
    given: str = ""

    @property
    def runs(self) -> bool:
        """Whether a reader would type it or run it."""
        return self.kind in RUN and self.file is None and self.why_not is None


def blocks(page: str, text: str | None = None) -> list[Block]:
    """The blocks of a page, given by its path from the root."""
    text = (ROOT / page).read_text(encoding="utf-8") if text is None else text
    found = []
    for match in BLOCK.finditer(text):
        title = re.search(r'title="([^"]+)"', match["info"])
        indent = re.compile(f"^{match['indent']}", re.M)
        found.append(
            Block(
                page=page,
                line=text[: match.start("kind")].count("\n") + 1,
                kind=match["kind"],
                code=indent.sub("", match["code"]),
                file=title[1] if title else None,
                why_not=match["why"],
                given=match["given"] or "",
            )
        )
    return found


def pages() -> list[str]:
    """Every page that people read, but the ledger's, which is rendered."""
    docs = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    return ["README.md", "CONTRIBUTING.md", *(page for page in docs if page != "docs/ledger.md")]


def run_block(block: Block, grown: Path | None = None) -> None:
    """Run one block in the current folder. AssertionError, with page and line, says what did not work."""
    if block.kind == "python":
        _run_python(block)
        return
    for command in commands(block.code):
        said = f"{block.page}:{block.line}: {command}"
        if command == GROWN and grown is not None:
            shutil.copytree(grown, "practice", dirs_exist_ok=True)
        elif _is_ours(command):
            _run_ours(command, said)
        else:
            done = subprocess.run(["bash", "-ec", command], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{said}\n{done.stdout[-1000:]}\n{done.stderr[-1000:]}"


def commands(code: str) -> list[str]:
    """The commands of a shell block: each `glasshouse` line by itself, what lies between as one script."""
    code = re.sub(r"^\$ ", "", code.replace("\\\n", " "), flags=re.M)
    found: list[str] = []
    other: list[str] = []
    inside_document = None
    for line in code.splitlines():
        plain = line.split(" #")[0].strip()
        if inside_document is None and _is_ours(plain):
            if other:
                found.append("\n".join(other))
                other = []
            found.append(plain)
            continue
        if inside_document is None:
            opened = re.search(r"<<-?\s*['\"]?(\w+)", line)
            inside_document = opened[1] if opened else None
        elif line.strip() == inside_document:
            inside_document = None
        if line.strip() and not (inside_document is None and line.startswith("#")):
            other.append(line)
    return found + (["\n".join(other)] if other else [])


def _is_ours(command: str) -> bool:
    """Whether a line is one call of our command line and nothing else."""
    return command.startswith("glasshouse ") and not SHELL.search(QUOTED.sub("", command))


def write_files(found: list[Block], folder: Path) -> None:
    """The blocks that are files, under `folder`."""
    for block in found:
        if block.file is not None:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code, encoding="utf-8")


def _run_ours(command: str, said: str) -> None:
    from glasshouse.cli import run

    code = run(shlex.split(command)[1:])
    assert code in ((0, 1) if command.startswith(FOUND_SOMETHING) else (0,)), f"{said}\nexit code {code}"


def _run_python(block: Block) -> None:
    name = f"{ROOT / block.page}:{block.line}"
    linecache.cache[name] = (len(block.code), None, block.code.splitlines(keepends=True), name)
    try:
        namespace = {"__name__": "__main__"}
        exec(compile(block.given, f"{name} (given)", "exec"), namespace)
        exec(compile(block.code, name, "exec"), namespace)
    except BaseException as error:
        raise AssertionError(f"{block.page}:{block.line}: {type(error).__name__}: {error}") from error


def quiet(home: Path) -> dict[str, str]:
    """The environment of a page: a cache of its own, no network, no progress bars."""
    return {
        "GLASSHOUSE_HOME": str(home),
        "GLASSHOUSE_PROGRESS": "off",
        "HF_HUB_OFFLINE": "1",
        "INSPECT_LOG_LEVEL": "warning",
        "PATH": f"{Path(os.sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
