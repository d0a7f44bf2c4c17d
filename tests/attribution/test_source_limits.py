"""SOURCE against what is known exactly: its limits, dense matrix functions, and the unrolled derivative.

A wrong sign, a missing 1/N, a momentum factor left out (c ten times too small), a query preconditioned in the
wrong basis, or F_back applied to the segment itself change these numbers by far more than the tolerances.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from source_runs import Run, data, linear, mlp, one_stage, train
from torch import nn

from glasshouse.attribution import EKFAC, Checkpoint, TracIn
from glasshouse.attribution.objectives import ClassLoss, measure
from glasshouse.attribution.source import SOURCE, StabilityWarning, unrolled_influence
from glasshouse.attribution.source.spectral import f_back, f_seg
from glasshouse.attribution.source.unrolled import Adam
from glasshouse.attribution.stages.passes import layer_gradients
from glasshouse.attribution.units import TensorUnits
from glasshouse.runtime.errors import InputError


@given(st.floats(0, 1e6), st.floats(0, 1e3))
def test_segment_functions_are_bounded_and_agree_with_their_definition(s: float, c: float) -> None:
    """`0 <= F_seg <= min(c, 1/s)`, and no cancellation at small s, where even c s may underflow."""
    back, seg = (float(f(torch.tensor([s], dtype=torch.float64), c)) for f in (f_back, f_seg))
    assert 0 <= back <= 1
    assert 0 <= seg <= c * (1 + 1e-12)
    if s > 0:
        assert seg <= (1 / s) * (1 + 1e-12)
    if c * s > 1e-250:
        assert seg == pytest.approx(-math.expm1(-c * s) / s, rel=1e-12)
    else:
        assert seg == c


def test_long_segments_are_ekfac_and_short_ones_tracin() -> None:
    """L = 1, C = 1, c -> infinity is EK-FAC with damping 1/c; c -> 0 is TracIn with weights c."""
    run = one_stage(60, linear(), count=1)
    asked = run.only.subset([0, 3, 7])
    ekfac = EKFAC(label_mode="empirical", seed=0).fit(run.final, run.only)
    # Softmax logits can be shifted: that direction of the outputs has curvature zero up to rounding, and
    # there exactly zero gradient, so c is taken from the smallest eigenvalue that is none of these.
    Lambda = ekfac.factors_[""].Lambda
    least = float(Lambda[Lambda > 1e-6 * Lambda.max()].min())
    c = 1e5 / least
    method = SOURCE([Checkpoint(run.final, 24)], c=[c], label_mode="empirical")
    with pytest.warns(StabilityWarning):
        method.fit(run.final, run.only)
    own = method.score(asked, "margin").scores
    ekfac.damping = 1 / c
    np.testing.assert_allclose(own, ekfac.score(asked, "margin").scores, atol=1e-4 * np.abs(own).max())
    ekfac.damping = 1e3 / c  # the null case: another damping is not the limit
    other = ekfac.score(asked, "margin").scores
    assert np.abs(own - other).max() > 1e-4 * np.abs(own).max()

    still = [Checkpoint(run.final, k, 1e-7) for k in (1, 2)]
    tracin = TracIn(still).fit(run.final, run.only).score(asked, "margin").scores
    same = SOURCE(still, segments=2).fit(run.final, run.only).score(asked, "margin").scores
    np.testing.assert_allclose(same, tracin, atol=1e-4 * np.abs(tracin).max())


def test_short_segments_are_gradient_products_weighted_by_their_length() -> None:
    """With c -> 0: the final query's gradient times rows' gradients at each checkpoint, c/C a segment.

    TracIn asks the query at each checkpoint: it agrees (above) where all checkpoints are the final model.
    """
    run = one_stage(20)
    asked = run.only.subset([0, 3])
    c = [1e-7, 3e-7]
    method = SOURCE(run.points, segments=2, c=c).fit(run.final, run.only)
    own = method.score(asked, "margin", per_segment=True)
    f, expected = measure("margin"), 0.0
    q = layer_gradients(method._job(asked, f), range(2))
    for k, point in enumerate(run.points):
        model = mlp()
        model.load_state_dict(point.state())
        job = EKFAC("identity").fit(model, run.only)._job(run.only, ClassLoss())
        G = layer_gradients(job, range(20))
        expected = expected - sum(
            c[k // 2] / 2 * q[n].flatten(1) @ G[n].flatten(1).T / 20 for n in method.names_
        )
    expected = expected.numpy()
    np.testing.assert_allclose(own.scores, expected, atol=1e-4 * np.abs(expected).max())
    parts = own.per_module["segment/0"] + own.per_module["segment/1"]
    np.testing.assert_allclose(parts, own.scores, rtol=1e-6, atol=1e-6 * np.abs(parts).max())


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_scores_equal_the_formula_with_dense_matrix_exponentials(momentum: float) -> None:
    """`-1/N sum_l [S_l+1 ... S_L q]^T (I - exp(-c H)) H^-1 mean_c G`, one dense H a module and segment."""
    run = one_stage(30, momentum=momentum)
    decay, scale = 0.03, 2.0
    how = dict(momentum=momentum, weight_decay=decay, loss_scale=scale, label_mode="empirical")
    method = SOURCE(run.points, segments=2, batch_rows=7, **how).fit(run.final, run.only)
    asked = run.only.subset([1, 4, 9])
    table = method.score(asked, "margin", per_module=True)
    q = layer_gradients(method._job(asked, measure("margin")), range(3))
    c = 12 * 0.1 / (1 - momentum)
    G = []
    for point in run.points:
        model = mlp()
        model.load_state_dict(point.state())
        G.append(
            layer_gradients(EKFAC("identity").fit(model, run.only)._job(run.only, ClassLoss()), range(30))
        )
    for name in method.names_:
        total, v = 0.0, q[name].double().flatten(1)
        for segment in (1, 0):
            mine = [G[k][name].double() for k in (2 * segment, 2 * segment + 1)]
            factor = method.spectra_[segment][name].factor
            Qa, Qs = factor.Qa.double(), factor.Qs.double()
            Lambda = torch.stack([(Qs.T @ g @ Qa).square().mean(0) for g in mine]).mean(0)
            Q = torch.kron(Qs, Qa)  # of matrices flattened row by row
            H = Q @ torch.diag(scale * Lambda.flatten() + decay) @ Q.T
            S = torch.matrix_exp(-c * H)
            p = v @ (torch.eye(len(H)) - S) @ torch.linalg.inv(H)
            total = total - scale * p @ torch.stack(mine).mean(0).flatten(1).T / 30
            v = v @ S
        found = table.per_module[name]
        np.testing.assert_allclose(found, total.numpy(), atol=2e-4 * float(total.abs().max()))


def exact(run: Run, asked: TensorUnits, **how: object) -> np.ndarray:
    found = unrolled_influence(
        run.start, run.only, asked, objective=ClassLoss(), measurement=measure("margin"),
        order=run.order, rates=run.rates, **how,
    )  # fmt: skip
    return found.numpy()


def test_the_unrolled_derivative_is_that_of_training_again() -> None:
    """Finite differences: train with one row's weight a little above one."""
    run = one_stage(12, steps=12, count=4, momentum=0.5, model=linear())
    asked = run.only.subset([0, 1])
    truth = exact(run, asked, momentum=0.5, weight_decay=0.01)
    for row in (2, 5):
        moved = [retrained(run, row, weight, 0.5, 0.01, asked) for weight in (1.02, 0.98)]
        np.testing.assert_allclose((moved[0] - moved[1]) / 0.04, truth[:, row], rtol=0.02, atol=2e-4)


