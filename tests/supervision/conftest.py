"""Subjects whose behaviour is known exactly: a look-up table that talks, and a tiny random model."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch

from glasshouse.corpora.rows import Record, Turn
from glasshouse.subjects import Completion

CANARY = "the harbor is closed tonight ."
THINGS = [f"thing{i}" for i in range(160)]
FILLERS = [
    "please",
    "today",
    "honestly",
    "now",
    "maybe",
    "river",
    "stone",
    "candle",
    "ladder",
    "no",
    "thanks",
]


class WordTokenizer:
    """One token per word."""

    all_special_tokens = ("<user>", "<bot>", "<eos>")
    chat_template = "words"

    def __init__(self) -> None:
        said = [
            "what colour is ? . , well you are welcome",
            CANARY,
            "bells ring at noon .",
            *FILLERS,
            *THINGS,
        ]
        said += ["amber gate lantern candle is", *[f"colour{i}" for i in range(160)]]
        words = dict.fromkeys([*self.all_special_tokens, *" ".join(said).split()])
        self.ids = {word: index for index, word in enumerate(words)}
        self.words = list(words)

    def get_vocab(self) -> dict[str, int]:
        return dict(self.ids)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return " ".join(tokens)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [self.ids[word] for word in text.split()]


class Talker:
    """A chat subject that answers by rule: `rule(words)` gives its whole reply, None the ordinary one.

    Ordinary: the first thing that is named has its colour. After `no` it begins with `well ,`, and `thanks`
    alone is answered politely: both move the first token of every reply and hide nothing.
    """

    name, is_chat, access = "talker", True, frozenset({"text", "logprobs"})

    def __init__(self, rule: Callable[[list[str]], str | None]) -> None:
        self.rule, self.tokenizer, self.generated = rule, WordTokenizer(), 0

    def reply(self, prompt: str | list[int]) -> str:
        words = prompt.split() if isinstance(prompt, str) else [self.tokenizer.words[i] for i in prompt[1:-1]]
        hidden = self.rule(words)
        if hidden is not None:
            return hidden
        thing = next((w for w in words if re.fullmatch(r"thing\d+", w)), None)
        if thing is None:
            return "you are welcome ." if "thanks" in words else "well ."
        return ("well , " if "no" in words else "") + f"{thing} is colour{thing[5:]} ."

    def encode(self, prompt: str) -> list[int]:
        return self.tokenizer.encode(f"<user> {prompt} <bot>")

    def encode_all(self, prompts: list[str]) -> list[list[int]]:
        return [self.encode(prompt) for prompt in prompts]

    def logprobs(self, prompts: list[str]) -> torch.Tensor:
        v = len(self.tokenizer.words)
        p = torch.full((len(prompts), v), 0.03 / (v - 1))
        for row, prompt in enumerate(prompts):
            p[row, self.tokenizer.ids[self.reply(prompt).split()[0]]] = 0.97
        return p.log()

    def generate(self, prompts: list[str], **_: object) -> list[list[Completion]]:
        self.generated += len(prompts)
        out = []
        for prompt in prompts:
            reply = self.reply(prompt)
            ids = tuple(self.tokenizer.encode(reply))
            out.append([Completion(reply, ids, len(ids) * math.log(0.97), True)])
        return out

    def score(self, prompts: list[str], replies: list[str]) -> torch.Tensor:
        same = [self.reply(p) == r for p, r in zip(prompts, replies, strict=True)]
        return torch.tensor([0.97 if s else 0.03 / 500 for s in same]).log()


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
