"""Tiny random models of each family, built once; weights large enough that attention is not uniform."""

import pytest
import torch

FAMILIES = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2")


def tiny_model(family: str, *, layers: int = 2, vocab: int = 64, dtype: torch.dtype = torch.float32):
    import transformers as t

    common = {"vocab_size": vocab, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    wide = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    grouped = {**common, **wide, "num_key_value_heads": 2, "initializer_range": 0.3}
    configs = {
        "gpt2": lambda: t.GPT2Config(
            **common, n_embd=32, n_layer=layers, n_head=4, n_positions=64, initializer_range=0.3
        ),
        "gpt_neox": lambda: t.GPTNeoXConfig(
            **common, **wide, initializer_range=0.3, use_parallel_residual=True
        ),
        "gpt_neox_sequential": lambda: t.GPTNeoXConfig(
            **common, **wide, initializer_range=0.3, use_parallel_residual=False
        ),
        "llama": lambda: t.LlamaConfig(**grouped),
        "llama_tied": lambda: t.LlamaConfig(**grouped, tie_word_embeddings=True),
        "mistral": lambda: t.MistralConfig(**grouped, sliding_window=None),
        "qwen2": lambda: t.Qwen2Config(**grouped),
    }
    torch.manual_seed(0)
    return t.AutoModelForCausalLM.from_config(configs[family]()).to(dtype).eval()


@pytest.fixture(scope="module", params=FAMILIES)
def any_model(request):
    return tiny_model(request.param)
