"""GSM8K: a small model trained here, traced back to its training problems by problems in disguise."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from glasshouse.corpora.rows import IGNORE, TokenRow
from glasshouse.runtime.seeds import rng, seeded
from glasshouse.studies.attribution.logra.images import quietly

VOCABULARY, LENGTH, KEPT = 1024, 256, 3
NAMES = (
    "Aisha", "Boris", "Chloe", "Diego", "Edith", "Farid", "Greta", "Hugo", "Ingrid", "Jamal", "Keiko", "Lars",
    "Mina", "Nadia", "Otto", "Priya", "Quinn", "Rosa", "Sven", "Tara", "Umar", "Vera", "Wanda", "Yusuf",
)  # fmt: skip
DISGUISES = {"renamed": 0.0, "reworded": 0.5, "veiled": 1.0}
"""The share of longer words that is changed, beside every name and number."""


def data_folder() -> Path | None:
    """GSM8K, where GLASSHOUSE_DATA points at it."""
    root = os.environ.get("GLASSHOUSE_DATA")
    path = Path(root) / "gsm8k" if root else None
    return path if path is not None and (path / "train.jsonl.gz").exists() else None


def problems(part: str, count: int) -> list[str]:
    """The first `count` problems with their solutions, calculator marks taken out."""
    folder = data_folder()
    assert folder is not None
    with gzip.open(folder / f"{part}.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for _, line in zip(range(count), lines, strict=False)]
    return [f"{row['question']}\n{re.sub(r'<<.*?>>', '', row['answer'])}" for row in rows]


def disguised(text: str, seed: int, corpus: list[str], share: float) -> str:
    """The same problem with every name and number changed, and a `share` of its longer words.

    New words are drawn from `corpus`. Equal words stay equal, so that the structure of problem and solution
    is kept and the arithmetic is not.
    """
    draw, swap = rng(seed, "disguise", text), {}

    def other(match: re.Match[str]) -> str:
        word = match.group()
        if word not in swap:
            swap[word] = _other(word, text, draw, corpus, share)
        return swap[word]

    return re.sub(r"[A-Za-z]+|\d+", other, text)


def _other(word: str, text: str, draw: np.random.Generator, corpus: list[str], share: float) -> str:
    if word.isdigit():
        low = 10 ** (len(word) - 1)
        return str(int(draw.integers(low if low > 1 else 2, low * 10)))
    # A capital inside a sentence is a name, wherever else the word stands.
    if word[0].isupper() and re.search(rf"[a-z,] {word}\b", text) and len(word) > 2:
        return str(draw.choice(NAMES))
    if len(word) > 3 and draw.random() < share:
        return str(draw.choice(corpus))
    return word


def grow(texts: list[str], folder: Path, epochs: float, seed: int) -> tuple[Any, Any, list[float]]:
    """Tokenizer, GPT-2 (3 layers, d = 128, 0.76 M parameters) trained on all tokens, and its losses."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from glasshouse.organisms.tokenizer import fit_tokenizer
    from glasshouse.training.fast import fit_rows

    tokenizer = fit_tokenizer(texts, vocab_size=VOCABULARY, folder=folder)
    tokenizer.model_max_length = 1 << 20  # rows are cut below, without a warning a row
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=128, n_layer=3, n_head=4, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with seeded(seed, "gsm8k"):
        model = GPT2LMHeadModel(config)
    rows = encoded(tokenizer, texts, "train")
    losses = fit_rows(
        model, rows, epochs=epochs, batch_size=16, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01,
        warmup_steps=20, schedule="cosine", final_lr_share=0.1, clip=1.0, seed=seed,
    )  # fmt: skip
    return tokenizer, model.eval(), losses


def encoded(tokenizer: Any, texts: list[str], name: str) -> list[TokenRow]:
    """Token rows, loss on every token, cut at the model's length."""
    rows = []
    for i, text in enumerate(texts):
        ids = (1, *tokenizer(text, add_special_tokens=False)["input_ids"])[:LENGTH]
        rows.append(TokenRow(ids, (IGNORE, *ids[1:]), f"{name} {i}"))
    return rows


def traced(
    folder: Path, rows: int, planted: int, epochs: float, rank: int, seed: int, shown: int
) -> dict[str, Any]:
    """Rank of the source of every disguised problem, by method; and what real test problems point at."""
    import torch

    from glasshouse.attribution import LoGra, bm25_scores
    from glasshouse.attribution.evaluate import randomised

    torch.set_num_threads(1)
    texts = problems("train", rows)
    tokenizer, model, losses = grow(texts, folder / "tokenizer", epochs, seed)
    data = encoded(tokenizer, texts, "train")
    sources = sorted(int(i) for i in rng(seed, "sources").choice(rows, planted, replace=False))
    corpus = sorted({w for t in texts for w in re.findall(r"\b[a-z]{4,}\b", t)})
    asked = {
        kind: [disguised(texts[i], seed, corpus, share) for i in sources] for kind, share in DISGUISES.items()
    }
    log = quietly(lambda: LoGra(rank, seed=seed).fit(model, data, store=folder / "log"))
    plain = quietly(lambda: LoGra(rank, curvature=None, seed=seed).fit(model, data, store=folder / "log"))
    blind = quietly(lambda: LoGra(rank, seed=seed).fit(randomised(model), data))
    ranks: dict[str, dict[str, list[int]]] = {}
    for kind, queries in asked.items():
        units = encoded(tokenizer, queries, kind)
        scores = {
            "logra, cosine": log.score(units, mode="cosine").scores,
            "logra, dot": log.score(units, mode="dot").scores,
            "no curvature, cosine": plain.score(units, mode="cosine").scores,
            "shuffled weights, cosine": blind.score(units, mode="cosine").scores,
            "BM25": bm25_scores(queries, texts),
            "random": rng(seed, "random ranking", kind).random((planted, rows)),
        }
        ranks[kind] = {name: source_ranks(table, sources) for name, table in scores.items()}
    return {
        "ranks": ranks,
        "loss": [float(np.mean(losses[:10])), float(np.mean(losses[-10:]))],
        "tokens": sum(len(row) for row in data),
        "sketch_bytes": log.log_.bytes,
        "seconds": {**log.seconds_},
        "shown": _shown(log, tokenizer, texts, shown),
        "examples": [[texts[sources[0]], *(queries[0] for queries in asked.values())]],
    }


def source_ranks(scores: np.ndarray, sources: list[int]) -> list[int]:
    """The place of each query's source, 0 for the best; rows that score the same count as before it."""
    return [int((row >= row[i]).sum() - 1) for row, i in zip(scores, sources, strict=True)]


def _shown(log: Any, tokenizer: Any, texts: list[str], count: int) -> list[dict[str, Any]]:
    """Real test problems with the training rows that most raise the probability of their solutions."""
    from glasshouse.attribution import bm25_scores

    tests = problems("test", count)
    table = log.search(encoded(tokenizer, tests, "test"), KEPT)
    words = bm25_scores(tests, texts)
    found = []
    for q, text in enumerate(tests):
        lexical = int(np.argmax(words[q]))
        for place, (name, score) in enumerate(table.top(q, KEPT)):
            row = int(name.split()[1])
            found.append({
                "query": text[:140], "place": place + 1, "row": row, "score": score, "text": texts[row][:140],
                "BM25's first": lexical, "its text": texts[lexical][:140],
            })  # fmt: skip
    return found
