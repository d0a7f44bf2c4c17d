"""Walking over training rows: one backward pass per batch, yielding each module's pairs (a, g)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from glasshouse.attribution.objectives import Measurement, Objective
from glasshouse.attribution.stages.fused import fused_activations
from glasshouse.attribution.stages.pairs import PairCache
from glasshouse.attribution.units import Batch, Units, cost_batches
from glasshouse.corpora.rows import TokenBatch
from glasshouse.subjects.capture import Capture, Pair


@dataclass(frozen=True)
class Job:
    """What a pass differentiates: `loss` over `units`, in batches of similar length.

    Batches already in `cache` are not differentiated again; with `keep` new ones are put there.
    """

    model: nn.Module
    names: tuple[str, ...]
    units: Units
    loss: Objective | Measurement
    sampled: bool
    seed: int
    batch_tokens: int
    batch_rows: int
    cache: PairCache = field(default_factory=PairCache, compare=False)
    keep: bool = False

    def batches(self, indices: Sequence[int]) -> list[list[int]]:
        """Row indices of each batch."""
        return cost_batches(self.units.sizes, indices, self.batch_tokens, self.batch_rows)


@dataclass(frozen=True)
class Step:
    """One backward pass: rows `at`, their batch, and float32 pairs with zeros at padding (g at least)."""

    at: list[int]
    batch: Batch
    pairs: dict[str, Pair]
    valid: Tensor | None  # [B, T] bool, None when nothing is padded

    def tokens(self, name: str) -> float:
        """Tokens that module `name` saw, padding not counted."""
        B, T, _ = self.pairs[name].a.shape
        if self.valid is None or T % self.valid.shape[1]:
            return float(B * T)
        return float(self.valid.sum()) * (T // self.valid.shape[1])


def steps(job: Job, indices: Sequence[int]) -> Iterator[Step]:
    """The backward passes of a shard. Pairs may be kept: consumers must not write to them."""
    device = next(job.model.parameters()).device
    state = job.cache.key(job.model, job.units, job.loss) if job.cache.budget else None
    # Columns of ones are not stored, so that layers keep the aligned widths that products like.
    with fused_activations(job.model), Capture(job.model, job.names, ones=False) as capture:
        for at in job.batches(indices):
            batch = job.units.batch(at).to(device)
            valid = _valid(batch)
            key = (state, job.names, job.sampled and job.seed, job.sampled, tuple(at))
            pairs = job.cache.get(key)
            if pairs is None:
                found = capture.gradients(_summed_loss(job, batch))
                pairs = {name: _clean(pair, valid) for name, pair in found.items()}
                if job.keep:
                    job.cache.put(key, pairs)
            yield Step(at, batch, pairs, valid)


def _summed_loss(job: Job, batch: Batch) -> Tensor:
    if not job.sampled:
        return job.loss(job.model, batch).sum()
    assert isinstance(job.loss, Objective)
    outputs = job.loss.outputs(job.model, batch)
    return job.loss.loss(outputs, job.loss.draw(outputs, batch, job.seed)).sum()


def _valid(batch: Batch) -> Tensor | None:
    if not isinstance(batch, TokenBatch) or bool(batch.attention_mask.all()):
        return None
    return batch.attention_mask.bool()


def _clean(pair: Pair, valid: Tensor | None) -> Pair:
    """Float32, with zeros at padding; modules without the token axis (a pooled head) are left alone.

    The column of ones that is not stored stays one at padding: everywhere but in counts, which know the
    padding, it meets a g of zero.
    """
    a, g = pair.a.float().contiguous(), pair.g.float().contiguous()
    if valid is None or a.shape[1] % valid.shape[1]:
        return Pair(a, g, pair.ones)
    hidden = ~valid.repeat(1, a.shape[1] // valid.shape[1]).unsqueeze(-1)
    # masked_fill and not a product: attention may leave NaN in rows of pure padding.
    return Pair(a.masked_fill(hidden, 0), g.masked_fill(hidden, 0), pair.ones)
