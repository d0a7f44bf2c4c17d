"""The cache: built once, verified, rebuilt aloud when damaged, safe under kills and races."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from glasshouse.runtime.cache import MANIFEST, Cache, home
from glasshouse.runtime.errors import InputError, RunError

ARGS = {"steps": 3, "lr": 0.1}

RACER = """
import sys
from pathlib import Path
from glasshouse.runtime.cache import Cache
root, log, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
cache = Cache(root)
print("ready", flush=True)
sys.stdin.readline()
for index in range(count):
    def build(folder):
        with log.open("a") as handle:
            handle.write(f"{index}\\n")
        (folder / "value").write_text(str(index) * 100_000)
    path = cache.fetch("race", {"index": index}, build)
    assert (path / "value").read_text() == str(index) * 100_000
"""

BUILDER = """
import sys
from pathlib import Path
from glasshouse.runtime.cache import Cache
cache = Cache(Path(sys.argv[1]))
def build(folder):
    (folder / "half").write_text("half of it")
    (cache.work(cache.key("slow", {})) / "checkpoint").write_text("step 5")
    print("building", flush=True)
    sys.stdin.readline()
cache.fetch("slow", {}, build)
"""


def write(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "weights").write_bytes(bytes(range(256)) * 40)
    (folder / "sub" / "log.txt").write_text("done")


def content(folder: Path) -> dict[str, bytes]:
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def refuse(folder: Path) -> None:
    raise AssertionError("must not be built again")


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GLASSHOUSE_HOME", str(tmp_path / "here"))
    assert home() == Cache().root == tmp_path / "here"
    monkeypatch.delenv("GLASSHOUSE_HOME")
    assert home() == Path("~/.cache/glasshouse").expanduser()


def test_built_once_then_found(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.find("model", ARGS) is None
    folder = cache.fetch("model", ARGS, write)
    assert (
        cache.fetch("model", ARGS, refuse)
        == folder
        == cache.find("model", ARGS)
        == Cache(tmp_path).find("model", ARGS)
    )
    [entry] = cache.ls()
    assert (entry.kind, entry.args, entry.key) == ("model", ARGS, cache.key("model", ARGS))
    assert entry.bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_key_depends_on_everything_that_made_the_result(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    keys = [
        cache.key("a", {"x": 1}),
        cache.key("b", {"x": 1}),
        cache.key("a", {"x": 1.5}),
        cache.key("a", {"y": 1}),
        cache.key("a", {"x": 1}, ["h1"]),
        cache.key("a", {"x": 1}, ["h2"]),
        cache.key("a", {"x": 1}, code="c"),
    ]
    assert len(set(keys)) == len(keys)
    assert cache.key("a", {"x": 1, "y": 2}) == cache.key("a", {"y": 2, "x": 1})


@pytest.mark.parametrize("args", [{"x": float("nan")}, {"x": object()}, {"x": {1, 2}}, {"x": b"bytes"}])
def test_arguments_that_are_not_plain_json_are_refused(tmp_path: Path, args: dict[str, object]) -> None:
    with pytest.raises(InputError, match="not plain JSON"):
        Cache(tmp_path).key("a", args)


@pytest.mark.parametrize("kind", ["", "../up", "a/b", "a b"])
def test_a_kind_cannot_leave_the_cache(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match="kind"):
        Cache(tmp_path).fetch(kind, {}, refuse)


def test_a_failed_build_leaves_nothing_and_can_be_tried_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise ValueError("no luck")

    with pytest.raises(ValueError, match="no luck"):
        cache.fetch("model", ARGS, fail)
    assert cache.ls() == [] and not list(tmp_path.glob("entries/*/.*"))
    assert content(cache.fetch("model", ARGS, write))


def test_a_build_that_asks_for_itself_is_refused(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with pytest.raises(RunError, match="asks for itself"):
        cache.fetch("model", ARGS, lambda folder: cache.fetch("model", ARGS, write) and None)


@pytest.mark.parametrize("name", ["weights", "sub/log.txt", MANIFEST])
@pytest.mark.parametrize("harm", ["flip", "remove", "truncate"])
def test_damage_is_detected_said_and_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, harm: str
) -> None:
    cache = Cache(tmp_path)
    folder = cache.fetch("model", ARGS, write)
    good = content(folder)
    target = folder / name
    data = bytearray(target.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 0x80
    target.unlink() if harm == "remove" else target.write_bytes(
        data[: len(data) // 2] if harm == "truncate" else data
    )
    if name != MANIFEST or harm != "remove":
        assert cache.find("model", ARGS) is None
    capsys.readouterr()
    assert content(cache.fetch("model", ARGS, write)) == good
    assert "damaged" in capsys.readouterr().err
    assert Cache(tmp_path).find("model", ARGS) is not None


def test_an_added_file_is_damage_too(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    (cache.fetch("model", ARGS, write) / "stray").write_text("?")
    assert cache.find("model", ARGS) is None


def test_a_fault_at_any_write_changes_no_result(tmp_path: Path, every_fault) -> None:
    builds: list[int] = []

    def build(folder: Path) -> None:
        builds.append(1)
        write(folder)

    def act(n: int) -> None:
        Cache(tmp_path / str(n)).fetch("model", ARGS, build)

    def check(n: int) -> None:
        cache = Cache(tmp_path / str(n))
        assert set(content(cache.fetch("model", ARGS, build))) == {"weights", "sub/log.txt"}
        assert len(builds) <= 2
        assert len(cache.ls()) == 1
        cache.gc()
        assert not list(cache.root.glob("entries/*/.*")) and len(cache.ls()) == 1
        builds.clear()

    assert every_fault(act, check) >= 5


def test_a_fault_while_collecting_leaves_whole_entries_or_none(tmp_path: Path, every_fault) -> None:
    def act(n: int) -> None:
        cache = Cache(tmp_path / str(n))
        for index in range(2):
            cache.fetch("model", {"index": index}, write)
        cache.gc(everything=True)

    def check(n: int) -> None:
        cache = Cache(tmp_path / str(n))
        for entry in cache.ls():
            assert cache.find(entry.kind, entry.args) is not None
        cache.gc(everything=True)
        assert cache.ls() == [] and not list(cache.root.glob("entries/*/*"))

    assert every_fault(act, check) >= 12


def test_two_processes_build_once(tmp_path: Path) -> None:
    log, count = tmp_path / "log", 12
    racers = [start(RACER, tmp_path / "cache", log, count) for _ in range(2)]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        racer.communicate()
        assert racer.returncode == 0
    assert sorted(map(int, log.read_text().split())) == list(range(count))
    assert not list((tmp_path / "cache" / "locks").iterdir())


def test_a_killed_builder_frees_its_lock_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    child = start(BUILDER, tmp_path)
    assert child.stdout is not None and child.stdout.readline() == "building\n"
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    cache = Cache(tmp_path)
    assert cache.find("slow", {}) is None and cache.ls() == []
    seen: list[str] = []

    def build(folder: Path) -> None:
        seen.append((cache.work(cache.key("slow", {})) / "checkpoint").read_text())
        write(folder)

    assert set(content(cache.fetch("slow", {}, build))) == {"weights", "sub/log.txt"}
    assert seen == ["step 5"]
    assert not list(tmp_path.glob("work/*")) and not list(tmp_path.glob("entries/*/.*.part"))


def test_collecting_keeps_what_was_used_last(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for index in range(4):
        cache.fetch("model", {"index": index}, write)
    cache.fetch("other", {}, write)
    cache.fetch("model", {"index": 0}, refuse)
    size = max(entry.bytes for entry in cache.ls())
    removed = cache.gc(max_bytes=2 * size, kind="model")
    assert [entry.args["index"] for entry in removed] == [2, 1]
    assert [(entry.kind, entry.args.get("index")) for entry in cache.ls()] == [
        ("model", 0),
        ("other", None),
        ("model", 3),
    ]
    assert cache.gc() == [] and cache.gc(older_than_days=1) == []
    assert len(cache.gc(older_than_days=0)) == 3


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_a_lost_or_damaged_index_loses_no_entry(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], keep: int
) -> None:
    cache = Cache(tmp_path)
    cache.fetch("model", ARGS, write)
    path = tmp_path / "index.sqlite"
    path.write_bytes(path.read_bytes()[:keep] + b"not a page of a database" * 400)
    assert [entry.kind for entry in Cache(tmp_path).ls()] == ["model"]
    assert "index" in capsys.readouterr().err
    path.unlink()
    assert [entry.kind for entry in Cache(tmp_path).ls()] == ["model"]


def test_an_index_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "index.sqlite").mkdir()
    with pytest.raises(RunError, match="cache index cannot be used"):
        Cache(tmp_path).ls()


def test_a_home_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="GLASSHOUSE_HOME"):
        Cache(tmp_path / "file" / "cache").fetch("model", ARGS, write)


def test_the_manifest_says_what_made_the_entry(tmp_path: Path) -> None:
    folder = Cache(tmp_path).fetch("model", ARGS, write, inputs=["abc"], code="def")
    manifest = json.loads((folder / MANIFEST).read_text())
    assert (manifest["args"], manifest["inputs"], manifest["code"]) == (ARGS, ["abc"], "def")
    assert manifest["torch"] and manifest["transformers"]