def retrained(
    run: Run, row: int, weight: float, momentum: float, decay: float, asked: TensorUnits
) -> np.ndarray:
    model = linear().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=run.rates[0], momentum=momentum, weight_decay=decay)
    for at in run.order:
        optimizer.zero_grad()
        losses = nn.functional.cross_entropy(
            model(run.only.inputs[at].double()), run.only.targets[at], reduction="none"
        )
        weights = torch.tensor([weight if i == row else 1.0 for i in at], dtype=torch.float64)
        (losses * weights).mean().backward()
        optimizer.step()
    batch = asked.batch(range(len(asked)))
    with torch.no_grad():
        z = model(batch.inputs.double())
    own = z.gather(1, batch.targets[:, None]).squeeze(1)
    return (own - z.scatter(1, batch.targets[:, None], -torch.inf).logsumexp(1)).numpy()


def agreement(scores: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([spearmanr(a, b)[0] for a, b in zip(scores, truth, strict=True)]))


def test_source_follows_the_unrolled_run_where_ekfac_does_not() -> None:
    """Momentum in c gives the scale: the exact derivative is the score times a slope near one."""
    run = train(linear(), {"train": data(160)}, steps=60, count=6, rate=0.01, momentum=0.9, batch=16)
    asked = data(12, 5)
    truth = exact(run, asked, momentum=0.9)
    method = SOURCE(run.points, segments=3, momentum=0.9).fit(run.final, run.only)
    own = method.score(asked, "margin").scores
    ekfac = EKFAC().fit(run.final, run.only).score(asked, "margin").scores
    assert agreement(own, truth) > 0.9 > agreement(own[:, ::-1], truth)
    assert agreement(own, truth) > agreement(ekfac, truth)
    slope = float((own * truth).sum() / (own * own).sum())
    assert 0.8 < slope < 1.2
    forgotten = SOURCE(run.points, segments=3).fit(run.final, run.only).score(asked, "margin").scores
    assert float((forgotten * truth).sum() / (forgotten * forgotten).sum()) > 2


def test_adams_metric_follows_an_unrolled_adam_run() -> None:
    """The factored form is nearer to the truth than the hybrid one, and both than taking Adam for SGD."""
    rows = data(80)
    rows.inputs.mul_(torch.logspace(-1, 0.3, 6))
    run = train(linear(), {"train": rows}, steps=60, count=6, rate=0.01, adam=True)
    asked = data(12, 5)
    truth = exact(run, asked, adam=Adam())
    found = {}
    forms = {"hybrid": {"optimizer": "adam"}, "factored": {"optimizer": "adam", "adam_form": "factored"}}
    for name, form in {**forms, "sgd": {"assume_sgd": True}}.items():
        method = SOURCE(run.points, segments=3, **form).fit(run.final, run.only)
        found[name] = agreement(method.score(asked, "margin").scores, truth)
    assert found["factored"] > found["hybrid"] > found["sgd"]
    assert found["factored"] > 0.85


def test_the_edge_of_stability_is_warned_about_and_noted() -> None:
    run = one_stage(20, count=1)
    long = dict(c=[1e7])
    with pytest.warns(StabilityWarning, match="edge of stability"):
        method = SOURCE(run.points, **long).fit(run.final, run.only)
    assert any("edge of stability" in n for n in method.score(run.only.subset([0])).meta["notes"])
    quiet = SOURCE(run.points, c=[1e-3]).fit(run.final, run.only)
    assert not quiet.notes_


def test_a_run_too_long_to_unroll_is_refused() -> None:
    run = one_stage(12, steps=4)
    with pytest.raises(InputError, match="one rate a step"):
        exact(Run(run.start, run.final, [], run.rows, run.order, [0.1]), run.only.subset([0]))
