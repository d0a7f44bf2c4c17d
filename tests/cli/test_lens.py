"""`glasshouse lens`: it trains, resumes, shows prompts, refuses in one sentence; hostile text stays text."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from glasshouse import cli
from glasshouse.internals.tuned_lens import TunedLens, evaluate

QUICK = ["--steps", "6", "--tokens-per-step", "128", "--length", "16", "--device", "cpu"]
HOSTILE = "<script>alert('x')</script> \x1b[31mred\u202e"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = Path(__file__).parents[1] / "subjects" / "conftest.py"
    spec = importlib.util.spec_from_file_location("lens_subjects_conftest", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("lens") / "model"
    module.tiny_model("gpt2", vocab=300).save_pretrained(folder)
    module.byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def house(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLASSHOUSE_HOME", str(model.parent / "home"))
    monkeypatch.setenv("GLASSHOUSE_PROGRESS", "off")
    torch.set_num_threads(1)
    texts = [{"text": f"the {w} of the number {i}"} for i in range(20) for w in ("colour", "size")]
    (tmp_path / "few.jsonl").write_text('{"text": "short"}\n')
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts))
    return tmp_path


def lens(model: Path, *arguments: str) -> int:
    return cli.run(["lens", str(model), *QUICK, *arguments])


def test_it_trains_judges_and_shows_a_prompt(model, house, capsys) -> None:
    assert lens(model, "--data", "texts.jsonl", "--prompt", HOSTILE, "--out", "o") == 0
    said = capsys.readouterr().out
    assert "at 2 of 2 layers" in said and "\x1b" not in said and "\u202e" not in said
    frame = pd.read_parquet("o/lens.parquet")
    assert set(frame.lens) == {"TunedLens", "LogitLens"} and set(frame.metric) == {
        "ce",
        "kl",
        "entropy",
        "bias",
    }
    told = json.loads(Path("o/lens.json").read_text())
    assert told["data"]["source"] == "text of texts.jsonl" and len(told["layers"]) == 2
    page = Path("o/lens.html").read_text()
    assert "<script>alert" not in page and "\x1b" not in page and "\u202e" not in page
    assert "Prompt 1" in page and "://" not in page.replace("http://www.w3.org/2000/svg", "")
    import glasshouse

    subject = glasshouse.open(str(model), device="cpu")
    saved = TunedLens.load("o/lens", subject)
    assert saved.steps == 6 and saved.losses_.shape == (6, 2)
    capsys.readouterr()
    assert lens(model, "--data", "texts.jsonl", "--lens", "o/lens", "--out", "again") == 0
    assert json.loads(Path("again/lens.json").read_text())["layers"] == told["layers"]
    assert evaluate(saved, subject, ["the size of the number 3"]).n_layers == 2


def test_without_data_the_model_writes_and_it_is_said_aloud(model, house, capsys) -> None:
    assert lens(model, "--rows", "12", "--out", "o") == 0
    heard = capsys.readouterr()
    assert "the model writes 12 rows of 16 tokens" in heard.err
    assert "text that the model wrote itself" in heard.out
    written = Path("o/written.safetensors").read_bytes()
    assert lens(model, "--rows", "12", "--out", "o") == 0
    assert Path("o/written.safetensors").read_bytes() == written


def test_a_killed_training_goes_on_and_ends_in_the_same_bytes(model, house, faults) -> None:
    from glasshouse.internals.tuned_lens import training

    assert lens(model, "--data", "texts.jsonl", "--out", "whole") == 0
    every, training.SNAPSHOT_EVERY = training.SNAPSHOT_EVERY, 2
    try:
        for n in (3, 6, 9):
            faults.at(n)
            with pytest.raises(faults.Killed):
                lens(model, "--data", "texts.jsonl", "--out", f"o{n}")
            faults.off()
            assert lens(model, "--data", "texts.jsonl", "--out", f"o{n}") == 0
            for name in ("lens/lens.safetensors", "lens.json"):
                assert Path(f"o{n}", name).read_bytes() == Path("whole", name).read_bytes()
    finally:
        training.SNAPSHOT_EVERY = every


def test_a_dry_run_says_the_cost_and_writes_nothing(model, house, capsys) -> None:
    assert lens(model, "--dry-run") == 0
    assert "6 steps, 768 tokens through 2 translators of width 32" in capsys.readouterr().out
    assert {p.name for p in house.iterdir()} == {"texts.jsonl", "few.jsonl"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--data", "absent.jsonl"], "absent.jsonl"),
        (["--data", "few.jsonl"], "less than one row of 16"),
        (["--lens", "absent"], "no readable settings file"),
        (["--lens", "a", "--published", "b"], "two lenses"),
        (["--published", "absent"], "no such folder"),
        (["--steps", "0"], "steps is 0"),
        (["--rows", "1"], "at least 5"),
        (["--opt", "lion"], "opt is 'lion'"),
        (["--out", "texts.jsonl"], "is a file"),
    ],
)
def test_wrong_use_is_refused_in_one_sentence(model, house, capsys, arguments, told) -> None:
    assert lens(model, *arguments) == 2
    heard = capsys.readouterr().err.strip()
    assert told in heard and "Traceback" not in heard and "\n" not in heard
