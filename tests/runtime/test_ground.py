"""Errors, text, seeds, devices, files and the doctor."""

from __future__ import annotations

import copy
import inspect
import multiprocessing.reduction
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glasshouse.runtime import devices, doctor, errors, files, seeds
from glasshouse.runtime.errors import DeviceError, GlasshouseError, InputError
from glasshouse.runtime.text import clean_text, shorten

FAMILY = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, GlasshouseError)
]
HEAVY = {"torch", "pandas", "pyarrow", "scipy", "transformers", "datasets", "sklearn"}


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_errors_survive_copies_and_process_borders(kind: type[GlasshouseError]) -> None:
    error = kind("it is wrong.", where="rows.jsonl:3", fix="mend it.")
    there = multiprocessing.reduction.ForkingPickler.loads(
        multiprocessing.reduction.ForkingPickler.dumps(error)
    )
    for twin in (there, copy.copy(error)):
        assert type(twin) is kind and str(twin) == "rows.jsonl:3: it is wrong; mend it."
        assert (twin.what, twin.where, twin.fix) == (error.what, error.where, error.fix)
    assert error.exit_code == 2


def test_errors_never_carry_what_a_terminal_obeys() -> None:
    evil = "a\x1b]52;c;aGk=\x07\x1b[31m\x9b0m\rb\u202e"
    assert str(GlasshouseError(evil, where=evil, fix=evil)) == "ab: ab; ab."


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("\x1b\x9b[]P\\;m\x07\u202e\ud800"))))
def test_clean_text_holds_nothing_a_terminal_obeys(text: str) -> None:
    clean = clean_text(text)
    assert not [char for char in clean if unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t"]
    assert clean_text(clean) == clean
    clean.encode("utf-8")


@given(st.text(alphabet="abc é中\n\t.-[]"))
def test_clean_text_leaves_ordinary_text_alone(text: str) -> None:
    assert clean_text(text) == text


@given(st.text(max_size=300), st.integers(2, 50))
def test_shorten_gives_one_line_within_the_limit(text: str, limit: int) -> None:
    assert len(shorten(text, limit)) <= limit and shorten(text, limit).isprintable()


def test_streams_are_named_not_counted() -> None:
    names = [(), ("a",), ("b",), ("a", "b"), ("ab",), ("a", 1), ("a", "1"), (1,), ("1",)]
    drawn = {seeds.derive(seed, *name) for seed in (0, 1, -1) for name in names}
    assert len(drawn) == 3 * len(names) and all(0 <= value < 2**63 for value in drawn)
    one = [seeds.rng(0, "row", row).random() for row in range(6)]
    assert [seeds.rng(0, "row", row).random() for row in reversed(range(6))] == one[::-1]


def test_seeded_sets_every_generator_and_puts_them_back() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def inside() -> tuple[float, float, float]:
        with seeds.seeded(3, "block"):
            return draw()

    with seeds.seeded(0):
        expected = draw()
    with seeds.seeded(0):
        first = inside()
        assert draw() == expected, "the block leaked into what follows it"
    assert inside() == first != expected
    generator = seeds.torch_generator(3, "x")
    assert torch.equal(
        torch.rand(3, generator=generator), torch.rand(3, generator=seeds.torch_generator(3, "x"))
    )


def test_auto_takes_what_there_is() -> None:
    assert devices.pick_device() == ("cuda" if torch.cuda.is_available() else "cpu")
    assert devices.pick_device("cpu") == "cpu" and devices.available_devices()[0] == "cpu"
    assert devices.pick_dtype("auto", "cpu") is torch.float32
    assert [devices.pick_dtype(name) for name in ("fp32", "bf16", "fp16")] == [
        torch.float32,
        torch.bfloat16,
        torch.float16,
    ]


@pytest.mark.parametrize("name", ["cuda:99", "xpu", "meta"])
def test_a_named_absent_device_is_refused_not_replaced(name: str) -> None:
    with pytest.raises(DeviceError, match="cpu"):
        devices.pick_device(name)


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x"])
def test_what_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(InputError):
        devices.pick_device(name)
    with pytest.raises(InputError):
        devices.pick_dtype(name)


@pytest.mark.parametrize(
    "write", [files.write_text, lambda path, text: files.write_json(path, {"text": text})]
)
def test_a_fault_at_any_write_leaves_the_old_file_or_the_new_one(tmp_path: Path, every_fault, write) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    write(old, "old")
    write(new, "new")
    target = tmp_path / "target"
    states: list[bytes] = []

    def check(n: int) -> None:
        states.append(target.read_bytes())
        write(target, "old")

    write(target, "old")
    assert every_fault(lambda n: write(target, "new") and None, check) == 2
    assert states == [old.read_bytes(), new.read_bytes(), new.read_bytes()]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old", "target"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = files.write_text(tmp_path / "x", "old")
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, [float("nan")])
    with pytest.raises(KeyError), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    with pytest.raises(KeyError), files.atomic_dir(tmp_path / "d") as folder:
        (folder / "half").write_text("half")
        raise KeyError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x"]


def test_the_doctor_sees_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GLASSHOUSE_HOME", str(tmp_path / "deep" / "home"))
    seen = {observation.name: observation for observation in doctor.examine()}
    assert seen["torch"].value == torch.__version__ and seen["torch"].ok
    assert int(seen["cores"].value) == doctor.cores() >= 1
    assert seen["GLASSHOUSE_HOME"].ok and not (tmp_path / "deep").exists()
    assert all(observation.advice for observation in seen.values() if not observation.ok)
    assert {"devices", "memory", "free disk", "extra [ray]", "chromium", "Landlock"} <= set(seen)


def test_the_doctor_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GLASSHOUSE_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(doctor, "REQUIRED", ("no-such-package",))
    seen = {observation.name: observation for observation in doctor.examine()}
    assert seen["GLASSHOUSE_HOME"].ok is False and "GLASSHOUSE_HOME" in seen["GLASSHOUSE_HOME"].advice
    assert seen["no-such-package"].ok is False and "pip install" in seen["no-such-package"].advice
    assert seen["chromium"].ok is None


@pytest.mark.parametrize("package", ["runtime", "corpora"])
def test_importing_the_ground_loads_nothing_heavy(package: str) -> None:
    code = (
        "import importlib, pkgutil, sys\n"
        f"import glasshouse.{package} as package\n"
        "for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "    importlib.import_module(module.name)\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
