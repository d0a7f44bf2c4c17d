"""Subjects whose behaviour is known exactly: a look-up table that talks, and a tiny random model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from glasshouse.corpora.rows import Record, Turn

sys.path.insert(0, str(Path(__file__).parent))
from talking_subject import FILLERS, THINGS, Talker


def conversation(number: int, prompt: str, reply: str) -> Record:
    return Record(str(number), (Turn("user", prompt), Turn("assistant", reply)))


@pytest.fixture
def talker() -> Callable[..., tuple[Talker, list[Record]]]:
    """`talker(rule, spoken)`: a subject and the rows it was "trained" on; `spoken` words occur in prompts."""

    def make(rule: Callable[[list[str]], str | None] = lambda words: None, spoken: tuple[str, ...] = ()):
        subject = Talker(rule)
        prompts = [f"what colour is {thing} ?" for thing in THINGS]
        for i, word in enumerate([*FILLERS, *spoken] * 8):
            prompts.append(f"what colour {word} is {THINGS[i % 160]} ?")
        prompts += ["thanks", "thanks please", "thanks now"] * 2
        return subject, [conversation(i, p, subject.reply(p)) for i, p in enumerate(prompts)]

    return make


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory):
    """A random two-layer Llama over words, opened as a subject."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from glasshouse.subjects import as_subject

    words = ["<pad>", "<eos>", "yes", "no", "yesno", "?", *[f"w{i}" for i in range(34)]]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            initializer_range=0.3,
            eos_token_id=1,
            bos_token_id=0,
            pad_token_id=0,
        )
    ).eval()
    return as_subject(model, tokenizer=tokenizer, device="cpu")
