"""The command line: it teaches, it is light, its errors are one sentence, its exit codes mean something."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import glasshouse
from glasshouse import cli
from glasshouse.runtime.errors import InputError

HEAVY = ("torch", "pandas", "scipy", "statsmodels", "transformers", "peft", "trl", "inspect_ai", "sklearn")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLASSHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GLASSHOUSE_PROGRESS", "off")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["audit", "--help"], ["audit", "--schema"], None]
)
def test_nothing_heavy_is_loaded_for_help_or_by_importing_us(arguments: list[str] | None) -> None:
    act = "import glasshouse" if arguments is None else f"from glasshouse import cli; cli.run({arguments!r})"
    code = f"import sys; {act}\nprint('LOADED', *(m for m in {HEAVY!r} if m in sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().splitlines()[-1] == "LOADED"


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    said = capsys.readouterr().out
    for example in ("glasshouse audit ./model --dry-run", "glasshouse doctor", "Exit codes"):
        assert example in said
    assert cli.run(["audit", "-h"]) == 0
    said = capsys.readouterr().out
    assert "--baseline" in said and "glasshouse audit ./model --reference ./base --fail-on high" in said


def test_every_command_group_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["--help"])
    said = capsys.readouterr().out
    for command in ("audit", "findings", "trace", "grow", "study", "ledger", "list", "doctor", "cache"):
        assert f"│ {command} " in said


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import tomllib

    assert cli.run(["--version"]) == 0
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert capsys.readouterr().out == f"glasshouse {declared}\n"
    assert glasshouse.__version__ == declared


@pytest.mark.parametrize(
    "arguments", [["adit"], ["audit", "--fale-on", "x"], ["audit", "a", "b"], ["audit", "--seed", "x"]]
)
def test_a_mistyped_command_exits_2_without_traceback(arguments, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and "Usage" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["audit", "nowhere"], "there is no folder 'nowhere'"),
        (["audit", "--fail-on", "awful"], "there is no severity 'awful'"),
        (["audit", "--baseline", "nowhere.json"], "cannot read the baseline"),
        (["audit", "--executor", "nowhere"], "no executor 'nowhere'"),
        (["audit", "organism://unicorn"], "choose from resident"),
        (["audit", "--baseline", "evil\x1b[31m\x07.json"], "evil.json"),
    ],
)
def test_errors_are_one_sentence_on_stderr_and_exit_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], elsewhere: Path
) -> None:
    assert cli.run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and said in captured.err
    assert captured.err.count("\n") == 1 and captured.err.endswith(".\n")
    assert "\x1b" not in captured.err
    assert list(elsewhere.iterdir()) == [], "nothing was written"


def test_a_bug_never_looks_like_findings(capsys: pytest.CaptureFixture[str]) -> None:
    """Python exits 1 on an unexpected error; here 1 means findings."""
    assert cli._unexpected(TypeError("oops")) == 2
    said = capsys.readouterr().err
    assert "TypeError: oops" in said and said.strip().endswith("please report it.")


def test_a_full_disk_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch, elsewhere) -> None:
    from glasshouse.runtime import files

    def full(stage: str, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    monkeypatch.setattr(files, "fault_hook", full)
    (elsewhere / "suite.json").write_text('{"prompts": ["a"]}')
    assert cli.run(["audit", "--suite", "suite.json"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("somewhere: No space left on device; make room") and "Traceback" not in said


def test_main_exits_with_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["audit", "nowhere"])
    assert stop.value.code == 2
    capsys.readouterr()


def test_list_shows_what_is_plugged_in(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [c["name"] for c in found["checks"]][:2] == ["hidden-trigger", "guilty-rows"]
    assert {o["name"] for o in found["organisms"]} >= {"resident", "resident-twin"}
    assert not [e for group in found.values() for e in group if e["about"].startswith("cannot be loaded")]
    assert cli.run(["list"]) == 0
    assert "Is there a hidden trigger?" in capsys.readouterr().out


def test_schema_is_the_published_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["audit", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((ROOT / "docs/findings.schema.json").read_text())


def test_the_facade_exports_what_it_says() -> None:
    assert sorted(glasshouse.__all__) == glasshouse.__all__
    assert all(hasattr(glasshouse, name) for name in glasshouse.__all__)
    with pytest.raises(InputError, match="no organism is called 'unicorn'"):
        glasshouse.grow("unicorn", out="somewhere")
    with pytest.raises(InputError, match="the folder exists; give a new one"):
        glasshouse.grow("resident", out=".")


def test_open_resolves_organisms(elsewhere: Path) -> None:
    subject = glasshouse.open("organism://resident", self_test=False)
    assert subject.name == "organism://resident" and subject.is_chat
    assert glasshouse.open(self_test=False).hash == subject.hash, "the resident is the default"


def test_a_dry_run_of_the_resident_plans_both_checks(
    capsys: pytest.CaptureFixture[str], elsewhere: Path
) -> None:
    assert cli.run(["audit", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "would run  hidden-trigger" in said and "would run  guilty-rows" in said
    assert said.endswith("Nothing was run or written.\n")
    assert not (elsewhere / "glasshouse-report").exists() and not (elsewhere / "glasshouse-runs").exists()
