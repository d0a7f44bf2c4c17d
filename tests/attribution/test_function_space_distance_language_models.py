"""MLP blocks of every family: the sketch against the block itself, on the residuals it was fitted on."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import pytest
import torch

from glasshouse.attribution.function_space_distance import (
    CoresetDistance,
    FSDSketch,
    GGNDistance,
    Moved,
    NTKDistance,
    how_far,
)
from glasshouse.attribution.function_space_distance.blocks import mlp_blocks, residual_rows, token_units
from glasshouse.corpora.rows import IGNORE, TokenRow
from glasshouse.runtime.errors import InputError
from glasshouse.subjects import as_subject

_spec = importlib.util.spec_from_file_location(
    "fsd_subjects_conftest", Path(__file__).parents[1] / "subjects" / "conftest.py"
)
_subjects = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_subjects)


def _rows(count: int = 30, length: int = 20) -> list[TokenRow]:
    ids = torch.randint(4, 64, (count, length), generator=torch.Generator().manual_seed(0)).tolist()
    return [TokenRow(tuple(r[: 8 + k % 12]), tuple(r[: 8 + k % 12]), str(k)) for k, r in enumerate(ids)]


def _tuned(model: torch.nn.Module, size: float = 0.02) -> torch.nn.Module:
    found, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in found.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator).to(p))
    return found


@pytest.mark.parametrize("family", _subjects.FAMILIES)
def test_blocks_of_every_family_are_near_the_truth(family):
    """Truth: the change of the block's output on the residuals of the reference, norms' gains included."""
    model = _subjects.tiny_model(family)
    other = _tuned(model)
    sketch = FSDSketch(cov=16, approx=True).fit(model, _rows())
    found = sketch.breakdown(other)
    before, after = (mlp_blocks(as_subject(m, self_test=False).parts) for m in (model, other))
    subject = as_subject(model, self_test=False)
    totals: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad():
        for name, rows, hidden in residual_rows(subject, token_units(subject, _rows()), 4096):
            own, theirs = (_run(block[name], rows) for block in (before, after))
            totals.setdefault(name, []).append(0.5 * (theirs - own).square().sum(1))
            del hidden
    for name, value in zip(found.names, found.values, strict=True):
        truth = float(torch.cat(totals[name]).mean())
        assert 0.6 < value / truth < 1.6, f"{family} {name}: {value / truth:.2f} of the truth"
    assert sketch.distance(model).item() == 0


def _run(block: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """The block on normalised residuals: gain and shift as the norm has them, then its MLP."""
    from glasshouse.attribution.function_space_distance.tracing import describe

    if block.scaled:
        gain = block.norm.weight + describe(block.norm, True)[1]["offset"]
        shift = getattr(block.norm, "bias", None)
        rows = rows * gain + (0 if shift is None else shift)
    return block.mlp(rows)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "opt"])
def test_only_what_moved_is_seen(family):
    model = _subjects.tiny_model(family)
    sketch = FSDSketch(cov=8, approx=True).fit(model, _rows())
    for place in ("mlp", "norm"):
        other = copy.deepcopy(model)
        block = mlp_blocks(as_subject(other, self_test=False).parts)["mlp.1"]
        with torch.no_grad():
            parts = block.mlp.parameters() if place == "mlp" else block.norm.parameters()
            for p in parts:
                p.add_(0.05)
        found = dict(zip(*(getattr(sketch.breakdown(other), n) for n in ("names", "values")), strict=True))
        assert found["mlp.0"] == 0 and found["mlp.1"] > 0


def test_how_far_says_blocks_and_whole(tmp_path):
    model = _subjects.tiny_model("llama")
    moved = how_far(model, _tuned(model), _rows(), rank=8)
    assert moved.blocks.names == ("mlp.0", "mlp.1") and all(0 < r < 1 for r in moved.blocks.relative)
    assert 0 < moved.kl.low <= moved.kl.value <= moved.kl.high
    again = Moved.load(moved.save(tmp_path / "moved.json"))
    assert again.kl == moved.kl and again.blocks == moved.blocks
    assert (
        len(moved.to_frame()) == 2 and "KL per token" in moved._repr_html_() and len(moved.plot().data) == 1
    )
    nowhere = how_far(model, model, _rows(), rank=8)
    assert nowhere.blocks.total == 0 and nowhere.kl.value == 0


def test_batches_and_padding_change_rounding_only():
    model = _subjects.tiny_model("gpt2")
    other, found = _tuned(model), []
    for batch in (1, 64, 4096):
        found.append(
            FSDSketch(cov=8, approx=True, batch_rows=batch).fit(model, _rows()).distance(other).item()
        )
    assert found[1:] == pytest.approx(found[:1] * 2, rel=1e-4)


def test_blocks_refuse():
    model = _subjects.tiny_model("llama")
    with pytest.raises(InputError, match="approx=True"):
        FSDSketch(cov=8).fit(model, _rows())
    with pytest.raises(InputError, match="have no classes"):
        FSDSketch(True, cov=8, approx=True).fit(model, _rows())
    with pytest.raises(InputError, match="texts need a tokenizer"):
        FSDSketch(cov=8, approx=True).fit(model, ["a text"])
    sketch = FSDSketch(cov=8, approx=True).fit(model, _rows())
    with pytest.raises(InputError, match="the two models differ"):
        sketch.distance(_subjects.tiny_model("gpt2"))
    with pytest.raises(InputError, match="rho is 'kl'"):
        sketch.distance(model, "stochastic", "kl")
    with pytest.raises(InputError, match="need the model"):
        sketch.distance(dict(model.named_parameters()))


def test_rivals_read_language_models():
    model = _subjects.tiny_model("gpt2")
    other, rows = _tuned(model, 1e-3), [TokenRow(r.ids, (IGNORE, *r.labels[1:]), r.row_id) for r in _rows(8)]
    truth = CoresetDistance(None).fit(model, rows).distance(other, rho="kl").item()
    assert NTKDistance().fit(model, rows).distance(other, rho="kl").item() == pytest.approx(truth, rel=0.05)
    assert 0.05 * truth < GGNDistance(rho="kl").fit(model, rows).distance(other).item() < 20 * truth
    with pytest.raises(InputError, match='rho="l2"'):
        GGNDistance().fit(model, rows)
