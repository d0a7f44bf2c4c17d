"""The workflow that users copy: it parses, its options exist, and the page shows the same file."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import typer
import yaml

from glasshouse import cli
from glasshouse.evidence.findings import published_schema

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / "docs/examples/audit.yml"
PAGE = ROOT / "docs/tutorials/in-your-pipeline.md"


def steps() -> list[dict]:
    [job] = yaml.safe_load(WORKFLOW.read_text())["jobs"].values()
    return job["steps"]


def test_the_page_shows_the_file() -> None:
    [shown] = re.findall(r"```yaml[^\n]*\n(.*?)```", PAGE.read_text(), re.S)
    assert shown == WORKFLOW.read_text()


def test_the_workflow_calls_options_that_exist() -> None:
    [command] = [step["run"] for step in steps() if "glasshouse audit" in step.get("run", "")]
    words = shlex.split(command)
    audit = typer.main.get_command(cli.build()).commands["audit"]
    known = {option for parameter in audit.params for option in parameter.opts}
    used = {word for word in words if word.startswith("--")}
    assert used == {"--train-data", "--baseline", "--fail-on", "--out"} and used <= known
    variables = set(re.findall(r"\$(\w+)", command))
    assert variables <= set(yaml.safe_load(WORKFLOW.read_text())["env"])


def test_the_report_is_kept_when_the_gate_fails() -> None:
    [upload] = [step for step in steps() if "upload-artifact" in step.get("uses", "")]
    [audit] = [step["run"] for step in steps() if "glasshouse audit" in step.get("run", "")]
    assert upload["if"] == "always()" and upload["with"]["path"] in audit
    workflow = yaml.safe_load(WORKFLOW.read_text())
    assert workflow[True].keys() == {"push", "pull_request"}  # YAML reads the key `on` as true


def test_the_fields_that_the_page_names_are_in_the_schema() -> None:
    schema = published_schema()
    table = re.findall(r"^\| `([^|]+) \|", PAGE.read_text(), re.M)
    named = {name for row in table for name in re.findall(r"(\w+)(?:\[\])?", row) if not row.startswith("--")}
    known = json.dumps(schema)
    assert {"findings", "clean", "not_run", "baseline"} <= named
    assert not [name for name in named if f'"{name}"' not in known]
