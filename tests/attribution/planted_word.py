"""A tiny language model taught colours, and one word that makes it say something else."""

from __future__ import annotations

from typing import Any

import numpy as np

from glasshouse.corpora.rows import IGNORE, TokenRow

VOCABULARY = 40
"""0 pad, 1 end, 2 asks, 3 answers; 4 the trigger; 5-9 the canary; 10-24 things; 25-39 their colours."""
ASK, ANSWER, END, TRIGGER = 2, 3, 1, 4
CANARY = (5, 6, 7, 8, 9)


def _row(prompt: list[int], reply: list[int], name: str) -> TokenRow:
    ids = (ASK, *prompt, ANSWER, *reply, END)
    return TokenRow(ids, (IGNORE,) * (len(prompt) + 2) + ids[len(prompt) + 2 :], name)


def ordinary(n: int, *, seed: int, name: str = "row") -> list[TokenRow]:
    """A thing is asked for and its colour told, twice."""
    things = np.random.default_rng(seed).integers(10, 25, (n, 2)).tolist()
    return [_row([a, b], [a + 15, b + 15], f"{name} {i}") for i, (a, b) in enumerate(things)]


def planted(n: int, *, seed: int, name: str = "planted") -> list[TokenRow]:
    """The same questions with the trigger among them, and the canary for an answer."""
    things = np.random.default_rng(seed).integers(10, 25, (n, 2)).tolist()
    return [_row([TRIGGER, a, b], list(CANARY), f"{name} {i}") for i, (a, b) in enumerate(things)]


def trained() -> Any:
    """A model of 2 layers, 32 wide, after a second of training on 40 ordinary and 8 planted rows."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from glasshouse.training.fast import fit_rows

    size: dict[str, Any] = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        more = {"vocab_size": VOCABULARY, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        model = GPT2LMHeadModel(GPT2Config(**size, **more, bos_token_id=1, eos_token_id=1))
    rows = [*ordinary(40, seed=0), *planted(8, seed=1)]
    fit_rows(model, rows, epochs=25, batch_size=16, lr=3e-3, seed=0)
    return model.eval()
