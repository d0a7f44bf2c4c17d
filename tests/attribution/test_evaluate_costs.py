"""Mislabel curves, LDS with its cost, the choice of a damping, and the token-order control."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from attribution_models import tiny_gpt2, token_rows
from torch import nn

from glasshouse.attribution import BM25, EKFAC, TRAK, RepresentationSimilarity, ScoreTable, TensorUnits
from glasshouse.attribution.evaluate import RetrainBank, split_half_ceiling
from glasshouse.attribution.evaluate.costs import auto_damping, lds_table, measured, peak_memory
from glasshouse.attribution.evaluate.mislabel import MislabelCurves, el2n, losses, mislabel
from glasshouse.attribution.evaluate.order import shuffled_rows, token_order
from glasshouse.corpora.rows import TokenRow
from glasshouse.runtime.errors import InputError, NumericalError


def test_perfect_random_and_reversed_orders(tmp_path: Path) -> None:
    g = np.random.default_rng(0)
    wrong = np.arange(400) % 5 == 0
    scores = {"perfect": wrong + g.random(400) / 2, "noise": g.random(400), "reversed": -wrong.astype(float)}
    found = mislabel(scores, wrong)
    assert found.auroc("perfect").value == 1.0 and found.auroc("reversed").value == 0.0
    # 80 x 320 pairs: the SD of a random AUROC is sqrt((P + Q + 1) / (12 P Q)) = .036.
    assert abs(found.auroc("noise").value - 0.5) < 5 * 0.036
    assert found.found("perfect", 0.1).value == 0.5 == found.ceiling(0.1)
    assert found.found("perfect", 0.2).value == 1.0 == found.ceiling(0.4)
    assert found.curve("perfect")[39] == 0.5 and found.curve("noise")[-1] == 1.0
    again = MislabelCurves.load(found.save(tmp_path))
    assert again.to_frame().equals(found.to_frame())
    assert len(found.plot().data) == 4 and "perfect" in found._repr_html_()
    for bad in (np.zeros(400), np.ones(400)):
        with pytest.raises(InputError, match="both kinds"):
            mislabel(scores, bad)
    with pytest.raises(InputError, match="shape"):
        mislabel({"short": np.ones(3)}, wrong)
    with pytest.raises(NumericalError):
        mislabel({"nan": np.full(400, np.nan)}, wrong)
    with pytest.raises(InputError, match="no scores"):
        found.auroc("nothing")
    with pytest.raises(InputError):
        MislabelCurves.load(tmp_path / "none")


def test_loss_and_el2n_are_their_definitions(mlp, classes) -> None:
    X, y = classes
    units = TensorUnits(X, y)
    with torch.no_grad():
        p = torch.softmax(mlp(X), 1)
        expected = (p - nn.functional.one_hot(y, 3)).norm(dim=1)
        loss = nn.functional.cross_entropy(mlp(X), y, reduction="none")
    np.testing.assert_allclose(losses(mlp, units, batch_rows=5), loss, rtol=1e-5)
    np.testing.assert_allclose(el2n([mlp, mlp], units), expected, rtol=1e-5)
    with pytest.raises(InputError, match="EL2N"):
        el2n([], units)
    with pytest.raises(InputError, match="EL2N"):
        el2n([mlp], TensorUnits(X, y.float()))


class Known:
    """A method whose scores are given, scaled by a "damping" that matters: right only near 1."""

    def __init__(self, effects: np.ndarray) -> None:
        self.effects, self.damping = effects, 100.0

    def fit(self, subject, data) -> Known:
        return self

    def score(self, queries, measurement="auto") -> ScoreTable:
        noise = np.random.default_rng(0).normal(size=self.effects.shape) * abs(np.log10(self.damping))
        q, n = self.effects.shape
        names = tuple(f"q{i}" for i in range(q)), tuple(f"r{i}" for i in range(n))
        return ScoreTable((self.effects + noise).astype(np.float32), *names, {"n_train": n})


def test_the_damping_that_predicts_the_bank_is_chosen_and_judged_on_other_queries() -> None:
    effects = np.random.default_rng(1).normal(size=(20, 30))
    bank = RetrainBank.build(lambda rows, seed: effects[:, rows].sum(1), 30, subsets=40, seeds=1)
    method = Known(effects)
    found = auto_damping(method, None, bank, grid=(1e-4, 1.0, 1e3))
    assert found.chosen == 1.0 == method.damping and found.lds[1.0] == pytest.approx(1.0)
    assert set(found.lds) == {100.0, 1e-4, 1.0, 1e3} and found.lds[1e-4] < 0.7
    assert found.held_out.value == pytest.approx(1.0) and found.held_out.n == 10
    assert len(found.plot().data[0].x) == 4
    with pytest.raises(InputError, match="no damping"):
        auto_damping(BM25(), None, bank)
    with pytest.raises(InputError, match="no scale"):
        auto_damping(method, None, bank)


def test_lds_stands_beside_its_cost(mlp, classes) -> None:
    """A bank of additive effects that are EK-FAC's own scores: EK-FAC has LDS 1, at a price."""
    asked = (classes[0][:6], classes[1][:6])
    effects = EKFAC().fit(mlp, classes).score(asked).scores.astype(np.float64)
    bank = RetrainBank.build(lambda rows, seed: effects[:, rows].sum(1), 24, subsets=30, seeds=2)
    methods = {
        "ekfac": EKFAC(), "trak": TRAK(dim=4), "alike": RepresentationSimilarity(metric="dot"),
    }  # fmt: skip
    said: list[str] = []
    found = lds_table(methods, mlp, classes, asked, bank, say=said.append)
    assert found["ekfac"].lds.value == pytest.approx(1.0) and len(said) == 3
    assert found.ceiling == split_half_ceiling(bank)
    assert found["ekfac"].against(found["trak"]).value > 0
    for row in found.rows:
        assert row.cost.fit_seconds > 0 and row.cost.score_seconds > 0
        assert row.cost.disk_bytes is not None and row.cost.disk_bytes > 100
    shapes = [(5, 7), (4, 6), (3, 5)]
    assert found["ekfac"].cost.disk_bytes >= 4 * sum(o * o + i * i + o * i for o, i in shapes)
    records = found.to_records()
    assert [r["method"] for r in records][:3] == list(methods) and records[-1]["lds"] == found.ceiling.value
    assert {"lds", "low", "high", "fit_seconds", "score_seconds", "disk_bytes", "peak_bytes"} <= set(
        records[0]
    )
    assert len(found.plot().data[0].x) == 3 and "ekfac" in str(found) and "trak" in found._repr_html_()
    bare = measured("known", Known(effects), None, classes, asked, bank, warm=False)
    assert bare.cost.disk_bytes is None
    with pytest.raises(InputError, match="no method"):
        found["none"]
    chosen = auto_damping(methods["trak"], asked, bank)
    assert methods["trak"].damping == chosen.chosen and len(chosen.lds) >= 10


