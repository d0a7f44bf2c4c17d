"""Subjects whose lens is known: a stream that is rotated before it is read, one with a planted reader."""

from __future__ import annotations

import math

import torch

from glasshouse.internals.tuned_lens import Head, LogitLens
from glasshouse.subjects.subject import Run, Subject


def rows_of_model(subject, count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Rows that the model writes itself."""
    start = getattr(subject.model.config, "bos_token_id", None) or 0
    said = subject.generate_ids(
        [[start]], n=count, temperature=1.0, max_new_tokens=length - 1, stop_ids=[], seed=seed
    )[0]
    return [[start, *(int(i) for i in getattr(one, "ids", one))] for one in said]


class Rotated(Subject):
    """Spec B: h'_l = Q_l h_l + c_l is observed at every layer l < L; the model itself is unchanged."""

    def __init__(self, subject: Subject, seed: int = 0) -> None:
        super().__init__(subject.model, subject.tokenizer, name=f"rotated {subject.name}")
        draw = torch.Generator().manual_seed(seed)
        d = subject.d_model
        self.turns = [torch.linalg.qr(torch.randn(d, d, generator=draw)).Q for _ in range(subject.n_layers)]
        self.shifts = [torch.randn(d, generator=draw) for _ in range(subject.n_layers)]

    def run(self, batch, **options):
        found = super().run(batch, **options)
        acts = {
            site: (h @ self.turns[site.layer].T + self.shifts[site.layer] if site.kind == "resid_pre" else h)
            for site, h in found.acts.items()
        }
        return Run(found.logits, acts, found.batch)


class RMS(torch.nn.Module):
    def forward(self, h):
        return h / (h.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def planted(
    seed: int, beta: float = 1.0, *, white: bool = True
) -> tuple[LogitLens, torch.Tensor, torch.Tensor]:
    """Spec D1: (lens, states [200, 32], w). Blocks are identities, so every layer is read by the head itself.

    The states are 200 embeddings with covariance exactly I, or (not `white`) with scales from 1 down to .1
    along axes of their own. The head is RMSNorm and 0.1 N(0, 1) orthogonal to w, plus beta u w'.
    """
    draw = torch.Generator().manual_seed(seed)
    d, vocab = 32, 200
    h = torch.randn(vocab, d, generator=draw)
    h = h - h.mean(0)
    values, axes = torch.linalg.eigh(h.T @ h / vocab)
    h = h @ axes / values.sqrt()  # covariance I
    w = torch.randn(d, generator=draw)
    w = w / w.norm()
    if not white:
        turn = torch.linalg.qr(torch.randn(d, d, generator=draw)).Q
        h = h @ (turn * torch.linspace(1, 0.1, d)) @ turn.T
    read = 0.1 * torch.randn(vocab, d, generator=draw)
    u = torch.randn(vocab, generator=draw)
    lens = LogitLens()
    lens.head_ = Head(RMS(), read - (read @ w)[:, None] * w + beta * u[:, None] * w)
    lens.n_layers_, lens.d_model_ = 2, d
    return lens, h, w


def uniform_kl(final: torch.Tensor) -> float:
    """KL(model || uniform), mean over tokens, from log-probabilities [n, V]: what knowing nothing costs."""
    return float(math.log(final.shape[-1]) + (final.exp() * final).sum(-1).mean())
