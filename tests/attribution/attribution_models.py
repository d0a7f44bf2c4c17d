"""Tiny models and rows for the attribution tests."""

from __future__ import annotations

import torch
from torch import nn

from glasshouse.corpora.rows import IGNORE, TokenRow

VOCAB = 23


def tiny_gpt2(seed: int = 0, **more: object) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    sizes = dict(n_layer=2, n_embd=8, n_head=2, vocab_size=VOCAB, n_positions=16, initializer_range=0.3)
    return GPT2LMHeadModel(GPT2Config(**{**sizes, **more}, bos_token_id=0, eos_token_id=0)).eval()


def tiny_llama(seed: int = 0) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = dict(num_hidden_layers=2, hidden_size=8, intermediate_size=12, num_attention_heads=2)
    more = dict(vocab_size=VOCAB, max_position_embeddings=16, initializer_range=0.3, pad_token_id=0)
    return LlamaForCausalLM(LlamaConfig(**sizes, **more, bos_token_id=0, eos_token_id=0)).eval()


def tiny_conv() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
    ).eval()


def token_rows(n: int = 9, seed: int = 0, prompt: int = 2) -> list[TokenRow]:
    """Rows of different lengths whose first `prompt` tokens carry no loss."""
    g = torch.Generator().manual_seed(seed)
    rows = []
    for k in range(n):
        length = int(torch.randint(prompt + 2, 12, (1,), generator=g))
        ids = tuple(torch.randint(1, VOCAB, (length,), generator=g).tolist())
        rows.append(TokenRow(ids, (IGNORE,) * prompt + ids[prompt:], f"{seed}-{k}"))
    return rows
