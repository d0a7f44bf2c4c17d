"""Everything that would make IF-COMP's numbers mean something else is refused in one sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from glasshouse.attribution import EKFAC, TensorUnits
from glasshouse.attribution.ifcomp import Choices, IFComp
from glasshouse.attribution.ifcomp.results import label_norms
from glasshouse.corpora.rows import TokenRow
from glasshouse.runtime.errors import InputError, NumericalError, StaleError
from glasshouse.statistics.calibration import calibration_error

Rows = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture
def fitted(mlp: nn.Module, classes: Rows) -> IFComp:
    return IFComp().fit(mlp, classes)


def ending(last: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 3), last).eval()


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (ending(nn.Softmax(dim=1)), "ends in Softmax"),
        (ending(nn.Sigmoid()), "labels that may hold together are not covered"),
        (nn.Linear(6, 1), "not logits of two or more classes"),
        (nn.Sequential(nn.Linear(6, 6), nn.Unflatten(1, (2, 3))), "returns shape"),
    ],
)
def test_outputs_that_are_no_logits(model: nn.Module, why: str, classes: Rows) -> None:
    with pytest.raises(InputError, match=why):
        IFComp().fit(model, classes)


def test_probabilities_are_recognised_by_their_sums(classes: Rows) -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.softmax, self.linear = nn.Softmax(dim=1), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.softmax(self.linear(x))

    with pytest.raises(InputError, match="each row sums to 1"):
        IFComp().fit(Hidden(), classes)


def test_several_labels_a_row(mlp: nn.Module, classes: Rows) -> None:
    x, y = classes
    for targets in (torch.nn.functional.one_hot(y), y.float()):
        with pytest.raises(InputError, match="not one label a row"):
            IFComp().fit(mlp, (x, targets))


def test_many_classes_need_top_k_and_the_cost_is_said(classes: Rows) -> None:
    x, _ = classes
    model, y = nn.Linear(6, 300), torch.arange(24)
    with pytest.raises(InputError, match=r"300 labels, each a backward pass over 2,100 weights.*pass top_k"):
        IFComp().fit(model, (x, y))
    found = IFComp(top_k=5).fit(model, (x, y)).complexity(x[:3])
    assert found.norms.shape == (3, 5)
    z = model(x[:3]).detach()
    np.testing.assert_array_equal(found.labels, z.topk(5).indices.numpy())
    np.testing.assert_allclose(found.lse, z.logsumexp(1).numpy(), rtol=1e-6)


def test_top_k_of_all_labels_is_all_labels(mlp: nn.Module, classes: Rows, fitted: IFComp) -> None:
    one, other = fitted.complexity(classes[0]), IFComp(top_k=3).fit(mlp, classes).complexity(classes[0])
    np.testing.assert_array_equal(one.gram, other.gram)
    with pytest.raises(InputError, match="raise top_k"):
        IFComp(top_k=2).fit(mlp, classes).complexity(classes[0]).norm_of(
            fitted.complexity(classes[0]).logits.argmin(1)
        )


def test_batchnorm_in_training_mode(classes: Rows) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError, match=r"dependent on the batch: 1.*model\.eval\(\)"):
        IFComp().fit(model, classes)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "its statistics moved"
    IFComp().fit(model.eval(), classes)


def test_factors_of_another_temperature(mlp: nn.Module, classes: Rows, fitted: IFComp, tmp_path: Any) -> None:
    with pytest.raises(StaleError, match="fitted at temperature 1 and not at 1000"):
        IFComp().fit(mlp, classes, factors=EKFAC().fit(mlp, classes))
    fitted.save(tmp_path / "f")
    with pytest.raises(StaleError, match="fitted at temperature 1000 and not at 10"):
        IFComp.load(tmp_path / "f", mlp, classes, temperature=10.0)
    fitted.temperature = 2.0
    for ask in (lambda: fitted.complexity(classes[0]), lambda: fitted.save(tmp_path / "g")):
        with pytest.raises(StaleError, match="do not match the gradients"):
            ask()


def test_factors_of_another_model_or_other_rows(mlp: nn.Module, classes: Rows) -> None:
    x, y = classes
    other = EKFAC().fit(mlp, (x[:20], y[:20]))
    with pytest.raises(StaleError, match="another rows"):
        IFComp(1.0).fit(mlp, classes, factors=other)
    with pytest.raises(InputError, match="not fitted"):
        IFComp(1.0).fit(mlp, classes, factors=EKFAC())


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": -1.0}, {"alpha": float("nan")}, {"temperature": 0.0}, {"temperature": float("inf")},
        {"output_temperature": -1.0}, {"samples": 0}, {"top_k": 1}, {"space": "sideways"}, {"strategy": "x"},
        {"damping": -1.0},
    ],
)  # fmt: skip
def test_options_that_cannot_work(options: dict[str, Any], mlp: nn.Module, classes: Rows) -> None:
    name = next(iter(options))
    with pytest.raises(InputError, match=name):
        IFComp(**options).fit(mlp, classes)


def test_alpha_is_not_tuned_on_what_is_trained_or_measured(fitted: IFComp, classes: Rows) -> None:
    with pytest.raises(InputError, match="these are the training rows"):
        fitted.tune(classes)
    g = torch.Generator().manual_seed(5)
    val = torch.randn(40, 6, generator=g), torch.randint(0, 3, (40,), generator=g)
    for alphas in ([-1.0], [float("nan")], []):
        with pytest.raises(InputError, match="alphas are"):
            fitted.tune(val, alphas=alphas)
    with pytest.raises(InputError, match="temperatures are"):
        fitted.tune(val, temperatures=[0.0])
    fitted.tune(val)
    with pytest.raises(InputError, match="alpha was tuned on these very points"):
        fitted.calibration(val)
    with pytest.raises(InputError, match="alpha is -2"):
        fitted.complexity(classes[0]).hindsight(-2.0)
    assert set(fitted.calibration((val[0] + 1, val[1]))) >= {"ece", "raw_ece", "nll", "raw_nll"}


@pytest.mark.parametrize("metric", ["nll", "ece"])
def test_tuning_takes_the_best_of_the_grid(fitted: IFComp, metric: Any) -> None:
    """By brute force over the grid; and no tuned choice is worse on its own points than doing nothing."""
    g = torch.Generator().manual_seed(6)
    val = torch.randn(60, 6, generator=g), torch.randint(0, 3, (60,), generator=g)
    alphas, heats = [0.0, 1.0, 10.0], [0.5, 1.0, 2.0]
    fitted.tune(val, metric, alphas=alphas, temperatures=heats)
    found, y = fitted.complexity(val), val[1].numpy()
    scores = {}
    for t in heats:
        for a in alphas:
            p = found.hindsight(a, temperature=t)
            nll = float(-np.log(p[np.arange(60), y]).mean())
            scores[a, t] = nll if metric == "nll" else calibration_error(p.max(1), p.argmax(1) == y)
    assert fitted.tuned_.value == pytest.approx(min(scores.values()))
    assert scores[fitted.alpha_, fitted.output_temperature_] == pytest.approx(fitted.tuned_.value)
    assert fitted.tuned_.value <= fitted.tuned_.raw + 1e-12


def test_labels_out_of_range(mlp: nn.Module, classes: Rows, fitted: IFComp) -> None:
    x, y = classes
    bad = y.clone()
    bad[7] = 3
    with pytest.raises(InputError, match=r"1 labels lie outside 0\.\.2 \(first: 3 of row '7'\)"):
        IFComp().fit(mlp, (x, bad))
    with pytest.raises(InputError, match="lie outside"):
        fitted.codelength(x, -torch.ones(24, dtype=torch.long))
    with pytest.raises(InputError, match="y has shape"):
        fitted.complexity(x).norm_of([0, 1])


def test_a_saturated_softmax_asks_for_a_higher_temperature(classes: Rows) -> None:
    x, y = classes
    model = nn.Linear(6, 3)
    with torch.no_grad():
        model.weight.zero_(), model.bias.copy_(torch.tensor([1e4, 0.0, 0.0]))
    with pytest.raises(NumericalError, match=r"saturated at temperature 1.*raise the temperature"):
        IFComp(1.0).fit(model, (x, y))
    assert IFComp(1e5).fit(model, (x, y)).complexity(x).parametric.min() > 0


def test_a_curvature_that_is_not_positive_is_noticed() -> None:
    gram = np.eye(3)[None].repeat(2, 0)
    gram[1] = -gram[1]
    p = np.full((2, 3), 1 / 3)
    with pytest.raises(NumericalError, match="a curvature is not positive"):
        label_norms(gram, p, 1.0)
    gram[1] = np.nan
    with pytest.raises(NumericalError, match="NaN"):
        label_norms(gram, p, 1.0)


def test_nan_in_the_rows_is_named(mlp: nn.Module, classes: Rows) -> None:
    x, y = classes
    x = x.clone()
    x[3, 0] = float("nan")
    with pytest.raises(InputError, match="NaN or infinity: 3"):
        IFComp().fit(mlp, (x, y))


def test_points_of_another_kind(fitted: IFComp) -> None:
    row = TokenRow((1, 2), (-100, 2), "t")
    with pytest.raises(InputError, match="give points of the kind"):
        fitted.complexity([row])
    with pytest.raises(InputError, match="its loss is the tempered cross-entropy"):
        IFComp().bind(nn.Linear(2, 2), TensorUnits(torch.zeros(2, 2), torch.tensor([0, 1])), objective=print)


def test_choices_that_are_none() -> None:
    def row(name: str, *ids: int) -> TokenRow:
        return TokenRow((1, *ids), (-100, *ids), name)

    pair = [row("a", 2), row("a", 3)]
    for rows, given, why in (
        ([], [], "no rows"), ([pair], [0, 1], "1 rows but 2"), ([pair], [2], "not among the 2 answers"),
        ([[pair[0]]], [0], "unequal numbers"), ([pair, pair], [0, 1], "appears twice"),
        ([[pair[0], TokenRow((1, 2), (-100, -100), "a")]], [0], "no labelled token"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=why):
            Choices(rows, given)


def test_calibration_error_by_hand() -> None:
    """Two bins by order: |.5 - .6| and |1 - .9| with two rows each; by width all four fall into bins."""
    p, hit = np.array([0.6, 0.6, 0.9, 0.9]), np.array([1, 0, 1, 1])
    assert calibration_error(p, hit, 2) == pytest.approx(0.1)
    assert calibration_error(p, hit, 10, mass="width") == pytest.approx(0.1)
    assert calibration_error(p, hit, 1) == pytest.approx(0.0)
    for bad in ((p, hit[:3]), (p + 1, hit), (p[:0], hit[:0])):
        with pytest.raises(InputError):
            calibration_error(*bad)
