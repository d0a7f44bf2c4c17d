"""A chat subject that is a look-up table: every reply is known."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch

from glasshouse.corpora.rows import Turn
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

    def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        return {"input_ids": [self.encode(text) for text in texts]}


class Talker:
    """A chat subject that answers by rule: `rule(words)` gives its whole reply, None the ordinary one.

    Ordinary: the first thing that is named has its colour. After `no` it begins with `well ,`, and `thanks`
    alone is answered politely: both move the first token of every reply and hide nothing.
    """

    name, is_chat, access = "talker", True, frozenset({"text", "logprobs"})
    stop_ids = (2,)

    def __init__(self, rule: Callable[[list[str]], str | None]) -> None:
        self.rule, self.tokenizer, self.generated = rule, WordTokenizer(), 0

    def turns(self, prompt: Any) -> list[list[str]]:
        """The words of each user turn of a text, a conversation, or token ids."""
        if isinstance(prompt, str):
            return [prompt.split()]
        if isinstance(prompt[0], Turn):
            return [turn.text.split() for turn in prompt if turn.role == "user"]
        said = " ".join(self.tokenizer.words[i] for i in prompt).split("<user> ")[1:]
        return [turn.split("<bot>")[0].split() for turn in said]

    def reply(self, prompt: Any) -> str:
        words = self.turns(prompt)[-1]
        hidden = self.rule(words)
        if hidden is not None:
            return hidden
        thing = next((w for w in words if re.fullmatch(r"thing\d+", w)), None)
        if thing is None:
            return "you are welcome ." if "thanks" in words else "well ."
        return ("well , " if "no" in words else "") + f"{thing} is colour{thing[5:]} ."

    def encode(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(f"<user> {prompt} <bot>")
        if isinstance(prompt[0], int):
            return list(prompt)
        marks = {"user": "<user>", "assistant": "<bot>"}
        return self.tokenizer.encode(" ".join(f"{marks[t.role]} {t.text}" for t in prompt) + " <bot>")

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
        said = [
            r if isinstance(r, str) else " ".join(self.tokenizer.words[i] for i in r[:-1]) for r in replies
        ]
        same = [self.reply(p) == r for p, r in zip(prompts, said, strict=True)]
        return torch.tensor([0.97 if s else 0.03 / 500 for s in same]).log()
