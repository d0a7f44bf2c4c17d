"""Leave-some-out and brittleness where the answer is known: additive effects, and exact linear regression."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from glasshouse.attribution import EKFAC, ScoreTable
from glasshouse.attribution.evaluate.brittleness import SAME_CLASS, Brittleness, brittleness
from glasshouse.attribution.evaluate.leave_some_out import RANDOM, LeaveSomeOut, leave_some_out
from glasshouse.attribution.evaluate.retraining import Retrainings, counts, ranking
from glasshouse.runtime.errors import InputError, NumericalError, StaleError


def table(scores: np.ndarray) -> ScoreTable:
    q, n = scores.shape
    names = tuple(f"q{i}" for i in range(q)), tuple(f"r{i}" for i in range(n))
    return ScoreTable(scores.astype(np.float32), *names, {"n_train": n})


def additive(effects: np.ndarray, start: float = 0.0):
    """F is a sum of known effects [Q, N]: minus the sum of the removed ones is what a removal does."""
    return lambda rows, seed: start + effects[:, rows].sum(1)


def test_true_effects_predict_every_removal_exactly() -> None:
    g = np.random.default_rng(0)
    effects, noise = g.normal(size=(6, 40)), g.normal(size=(6, 40))
    tables = {"truth": table(effects), "noise": table(noise)}
    found = leave_some_out(tables, Retrainings(additive(effects), 40, seeds=2), ks=(1, 0.1, 10), draws=8)
    assert found.ks == (1, 4, 10) and found.names == ("truth", "noise", RANDOM)
    np.testing.assert_allclose(found.changes["truth"], found.predicted["truth"], rtol=1e-5)
    best = -np.sort(effects, 1)[:, ::-1][:, :4].sum(1)
    np.testing.assert_allclose(found.changes["truth"][1], best)
    assert found.against("truth", 4).high < 0
    assert found.against("noise", 4).low < 0 < found.against("noise", 4).high
    # The mean of 8 draws of 10 of 40 has an SD of about sqrt(10)/sqrt(8); five of them over 6 queries.
    assert abs(found.change(RANDOM, 10).value) < 5 * np.sqrt(10 / 8)
    worst = leave_some_out({"truth": table(effects)}, Retrainings(additive(effects), 40), ks=(4,), sign="-")
    assert worst.change("truth", 4).low > 0
    frame = found.to_frame()
    assert len(frame) == 3 * 3 * 6 and frame[frame.method == RANDOM].predicted.isna().all()


def test_removal_from_a_least_squares_fit_is_the_closed_form() -> None:
    """Retraining is solving the normal equations, so leave-out has no noise at all.

    A row's influence is `x_q H^-1 x_n r_n`, and leaving it out moves f by that over `1 - h_n` (h: leverage):
    an identity, which fixes sign and scale. K-FAC's only other number is the variance of the drawn labels.
    """
    g = torch.Generator().manual_seed(0)
    X, w = torch.randn(120, 3, generator=g).double(), torch.tensor([1.0, -2.0, 0.5]).double()
    y = X @ w + 0.3 * torch.randn(120, generator=g).double()
    asked = torch.randn(5, 3, generator=g).double()

    def solve(rows: list[int], seed: int) -> np.ndarray:
        return (asked @ torch.linalg.lstsq(X[rows], y[rows, None]).solution).flatten().numpy()

    H, fitted = X.T @ X, torch.linalg.lstsq(X, y[:, None]).solution
    scores = (asked @ torch.linalg.solve(H, X.T)) * (y - (X @ fitted).flatten())
    leverage = (X * torch.linalg.solve(H, X.T).T).sum(1).numpy()
    model = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(fitted.T)
    method = EKFAC("kfac", damping=1e-7).fit(model, (X.float(), y[:, None].float()))
    ours = method.score((asked.float(), torch.zeros(5, 1)))
    tables = {"closed form": table(scores.numpy()), "kfac": table(ours.scores)}
    found = leave_some_out(tables, Retrainings(solve, 120, seeds=1), ks=(1, 6), draws=6)
    first = scores.argmax(1).numpy()
    np.testing.assert_allclose(
        found.changes["closed form"][0], found.predicted["closed form"][0] / (1 - leverage[first]), rtol=1e-5
    )
    np.testing.assert_allclose(found.changes["kfac"], found.changes["closed form"])  # the same rows
    ratio = found.predicted["kfac"] / found.predicted["closed form"]
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-3)
    assert found.against("kfac", 6).high < 0


def test_the_smallest_k_is_where_the_sum_crosses_zero() -> None:
    effects = np.ones((4, 30))
    effects[1, :3], effects[2] = 20.0, -0.1
    starts = np.array([-24.5, -60.5, 9.0, -40.0])  # f = start + sum; query 3 is wrong from the start
    train = lambda rows, seed: starts + effects[:, rows].sum(1)  # noqa: E731
    found = brittleness(
        {"truth": table(effects), "worst": table(-effects)}, Retrainings(train, 30), ks=(1, 2, 3, 6, 15),
        row_classes=np.arange(30) % 2, query_classes=[0, 1, 0, 1],
    )  # fmt: skip
    assert found.query_ids == ("q0", "q1", "q2")
    # q0: 30 - 24.5 = 5.5 left, six rows flip it. q1: 87 - 60.5 = 26.5: two of three heavy ones. q2: never.
    assert found.smallest["truth"].tolist() == [6, 2, 0]
    assert found.smallest["worst"].tolist() == [6, 0, 0]  # 15 light rows leave 11.5
    assert found.fraction("truth", 2).value == pytest.approx(1 / 3)
    assert found.fraction("truth", 15).value == pytest.approx(2 / 3)
    assert found.against("truth", "worst", 6).value == pytest.approx(1 / 3)
    assert set(found.names) == {"truth", "worst", SAME_CLASS}
    assert found.smallest[SAME_CLASS][0] == 6 and len(found.to_frame()) == 9


def test_a_majority_of_seeds_decides() -> None:
    values = {0: -1.0, 1: 1.0, 2: 1.0}
    seeds: list[int] = []

    def train(rows: list[int], seed: int) -> np.ndarray:
        if seed not in seeds:
            seeds.append(seed)
        return np.array([values[seeds.index(seed)] if len(rows) < 10 else 1.0])

    flat = table(np.arange(10.0)[None])
    assert brittleness({"a": flat}, Retrainings(train, 10), ks=(1,)).smallest["a"].tolist() == [0]
    values[1] = -1.0
    assert brittleness({"a": flat}, Retrainings(train, 10), ks=(1,)).smallest["a"].tolist() == [1]


def test_results_come_back_from_disk(tmp_path: Path) -> None:
    effects = np.random.default_rng(0).normal(size=(3, 20)) + 1
    tables, rows = {"truth": table(effects)}, Retrainings(additive(effects), 20)
    some, brittle = leave_some_out(tables, rows, ks=(1, 5)), brittleness(tables, rows, ks=(1, 5, 19))
    for result, kind in ((some, LeaveSomeOut), (brittle, Brittleness)):
        again = kind.load(result.save(tmp_path / kind.__name__))
        assert again.to_frame().equals(result.to_frame()) and again.seeds == 3
        assert len(result.plot().data) == len(result.names) and "truth" in result._repr_html_()
        with pytest.raises(InputError, match="no result"):
            kind.load(tmp_path)


def test_two_evaluations_share_their_models_and_their_measurements(tmp_path: Path) -> None:
    effects = np.random.default_rng(0).normal(size=(3, 20)) + 1

    def both(rows: list[int], seed: int) -> np.ndarray:
        f = effects[:, rows].sum(1)
        return np.stack([f, f - 5])

    rows = Retrainings(both, 20, seeds=1, store=tmp_path, name="both")
    leave_some_out({"truth": table(effects)}, rows, ks=(1, 5), draws=1)
    before = rows.trained
    assert before == 1 + 3 * 2 + 2
    other = rows.of(1)
    np.testing.assert_allclose(other.without([]), rows.without([]) - 5)
    brittleness({"truth": table(effects)}, other, ks=(1, 5))
    assert rows.trained == before == other.trained
    fresh = Retrainings(both, 20, seeds=2, store=tmp_path, name="both")
    fresh.without([3])
    assert fresh.trained <= 2  # the first seed of some removals lies in the store
    with pytest.raises(StaleError):
        Retrainings(both, 20, seed=1, store=tmp_path, name="both")
    with pytest.raises(StaleError):
        Retrainings(both, 20, store=tmp_path, name="another")


KILLED = """
import os, signal, sys
import numpy as np
sys.path.insert(0, {here!r})
from test_evaluate_removal import additive, table
from glasshouse.attribution.evaluate import RetrainBank
from glasshouse.attribution.evaluate.leave_some_out import leave_some_out
from glasshouse.attribution.evaluate.retraining import Retrainings
from glasshouse.runtime import files