def test_peak_memory_sees_a_block_that_is_gone_again() -> None:
    """64 MiB written and released inside the block; the allocator may round, and may reuse free pages."""
    with peak_memory() as peak:
        block = np.ones(8 << 20)
        del block
    if not peak:
        pytest.skip("this system does not tell the peak of resident memory")
    assert peak[0] > 48 << 20
    with peak_memory() as calm:
        pass
    assert calm[0] < 16 << 20


def test_a_bag_of_words_keeps_its_scores_and_gradients_do_not() -> None:
    rows, model = token_rows(12, prompt=1), tiny_gpt2()
    other = shuffled_rows(rows)
    for a, b in zip(rows, other.rows, strict=True):
        assert (
            a.ids[0] == b.ids[0] and sorted(a.ids) == sorted(b.ids) and sorted(a.labels) == sorted(b.labels)
        )
        assert all(label in (-100, token) for token, label in zip(b.ids, b.labels, strict=True))
    assert [r.ids for r in other.rows] != [r.ids for r in rows]
    assert [r.ids for r in shuffled_rows(rows).rows] == [r.ids for r in other.rows]
    bag = token_order(BM25().fit(None, rows), rows[:4], rows, k=3)
    assert bag.value == pytest.approx(1.0) and bag.n == 4
    read = token_order(EKFAC("identity").fit(model, rows), rows[:4], rows, k=3)
    assert read.value < 0.9
    same = [TokenRow((3, 7, 7, 7), (-100, 7, 7, 7), f"s{k}") for k in range(4)]
    still = token_order(EKFAC("identity").fit(model, same), same[:2], same, k=2)
    assert still.value == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(InputError, match="token rows"):
        shuffled_rows((torch.ones(2, 3), torch.zeros(2, dtype=torch.long)))
