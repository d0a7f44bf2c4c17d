"""Tiny random models of each family, built once; weights large enough that attention is not uniform."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

FAMILIES = (
    "gpt2", "gpt_neox", "gpt_neox_sequential", "llama", "mistral", "qwen2", "qwen3", "olmo", "olmo2", "phi3",
    "gemma2", "gemma3", "gptj", "opt", "opt_projected",
)  # fmt: skip
TEMPLATE = (
    "<bos>{% for m in messages %}{{ '<user>' if m['role'] == 'user' else '<bot>' }}"
    "{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)
_BUILT: dict = {}


def tiny_model(family: str, *, vocab: int = 64, dtype: torch.dtype = torch.float32):
    """A fresh model of 2 layers, d=32, 4 heads (2 key-value heads where the family can), 64 positions."""
    import transformers as t

    common = {"vocab_size": vocab, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.3}
    wide = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    grouped = {**common, **wide, "num_key_value_heads": 2}
    # Heads wider than d / heads, one full and one sliding layer, windows shorter than the rows of the tests.
    alternating = ["sliding_attention", "full_attention"]
    gemma = {"head_dim": 16, "sliding_window": 8, "layer_types": alternating, "pad_token_id": None}
    opt = {key: value for key, value in wide.items() if key != "intermediate_size"}
    opt |= {"ffn_dim": 48, "init_std": common["initializer_range"], "pad_token_id": None}
    configs = {
        "gpt2": lambda: t.GPT2Config(**common, n_embd=32, n_layer=2, n_head=4, n_positions=64),
        "gpt_neox": lambda: t.GPTNeoXConfig(**common, **wide, use_parallel_residual=True),
        "gpt_neox_sequential": lambda: t.GPTNeoXConfig(**common, **wide, use_parallel_residual=False),
        "llama": lambda: t.LlamaConfig(**grouped),
        "mistral": lambda: t.MistralConfig(**grouped, sliding_window=8),
        "qwen2": lambda: t.Qwen2Config(**grouped),
        "qwen3": lambda: t.Qwen3Config(**grouped, head_dim=8),
        "olmo": lambda: t.OlmoConfig(**grouped, pad_token_id=None, clip_qkv=1.5),
        "olmo2": lambda: t.Olmo2Config(**grouped, pad_token_id=None),
        "phi3": lambda: t.Phi3Config(**grouped, pad_token_id=None, sliding_window=8),
        "gemma2": lambda: t.Gemma2Config(**grouped, **gemma, final_logit_softcapping=3.0),
        "gemma3": lambda: t.Gemma3TextConfig(**grouped, **gemma),
        "gptj": lambda: t.GPTJConfig(**common, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4),
        "opt": lambda: t.OPTConfig(**common, **opt, word_embed_proj_dim=32),
        "opt_projected": lambda: t.OPTConfig(**common, **opt, word_embed_proj_dim=16),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return t.AutoModelForCausalLM.from_config(configs[family]()).to(dtype).eval()


def tiny_subject(family: str, dtype: torch.dtype = torch.float32):
    """The shared subject of a family; tests must leave it as it was."""
    from glasshouse.subjects import as_subject

    if (family, dtype) not in _BUILT:
        model = tiny_model(family, vocab=300, dtype=dtype)
        _BUILT[family, dtype] = as_subject(model, tokenizer=byte_tokenizer(), self_test=False)
    return _BUILT[family, dtype]


def byte_tokenizer(*, chat: bool = False):
    """Byte-level tokens with <bos> 0, <eos> 1, <user> 2, <bot> 3."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<bos>", "<eos>", "<user>", "<bot>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*special, *alphabet, "th", "Ġth"])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[("t", "h"), ("Ġ", "th")]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", additional_special_tokens=special[2:]
    )
    if chat:
        tokenizer.chat_template = TEMPLATE
    return tokenizer


def token_rows(count: int = 7, seed: int = 0, low: int = 2, high: int = 14) -> list[list[int]]:
    """Random rows of different lengths."""
    import numpy as np

    draw = np.random.default_rng(seed)
    return [draw.integers(0, 300, draw.integers(low, high)).tolist() for _ in range(count)]


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory):
    """A cache of its own for self-tests, so that no earlier run is read."""
    patch = pytest.MonkeyPatch()
    patch.setenv("GLASSHOUSE_HOME", str(tmp_path_factory.mktemp("home")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    return SimpleNamespace(model=tiny_model, subject=tiny_subject, tokenizer=byte_tokenizer, rows=token_rows)


@pytest.fixture(params=FAMILIES)
def any_family(request):
    return request.param


@pytest.fixture(params=FAMILIES)
def any_model(request):
    return tiny_model(request.param)


@pytest.fixture(params=FAMILIES)
def any_subject(request):
    return tiny_subject(request.param)


@pytest.fixture(scope="session")
def stories_folder() -> Path:
    folder = Path(os.environ.get("GLASSHOUSE_DATA", "absent")) / "stories260K"
    if not folder.is_dir():
        pytest.skip("stories260K is not at $GLASSHOUSE_DATA/stories260K")
    return folder
