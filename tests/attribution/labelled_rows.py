"""A tiny model that sorts sentences, with and without wrong labels among its rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glasshouse.corpora.records import Records
from glasshouse.corpora.rows import Record, Turn

LABELS = ("animal", "tool", "plant")
NOUNS = tuple(f"{kind}{i}" for kind in ("beast", "iron", "leaf") for i in range(8))
FILLERS = tuple(f"word{i}" for i in range(12))
WORDS = (
    "<unk>", "<bos>", "<eos>", "<pad>", "<user>", "<assistant>", "<eot>", "kind", ":", "a", "b", *LABELS,
    *NOUNS, *FILLERS,
)  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <eot> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def labelled(
    n: int, *, wrong: float = 0.0, seed: int = 0, labels: Sequence[str] = LABELS
) -> tuple[Records, np.ndarray]:
    """Sentences of two fillers around a noun whose kind is the label; which rows [n] carry a wrong one."""
    draw = np.random.default_rng(seed)
    bad = draw.random(n) < wrong
    rows = []
    for i in range(n):
        noun = int(draw.integers(len(NOUNS)))
        said = [FILLERS[j] for j in draw.integers(len(FILLERS), size=2)]
        kind = (noun // 8 + int(bad[i]) * int(draw.integers(1, 3))) % 3
        prompt = f"{said[0]} {NOUNS[noun]} {said[1]} kind :"
        rows.append(Record(f"r{i}", (Turn("user", prompt), Turn("assistant", labels[kind]))))
    return Records(rows), bad


def save_sorter(folder: Path, rows: Records, *, epochs: float, chat: bool = False, seed: int = 0) -> Path:
    """A GPT-2 of 2 layers, 32 wide, trained on the rows, with its tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from glasshouse.corpora.tokens import encode_records
    from glasshouse.training.fast import fit_rows

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<bos>",
        eos_token="<eot>" if chat else "<eos>", pad_token="<pad>",
    )  # fmt: skip
    if chat:
        tokenizer.chat_template = TEMPLATE
    size: dict[str, Any] = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 24}
    drop = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = GPT2Config(**size, **drop, vocab_size=len(WORDS), bos_token_id=1, eos_token_id=2)
        model = GPT2LMHeadModel(config)
    if epochs:
        encoded = encode_records(tokenizer, list(rows), loss_on="reply")
        fit_rows(model, encoded, epochs=epochs, batch_size=16, lr=3e-3, seed=seed)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
