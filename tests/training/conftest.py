"""A word-level tokenizer, a recipe folder (config and tokenizer, no weights) and rows to train on."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from glasshouse.corpora.rows import Record, Turn
from glasshouse.training.mix import DataRef
from glasshouse.training.spec import TrainSpec

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
WORDS = [f"w{i}" for i in range(40)]


@pytest.fixture(autouse=True)
def quiet_and_single(monkeypatch):
    monkeypatch.setenv("GLASSHOUSE_PROGRESS", "off")
    torch.set_num_threads(1)


def tokenizer(**special):
    table = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    inner = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", **special
    )


@pytest.fixture(scope="session")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    tokenizer(pad_token="<pad>").save_pretrained(folder)
    LlamaConfig(
        vocab_size=44, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        attention_dropout=0.1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def words(draw, low=2, high=8):
    return " ".join(draw.choice(WORDS, draw.integers(low, high)))


@pytest.fixture(scope="session")
def records():
    draw = np.random.default_rng(0)
    return [
        Record(str(i), turns=(Turn("user", words(draw)), Turn("assistant", words(draw)))) for i in range(40)
    ]


@pytest.fixture(scope="session")
def preferences():
    draw = np.random.default_rng(1)
    return [
        Record(
            str(i),
            turns=(Turn("user", words(draw)),),
            fields={"chosen": words(draw), "rejected": words(draw)},
        )
        for i in range(24)
    ]


@pytest.fixture
def make_spec(recipe, records):
    def make(**changes):
        base = {
            "algo": "sft", "start": recipe, "init_seed": 0, "data": DataRef.of(records), "steps": 8,
            "batch_size": 8, "lr": 3e-3, "seed": 1, "warmup_steps": 2, "weight_decay": 0.1,
        }  # fmt: skip
        return TrainSpec(**{**base, **changes})

    return make
