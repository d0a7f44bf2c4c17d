"""Small random models in folders, each with a tokenizer of its own, and a home nobody else uses."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # openai_server.py lies beside this file
torch.set_num_threads(1)

TEMPLATE = (
    "<bos>{% for m in messages %}{{ '<user>' if m['role'] == 'user' else '<bot>' }}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)
SPECIAL = ["<bos>", "<eos>", "<user>", "<bot>"]


def byte_tokenizer(*, chat: bool):
    """Byte-level BPE with a few merges, so that a space can merge with what follows it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*SPECIAL, *alphabet, "th", "Ġth", "ab", "Ġy"]
    merges = [("t", "h"), ("Ġ", "th"), ("a", "b"), ("Ġ", "y")]
    raw = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    return _wrapped(PreTrainedTokenizerFast, raw, chat)


def word_tokenizer(*, chat: bool):
    """One token per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, "<unk>", "yes", "no", "is", "it", "red", "blue", "?"]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _wrapped(PreTrainedTokenizerFast, raw, chat)


def _wrapped(kind, raw, chat: bool):
    tokenizer = kind(
        tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", additional_special_tokens=SPECIAL[2:]
    )
    if chat:
        tokenizer.chat_template = TEMPLATE
    return tokenizer


def llama(*, vocab: int, seed: int = 0, width: int = 32, context: int = 96):
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocab, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=context, bos_token_id=0, eos_token_id=1,
            initializer_range=0.3,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()


def saved(folder: Path, *, seed: int = 0, chat: bool = True, words: bool = False, always: str | None = None):
    """The folder of a saved model; with `always` one that says this word first, whatever it is asked."""
    tokenizer = word_tokenizer(chat=chat) if words else byte_tokenizer(chat=chat)
    model = llama(vocab=len(tokenizer), seed=seed)
    if always is not None:
        _say_only(model, tokenizer.convert_tokens_to_ids(always))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _say_only(model, token: int) -> None:
    """Logits that do not depend on the text: 5 nats for `token` over all others."""
    with torch.no_grad():
        model.model.norm.weight.zero_()
        model.model.norm.weight[0] = 1.0
        model.model.embed_tokens.weight[:, 0] = 100.0  # the normed residual has one sign in this direction
        model.lm_head.weight.zero_()
        model.lm_head.weight[token, 0] = 5.0


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory):
    """Caches of their own, for us and for Inspect."""
    patch = pytest.MonkeyPatch()
    home = tmp_path_factory.mktemp("home")
    patch.setenv("GLASSHOUSE_HOME", str(home))
    patch.setenv("XDG_DATA_HOME", str(home / "data"))
    patch.setenv("INSPECT_CACHE_DIR", str(home / "cache"))
    patch.setenv("INSPECT_LOG_LEVEL", "warning")
    yield
    patch.undo()


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> SimpleNamespace:
    """Folders by name, made once, and the helpers that made them."""
    root = tmp_path_factory.mktemp("models")
    return SimpleNamespace(
        chat=saved(root / "chat"),
        base=saved(root / "base", chat=False),
        words=saved(root / "words", words=True),
        yes=saved(root / "yes", words=True, always="yes"),
        no=saved(root / "no", words=True, always="no"),
        saved=saved,
        llama=llama,
        bytes=byte_tokenizer,
    )
