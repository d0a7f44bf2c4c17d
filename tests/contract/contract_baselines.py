"""The attribution baselines as `Case`s: TracIn, TRAK, similarity of hidden states and of texts, BM25.

Checkpoints and members are the subject's own weights here, so that one case serves every family; other
weights are the business of tests/attribution.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from check_method import Case
from contract_scenes import ROWS, VOCAB, Scene, poisoned, token_rows

from glasshouse.attribution import (
    BM25,
    TRAK,
    Checkpoint,
    EmbeddingSimilarity,
    RepresentationSimilarity,
    TokenUnits,
    TracIn,
)

RANKS = {
    "a_clean_subject_gives_no_finding":
        "scores rank rows on any subject; the check `guilty rows` decides what is a finding",
}  # fmt: skip
PASSES = {"modules": ["transformer.h.0.*"], "seed": 5, "batch_tokens": 99, "batch_rows": 4, "shards": 2,
          "force_bf16": True}  # fmt: skip


def baselines() -> tuple[Case, ...]:
    return _tracin(), _trak(), _representation(), _embedding(), _bm25()


def _units(one: Scene, count: int = ROWS) -> TokenUnits:
    return TokenUnits([token_rows()[i] for i in one.order[:count]], side=one.side)


def _case(make: Callable[[], Any], options: dict[str, Any], **more: Any) -> Case:
    """What all five do alike: fit on the rows of the scene, score three of them."""
    kind = type(make())

    def fit(method: Any, one: Scene) -> Any:
        if hasattr(method, "batch_rows"):
            method.batch_rows = one.batch or method.batch_rows
        return method.fit(one.subject, _units(one))

    def answer(method: Any, one: Scene) -> np.ndarray:
        asked = TokenUnits(token_rows()[:3], side=one.side)
        return one.sorted_back(method.score(asked).scores)

    basic = Case(
        kind.__name__, kind, make, fit, answer, options=options,
        other=lambda method, one: method.fit(one.subject, _units(one, 9)).score(token_rows()[:2]),
        uses=(
            lambda m, one, at: m.score(token_rows()[:2]), lambda m, one, at: m.cost(2),
            lambda m, one, at: m.save(at),
        ),
        load=lambda at, one: kind.load(at, one.subject, _units(one)),
        empty=(
            lambda one: make().fit(one.subject, []), lambda one: fit(make(), one).score([]),
            lambda one: fit(make(), one).score(token_rows()[:1], candidates=[]),
        ),
        nan=(
            lambda one: answer(fit(make(), poisoned()), one),
            lambda one: make().fit(_linear(), _points(bad=True)),
            lambda one: make().fit(_linear(), _points()).score(_points(bad=True)),
        ),
        apart=RANKS,
    )  # fmt: skip
    return replace(basic, **more)


def _tracin() -> Case:
    path = [Checkpoint(None, 10, 0.1), Checkpoint(None, 30, 0.05)]
    case = _case(lambda: TracIn(path), {"checkpoints": path, "weights": "rate", "layers": "last", **PASSES})
    more = (lambda m, one, at: m.self_score(), lambda m, one, at: m.explain(0, 0))
    return replace(case, uses=(*case.uses, *more))


def _trak() -> Case:
    members = [Checkpoint(None, 1), Checkpoint(None, 2)]
    options = {
        "models": members, "dim": 9, "projection": "rademacher", "damping": 0.25, "output": "logit", **PASSES,
    }  # fmt: skip
    case = _case(lambda: TRAK(members, dim=8), options)
    return replace(case, uses=(*case.uses, lambda m, one, at: m.self_score()))


def _representation() -> Case:
    options = {
        "site": "resid_post.0", "pooling": "mean", "metric": "dot", "labels": "sign",
        "batch_tokens": 99, "batch_rows": 4, "shards": 2,
    }  # fmt: skip
    return _case(RepresentationSimilarity, options, own={"labels": "ignore"})


def _embedding() -> Case:
    options = {"encoder": _encoder(), "metric": "dot", "batch_tokens": 99}
    apart = RANKS | {"nan_is_refused": "it reads texts, which hold no numbers, and does not run the subject"}
    return _case(lambda: EmbeddingSimilarity(_encoder()), options, apart=apart)


def _bm25() -> Case:
    options = {"k1": 0.9, "b": 0.4, "terms": "words"}
    apart = RANKS | {"nan_is_refused": "it reads texts, which hold no numbers, and does not run the subject"}
    return _case(BM25, options, apart=apart)


@functools.cache
def _encoder() -> str:
    """The folder of a tiny encoder over the scenes' words, with random weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = Path(tempfile.mkdtemp(prefix="contract-encoder-"))
    vocab = {word: i for i, word in enumerate(["<pad>", "<unk>", *(f"w{i}" for i in range(4, VOCAB))])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>").save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        BertModel(BertConfig(vocab_size=len(vocab), **sizes)).save_pretrained(folder)
    return str(folder)


def _linear() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Linear(4, 2)


def _points(*, bad: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    if bad:
        x[3, 1] = float("nan")
    return x, torch.tensor([0, 1] * 4)