effects = np.random.default_rng(0).normal(size=(3, 20))
writes = 0

def hook(stage, path):
    global writes
    writes += stage == "after"
    if writes == 9:
        os.kill(os.getpid(), signal.SIGKILL)

files.fault_hook = hook
if {bank}:
    RetrainBank.build(additive(effects), 20, subsets=8, seeds=2, store="store")
else:
    leave_some_out({{"a": table(effects)}}, Retrainings(additive(effects), 20, store="store"), ks=(1, 4))
"""


@pytest.mark.parametrize("bank", [True, False])
def test_kill_minus_nine_repeats_one_model_at_most(bank: bool, tmp_path: Path) -> None:
    from glasshouse.attribution.evaluate import RetrainBank

    code = KILLED.format(here=str(Path(__file__).parent), bank=bank)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    dead = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    effects, calls = np.random.default_rng(0).normal(size=(3, 20)), []

    def counted(rows: list[int], seed: int) -> np.ndarray:
        calls.append(seed)
        return additive(effects)(rows, seed)

    store = tmp_path / "store"
    if bank:
        calm = RetrainBank.build(additive(effects), 20, subsets=8, seeds=2)
        again = RetrainBank.build(counted, 20, subsets=8, seeds=2, store=store)
        assert np.array_equal(again.values, calm.values) and len(calls) == 16 - 8  # manifest and 8 models
    else:
        tables = {"a": table(effects)}
        calm = leave_some_out(tables, Retrainings(additive(effects), 20), ks=(1, 4))
        whole = Retrainings(counted, 20, store=store)
        again = leave_some_out(tables, whole, ks=(1, 4))
        assert again.to_frame().equals(calm.to_frame())
        assert whole.trained == len(calls) == 3 * (1 + 3 * 2 + 4 * 2) - 8


def test_refusals() -> None:
    effects = np.ones((2, 10))
    rows, tables = Retrainings(additive(effects), 10), {"a": table(effects)}
    assert counts((1, 0.2, 0.5), 10) == [1, 2, 5]
    for ks in ((), (0,), (5, 2), (10,), (0.01,)):
        with pytest.raises(InputError):
            leave_some_out(tables, rows, ks=ks)
    for bad in ({}, {RANDOM: table(effects)}, {"a": table(np.ones((2, 9)))}):
        with pytest.raises(InputError):
            leave_some_out(bad, rows, ks=(1,))
    with pytest.raises(InputError, match="no row 10"):
        rows.without([10])
    with pytest.raises(InputError, match="no row would be left"):
        rows.without(range(10))
    with pytest.raises(InputError, match="gets no query right"):
        brittleness(tables, Retrainings(additive(effects, start=-20), 10), ks=(1,))
    with pytest.raises(NumericalError, match="1 rows removed"):
        Retrainings(lambda rows, seed: np.array([np.nan]), 10).without([2])
    with pytest.raises(InputError):
        Retrainings(additive(effects), 10, seeds=0)
    assert ranking(np.array([1.0, 3.0, 3.0, 2.0])) == [1, 2, 3, 0]
