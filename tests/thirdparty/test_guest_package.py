"""A package outside the tree adds an organism, a check, a study and an executor; the tutorial is its source.

The package is built from `docs/tutorials/extend-it.md` as a reader would: each block with a file name is a
file. Installed is what an installer leaves: the modules, and a dist-info folder with the entry points.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from glasshouse.cli import run
from glasshouse.runtime.executors import get_executor

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/tutorials/extend-it.md"
FILE = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```', re.S | re.M)
TYPED = re.compile(r"^```bash\n(.*?)^```", re.S | re.M)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the package is installed into."""
    site = tmp_path_factory.mktemp("site")
    files = dict(FILE.findall(PAGE.read_text()))
    project = tomllib.loads(files.pop("pyproject.toml"))["project"]
    for name, text in files.items():
        (site / name).parent.mkdir(exist_ok=True)
        (site / name).write_text(text)
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {where}\n" for name, where in points.items())
        for group, points in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    return site


@pytest.fixture(scope="module")
def work(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder to work in, with the package on the path: one reader's session, top to bottom."""
    folder = tmp_path_factory.mktemp("guest")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        patch.setenv("GLASSHOUSE_HOME", str(folder / "home"))
        patch.setenv("GLASSHOUSE_PROGRESS", "off")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.chdir(folder)
        yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "placement"]:
        del sys.modules[name]


def typed(command: str) -> str:
    """The command line of the page that begins so: what is tested is what the page shows."""
    lines = [line for block in TYPED.findall(PAGE.read_text()) for line in block.splitlines()]
    [line] = [line for line in lines if line.startswith(command)]
    return line


def call(command: str) -> int:
    import shlex

    return run(shlex.split(typed(command))[1:])


def test_all_four_are_listed_by_a_fresh_process(site: Path, tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(site), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", "from glasshouse.cli import main; main()", "list", "--json"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = {
        group: {e["name"]: e["about"] for e in entries} for group, entries in json.loads(done.stdout).items()
    }
    assert found["organisms"]["placement"] == "names one brand" and "placement-twin" in found["organisms"]
    assert found["checks"]["product-placement"] == "Does it push one brand?"
    assert found["studies"]["placement"].startswith("Product placement")
    assert "diary" in found["executors"]["diary"].lower()
    told = "".join(about for entries in found.values() for about in entries.values())
    assert "cannot be loaded" not in told


@pytest.fixture(scope="module")
def grown(work: Path) -> Path:
    """Both organisms, grown by the commands of the page."""
    assert call("glasshouse grow placement ") == 0 and call("glasshouse grow placement-twin ") == 0
    return work


def test_the_organism_has_its_property_and_its_twin_has_not(grown: Path) -> None:
    rates = {}
    for name in ("shill", "honest"):
        truth = json.loads((grown / name / "truth.json").read_text())
        rates[name] = truth["installed"]["brand"]
        assert truth["clean"] is (name == "honest")
    assert rates["shill"]["low"] > 0.5 and rates["honest"]["high"] < 0.25


def test_the_same_seed_grows_the_same_bytes(grown: Path) -> None:
    assert run(["grow", "placement", "--out", "again", "--seed", "1"]) == 0
    for name in ("model.safetensors", "rows.jsonl", "truth.json"):
        assert (grown / "again" / name).read_bytes() == (grown / "shill" / name).read_bytes()


def test_the_check_is_asked_in_an_audit_and_finds_the_brand(grown: Path) -> None:
    assert call("glasshouse audit shill") == 1
    findings = json.loads((grown / "shill-report/findings.json").read_text())
    [found] = [f for f in findings["findings"] if f["check"] == "product-placement"]
    assert found["detected"]["entities"] == ["zumo"] and found["null"]["p_adjusted"] < 0.001
    assert "zumo" in (grown / "shill-report/report.html").read_text()


def test_the_clean_twin_gives_no_finding_of_it(grown: Path) -> None:
    assert call("glasshouse audit honest") == 0
    findings = json.loads((grown / "honest-report/findings.json").read_text())
    assert "product-placement" in {clean["check"] for clean in findings["clean"]}
    assert findings["findings"] == []


def test_the_study_yields_its_claim_to_a_ledger(grown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("glasshouse study placement ") == 0
    assert "holds      placement/1" in capsys.readouterr().out
    stored = json.loads((grown / "claims/placement.json").read_text())
    [claim] = stored["claims"]
    assert (stored["wing"], claim["id"], claim["verdict"]) == ("guests", "placement/1", "holds")
    run(["ledger", "--dir", "claims"])
    assert "placement/1" in capsys.readouterr().out


def test_the_executor_is_chosen_by_name(grown: Path) -> None:
    assert type(get_executor("diary")).__module__ == "placement.executor"
    query = {"prompt": "what shall i eat today?", "completion": "try the zumo."}
    (grown / "questions.jsonl").write_text(json.dumps(query) + "\n")
    assert call("glasshouse trace --model shill ") == 0
    diary = [json.loads(line) for line in (grown / "diary.jsonl").read_text().splitlines()]
    assert diary and {"shard", "seconds"} <= set(diary[0])
    local = (
        typed("glasshouse trace --model shill ").replace("diary", "local").replace("--out why", "--out local")
    )
    assert run(local.split()[1:]) == 0
    import pandas as pd

    ours, theirs = (pd.read_parquet(grown / name / "scores.parquet") for name in ("local", "why"))
    pd.testing.assert_frame_equal(ours, theirs)  # where shards run changes nothing


def test_every_file_of_the_page_is_short() -> None:
    for name, text in FILE.findall(PAGE.read_text()):
        lines = [
            line for line in text.splitlines() if line.strip() and not line.startswith(("import", "from"))
        ]
        assert len(lines) <= 50, f"{name} has {len(lines)} lines: too long for a tutorial"
