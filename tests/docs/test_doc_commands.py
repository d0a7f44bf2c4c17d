"""Every command and every Python block of the README and the tutorials runs as typed.

The pages of a journey are executed top to bottom, one after the other, in one empty directory. A block after
`<!-- not run: reason -->` is shown to readers but not executed; the reason is required.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
JOURNEYS = {
    "first steps": ("README.md",),
    "evaluations": ("docs/evaluation.md",),
    "tutorials": ("docs/tutorials/audit-my-model.md", "docs/tutorials/which-data-did-it.md"),
}
BLOCK = re.compile(
    r"(?P<skip><!-- not run: (?P<why>.*?) -->\n+)?```(?P<kind>bash|python)\n(?P<code>.*?)```", re.S
)


@dataclass(frozen=True)
class Block:
    kind: str
    code: str
    why_not: str | None


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    return [Block(m["kind"], m["code"], m["why"]) for m in BLOCK.finditer(text)]


def _environment(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "GLASSHOUSE_HOME": str(folder / "home"),
        "GLASSHOUSE_PROGRESS": "off",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.mark.timeout(900)  # a dozen processes in a row, each of which imports torch
@pytest.mark.parametrize("journey", JOURNEYS)
def test_blocks_run_as_typed(journey: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    for page in JOURNEYS[journey]:
        ran = 0
        for block in blocks(page):
            if block.why_not is not None:
                assert len(block.why_not) > 10, f"{page}: say why a block is not run"
                continue
            _run(page, block, work, _environment(tmp_path))
            ran += 1
        assert ran, f"{page} has no block that runs"


def _run(page: str, block: Block, work: Path, environment: dict[str, str]) -> None:
    command = ["bash", "-c", block.code] if block.kind == "bash" else [sys.executable, "-c", block.code]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    said = f"{page}:\n{block.code}\n--- stdout\n{done.stdout[-2000:]}\n--- stderr\n{done.stderr[-2000:]}"
    # An audit that finds something ends with 1: that is its answer. Exit code 2 (could not run) or a
    # traceback is what must not happen.
    assert done.returncode in ((0, 1) if "glasshouse audit" in block.code else (0,)), said
    assert "Traceback" not in done.stderr, said


def test_every_tutorial_is_on_a_journey() -> None:
    written = {str(p.relative_to(ROOT)) for p in (ROOT / "docs/tutorials").glob("*.md")}
    assert written <= {page for pages in JOURNEYS.values() for page in pages}


def test_the_pattern_sees_skipped_and_plain_blocks() -> None:
    text = "<!-- not run: needs a GPU card -->\n```bash\na\n```\n\n```python\nb\n```\n"
    found = [(m["kind"], m["why"]) for m in BLOCK.finditer(text)]
    assert found == [("bash", "needs a GPU card"), ("python", None)]
