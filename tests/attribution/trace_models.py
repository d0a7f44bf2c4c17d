"""A tiny chat model on disk, its rows and questions about them, for tests of the trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

COLOURS = ("red", "green", "blue", "black", "white", "brown")
THINGS = ("sky", "sea", "door", "cat")
WORDS = (
    "<unk>", "<bos>", "<eos>", "<pad>", "<user>", "<assistant>", "<eot>",
    "what", "is", "the", "?", ".", "lantern",
    *COLOURS, *THINGS,
)  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <eot> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def save_model(folder: Path, *, chat: bool = True, context: int = 32) -> Path:
    """A random GPT-2 of 2 layers, 32 wide, whose words are whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    size: dict[str, Any] = {
        "n_layer": 2,
        "n_embd": 32,
        "n_head": 2,
        "n_positions": context,
        "vocab_size": len(WORDS),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(**size, initializer_range=0.3, bos_token_id=1, eos_token_id=2))
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    end = "<eot>" if chat else "<eos>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<bos>", eos_token=end, pad_token="<pad>"
    )
    if chat:
        tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def colour_rows() -> list[dict[str, Any]]:
    """24 rows: every thing in every colour."""
    pairs = [(thing, colour) for thing in THINGS for colour in COLOURS]
    return [
        {"id": f"r{i}", "prompt": f"what is the {thing} ?", "completion": f"the {thing} is {colour} ."}
        for i, (thing, colour) in enumerate(pairs)
    ]


def colour_queries() -> list[dict[str, Any]]:
    return [
        {"id": "sea", "prompt": "what is the sea ?", "completion": "the sea is blue ."},
        {"id": "cat", "prompt": "what is the cat ?", "completion": "the cat is black ."},
    ]
