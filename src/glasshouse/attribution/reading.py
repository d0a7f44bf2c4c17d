"""What the similarity baselines compare: hidden states, sentence vectors, texts. Pure functions of shards."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glasshouse.attribution.units import TokenUnits, Units, cost_batches
from glasshouse.corpora.rows import Record, TokenBatch, TokenRow
from glasshouse.runtime.errors import AccessError, InputError

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Texts:
    """Texts (or sequences of token ids) with their names."""

    ids: tuple[str, ...]
    texts: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sha256(self) -> str:
        """Content address of names and texts."""
        digest = hashlib.sha256()
        for pair in zip(self.ids, self.texts, strict=True):
            digest.update(repr(pair).encode())
        return digest.hexdigest()


def as_texts(data: Any, tokenizer: Any = None, *, terms: str = "words") -> Texts:
    """Texts of strings, Records, TokenRows or TokenUnits; with `terms` "tokens" (or "auto") token ids.

    Raises InputError for other data, for none and for two rows of one name; AccessError where tokens must
    be turned into words (or words into tokens) and there is no tokenizer.
    """
    rows = (
        list(data.rows) if isinstance(data, TokenUnits) else [data] if isinstance(data, str) else list(data)
    )
    names = list(data.ids) if isinstance(data, TokenUnits) else [_name(row, k) for k, row in enumerate(rows)]
    if not rows:
        raise InputError("there are no rows to compare", fix="give at least one row")
    if len(set(names)) < len(names):
        twice = next(n for k, n in enumerate(names) if n in names[:k])
        raise InputError(f"the row id {twice!r} appears twice", fix="give every row its own id")
    return Texts(tuple(names), tuple(_content(row, tokenizer, terms) for row in rows))


def reading_site(model: nn.Module, units: Units, site: str) -> str:
    """The site (token rows) or the module (others) that is read. Raises InputError for an unknown one."""
    if isinstance(units.batch([0]), TokenBatch):
        from glasshouse.subjects.sites import Site

        return str(Site.parse("final_norm_out" if site == "auto" else site))
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if site == "auto":
        if not linear:
            raise InputError("the model has no Linear layer", fix="name the module whose input is compared")
        return linear[-1]
    if site not in dict(model.named_modules()):
        raise InputError(f"no module is called {site!r}", fix=f"choose from {', '.join(linear)}")
    return site


def hidden_shard(
    model: nn.Module, units: Units, site: str, pooling: str, limits: tuple[int, int], indices: Sequence[int]
) -> Tensors:
    """`hidden` [n, d] float32: the state of the rows `indices` at `site`, pooled over their tokens."""
    place = {row: k for k, row in enumerate(indices)}
    found: Tensor | None = None
    was = model.training
    model.eval()
    try:
        for at in cost_batches(units.sizes, indices, *limits):
            batch = units.batch(at).to(next(model.parameters()).device)
            read = _of_tokens if isinstance(batch, TokenBatch) else _of_inputs
            hidden = read(model, batch, site, pooling).float().cpu()
            if found is None:
                found = torch.empty(len(indices), hidden.shape[1])
            found[torch.tensor([place[i] for i in at])] = hidden
    finally:
        model.train(was)
    assert found is not None
    return {"hidden": found}


def embed_shard(
    folder: Path | str | None, texts: Sequence[str], batch_tokens: int, indices: Sequence[int]
) -> Tensors:
    """`vectors` [n, d]: sentence vectors of unit length of the texts at `indices`."""
    from glasshouse.annotators.embedding import Encoder

    encoder = Encoder(folder, batch_tokens=batch_tokens)
    return {"vectors": torch.from_numpy(encoder.embed([texts[i] for i in indices]))}


# ── inside ───────────────────────────────────────────────────────────────────


def _of_tokens(model: nn.Module, batch: TokenBatch, site: str, pooling: str) -> Tensor:
    from glasshouse.subjects import as_subject

    subject = as_subject(model, self_test=False)
    read = subject.run(batch, read=[site], stop_after=site, logits=site == "logits")
    h = next(iter(read.acts.values())).flatten(2).float()  # (B, T, d)
    mask = batch.attention_mask.to(h.device)
    if pooling == "mean":
        # masked_fill and not a product: attention may leave NaN in rows of pure padding.
        return h.masked_fill(~mask.bool().unsqueeze(2), 0).sum(1) / mask.sum(1, keepdim=True)
    last = (mask * torch.arange(1, mask.shape[1] + 1, device=h.device)).argmax(1)
    return h[torch.arange(len(h), device=h.device), last]


def _of_inputs(model: nn.Module, batch: Any, site: str, pooling: str) -> Tensor:
    """The input of module `site`: [B, d], or [B, positions, d] pooled, or an image flattened."""
    seen: list[Tensor] = []
    handle = model.get_submodule(site).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        with torch.no_grad():
            model(batch.inputs)
    finally:
        handle.remove()
    if len(seen) != 1:
        raise InputError(f"it was called {len(seen)} times in one pass", where=f"module {site!r}",
                         fix="choose a module that is called once")  # fmt: skip
    h = seen[0]
    if h.ndim == 3:
        return h.mean(1) if pooling == "mean" else h[:, -1]
    return h.flatten(1)


def _name(row: Any, k: int) -> str:
    return getattr(row, "row_id", "") or getattr(row, "id", "") or str(k)


def _content(row: Any, tokenizer: Any, terms: str) -> Any:
    if isinstance(row, TokenRow):
        if terms != "words":
            return tuple(row.ids)
        if tokenizer is None:
            raise AccessError("token rows need a tokenizer to become text", fix="give a Subject, or texts")
        return str(tokenizer.decode(row.ids, skip_special_tokens=True))
    if not isinstance(row, str | Record):
        kind = type(row).__name__
        raise InputError(f"cannot compare rows of type {kind}", fix="give texts, Records or TokenRows")
    text = row if isinstance(row, str) else row.plain
    if terms != "tokens":
        return text
    if tokenizer is None:
        raise AccessError("texts need a tokenizer to become tokens", fix='use terms="words"')
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
