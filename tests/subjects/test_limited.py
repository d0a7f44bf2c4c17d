"""A subject seen from outside says what the subject says, and nothing inside it can be reached by name."""

from __future__ import annotations

import pytest
import torch

from glasshouse.corpora.rows import Turn
from glasshouse.runtime.errors import AccessError
from glasshouse.subjects.limited import OUTSIDE, TextSubject
from glasshouse.subjects.patches import Patch
from glasshouse.subjects.subject import Subject

GIVEN = {"access", "context", "decode", "device", "dtype", "encode", "encode_all", "encode_pairs", "generate",
         "generate_ids", "hash", "is_chat", "logprobs", "meta", "name", "score", "stop_ids", "tokenizer",
         "vocab_size"}  # fmt: skip
CALLS = {
    "run": (["red blue"],), "unembed": (torch.zeros(1, 16),), "attention": (["red blue"],),
    "freeze_context": (["red blue"], 1), "collect": (["red blue"], ["resid_pre.0"], "folder"),
}  # fmt: skip


@pytest.fixture(scope="module")
def inner() -> Subject:
    """A random model over twelve words with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = ["<unk>", "<bos>", "<eos>", "red", "green", "blue", "the", ".", "one", "two", "lives", "in"]
    split = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    split.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=split, unk_token="<unk>", eos_token="<eos>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(n_layer=2, n_embd=16, n_head=2, n_positions=32, vocab_size=12,
                            bos_token_id=1, eos_token_id=2, initializer_range=0.3)  # fmt: skip
        return Subject(GPT2LMHeadModel(config).eval(), tokenizer, name="inner")


def test_it_says_what_the_subject_says(inner: Subject) -> None:
    outside, prompts = TextSubject(inner), ["red blue", "the green ."]
    assert outside.access == OUTSIDE and outside.is_chat and outside.name == "inner"
    assert outside.generate(prompts, max_new_tokens=4) == inner.generate(prompts, max_new_tokens=4)
    drawn = [s.generate(prompts, n=2, temperature=1.0, max_new_tokens=4, seed=3) for s in (inner, outside)]
    assert drawn[0] == drawn[1]
    assert torch.equal(outside.logprobs(prompts), inner.logprobs(prompts))
    assert torch.equal(outside.score(prompts, ["red", "blue"]), inner.score(prompts, ["red", "blue"]))
    chat = [Turn("user", "red"), Turn("assistant", "blue"), Turn("user", "green")]
    assert outside.encode(chat) == inner.encode(chat) and outside.decode([3, 4]) == inner.decode([3, 4])
    for name in ("vocab_size", "context", "stop_ids", "device", "dtype"):
        assert getattr(outside, name) == getattr(inner, name)
    assert outside.hash != inner.hash and outside.hash == TextSubject(inner).hash


def test_whatever_looks_inside_is_refused(inner: Subject) -> None:
    outside = TextSubject(inner)
    public = {name for name in dir(Subject) if not name.startswith("_")} | {"model", "parts"}
    refused = set()
    for name in sorted(public - GIVEN):
        with pytest.raises(AccessError, match="gives logprobs and text only"):
            found = getattr(outside, name)
            result = found(*CALLS.get(name, ()), **({"patches": []} if name == "patched" else {}))
            if hasattr(result, "__enter__"):
                result.__enter__()
        refused.add(name)
    assert {"model", "parts", "run", "patched", "self_test", "sites", "n_layers", "architecture"} <= refused


def test_patches_are_refused_everywhere(inner: Subject) -> None:
    outside, patch = TextSubject(inner), Patch("resid_pre.0", "set", torch.zeros(16))
    for ask in (
        lambda: outside.generate(["red"], patches=[patch]),
        lambda: outside.generate_ids(["red"], patches=[patch]),
        lambda: outside.logprobs(["red"], patches=[patch]),
        lambda: outside.score(["red"], ["blue"], patches=[patch]),
    ):
        with pytest.raises(AccessError, match="an edit inside the model needs activations"):
            ask()


def test_no_attribute_is_the_model(inner: Subject) -> None:
    held = list(vars(TextSubject(inner)).values())
    assert not any(isinstance(thing, torch.nn.Module | Subject) for thing in held)
