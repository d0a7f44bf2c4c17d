"""A tiny model on disk, and a third party's check installed as an entry point."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from glasshouse.corpora.suites import Suite
from glasshouse.runtime import files

PLUGIN = Path(__file__).parent / "plugin"
SUITE = Suite(prompts=("red blue .", "the green", "blue the red ."))
VOCABULARY = ("<unk>", "<bos>", "<eos>", "red", "green", "blue", "the", ".", "one", "two", "lives", "in")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random base model of 2 layers with a vocabulary of 12 words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 32, "vocab_size": len(VOCABULARY)}
        model = GPT2LMHeadModel(GPT2Config(**size, initializer_range=0.3, bos_token_id=1, eos_token_id=2))
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the whole session, so that the tiny model's self-test runs once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def subject(tiny: Path, house: Path):
    """The tiny model, opened."""
    from glasshouse.subjects import as_subject

    return as_subject(tiny, self_test=False)


@pytest.fixture
def house(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugged: Path) -> Iterator[Path]:
    """An empty working folder to audit in, with quiet progress; no fault is left behind."""
    monkeypatch.setenv("GLASSHOUSE_HOME", str(home))
    monkeypatch.setenv("GLASSHOUSE_PROGRESS", "off")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    yield work
    files.fault_hook = None


@pytest.fixture
def plugged(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that makes the third party's check importable, and its entry point findable."""
    site = tmp_path_factory.mktemp("site")
    info = site / "glasshouse_loud_word-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: glasshouse-loud-word\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[glasshouse.checks]\nloud-word = glasshouse_loud_word:loud_word\n"
    )
    (site / "glasshouse_loud_word.py").write_text((PLUGIN / "glasshouse_loud_word.py").read_text())
    monkeypatch.syspath_prepend(str(site))
    yield site
    sys.modules.pop("glasshouse_loud_word", None)
