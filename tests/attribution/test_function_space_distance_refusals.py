"""Everything that would make a distance mean something else is refused in a sentence, or said aloud."""

from __future__ import annotations

import copy

import pytest
import torch
from fsd_models import conv, mlp, moved, network
from torch import nn

from glasshouse.attribution.function_space_distance import (
    ESTIMATORS,
    ContinualTrainer,
    CoresetDistance,
    EWCDistance,
    FSDInfluence,
    FSDSketch,
    GGNDistance,
    InputMoments,
    NTKDistance,
    SketchWarning,
)
from glasshouse.runtime.errors import GlasshouseError, InputError, NumericalError, StaleError


@pytest.fixture
def fitted():
    model, x = network("mlp")
    return FSDSketch().fit(model, x), model, x


@pytest.mark.parametrize("layer", [nn.GELU(), nn.SiLU(), nn.Tanh()])
def test_a_smooth_activation_needs_approx(layer):
    model = nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 2)).eval()
    with pytest.raises(InputError, match="approx=True"):
        FSDSketch().fit(model, torch.randn(20, 3))
    assert FSDSketch(approx=True).fit(model, torch.randn(20, 3)).distance(model).item() == 0


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.LayerNorm(4), "LayerNorm"), (nn.LeakyReLU(), "LeakyReLU"), (nn.GRUCell(4, 4), "GRUCell"),
        (nn.MaxPool1d(2), "MaxPool1d"), (nn.BatchNorm1d(4, track_running_stats=False), "BatchNorm1d"),
    ],
)  # fmt: skip
def test_an_unknown_layer_is_refused_by_name(layer, name):
    model = nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 2)).eval()
    with pytest.raises(InputError, match=f"{name} has no rule"):
        FSDSketch(approx=True).fit(model, torch.randn(20, 3))


def test_an_unknown_function_is_refused_by_name():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return torch.cumsum(self.layer(x), 1)

    with pytest.raises(InputError, match="cumsum"):
        FSDSketch().fit(Odd().eval(), torch.randn(20, 3))


def test_control_flow_is_refused():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x) if x.sum() > 0 else self.layer(-x)

    with pytest.raises(InputError, match="cannot be traced"):
        FSDSketch().fit(Branching().eval(), torch.randn(20, 3))


def test_a_wrapped_layer_that_computes_something_else_is_refused():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(Doubled(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with pytest.raises(InputError):
        FSDSketch().fit(model, torch.randn(20, 3))


def test_training_mode_is_refused():
    x = torch.randn(20, 1, 6, 6)
    with pytest.raises(InputError, match=r"BatchNorm2d is in training mode.*eval"):
        FSDSketch(cov="diag").fit(conv().train(), x)
    sketch = FSDSketch(cov="diag").fit(conv(), x)
    with pytest.raises(InputError, match="training mode"):
        sketch.distance(conv().train())
    with pytest.raises(InputError, match="training mode"):
        CoresetDistance().fit(conv().train(), x)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: mlp(6, 9, 7, 3), r"'0.weight' is \(8, 6\) in the reference and \(9, 6\)"),
        (lambda: mlp(6, 8, 3), "step 4 is relu"),
        (lambda: mlp(6, 8, 7, 5, 3), "step"),
        (lambda: nn.Sequential(nn.Linear(6, 8, bias=False), *mlp(6, 8, 7, 3)[1:]).eval(), "'0.bias' is"),
    ],
)  # fmt: skip
def test_other_architectures_are_refused_with_the_first_mismatch(fitted, other, said):
    sketch, model, x = fitted
    with pytest.raises(InputError, match=f"the two models differ: .*{said}"):
        sketch.distance(other())
    with pytest.raises(InputError, match="the two models differ"):
        CoresetDistance().fit(model, x).distance(other())


def test_a_covariance_that_is_none():
    C = torch.eye(4)
    C[0, 1] = C[1, 0] = 1.00005
    with pytest.warns(SketchWarning, match="not positive semidefinite"):
        moments = InputMoments.of(torch.zeros(4), C)
    assert bool(torch.isfinite(moments.sample(10, 0)[0]).all())
    C[0, 1] = C[1, 0] = 1.5
    with pytest.raises(InputError, match="beyond what a jitter repairs"):
        InputMoments.of(torch.zeros(4), C)
    with pytest.raises(InputError, match="shapes do not fit"):
        InputMoments.of(torch.zeros(3), torch.eye(4))
    with pytest.raises(NumericalError):
        InputMoments.of(torch.full((4,), torch.nan), torch.eye(4))


def test_few_rows_give_a_factor_and_a_diagonal():
    """Twelve rows do not make a covariance of twenty numbers; the variances must still be whole."""
    model, x = mlp(20, 5, 2), torch.randn(12, 20)
    with pytest.warns(SketchWarning, match="fewer rows than the 20 inputs"):
        sketch = FSDSketch().fit(model, x)
    moments = sketch.graphs_[""].moments
    assert moments.factor.shape[2] == 3 and "fewer rows" in sketch.notes_[0]
    variances = moments.covariance().diagonal()
    assert torch.allclose(variances, x.var(0, correction=0), rtol=1e-4)


def test_wide_inputs_have_no_full_covariance():
    with pytest.raises(InputError, match="cov=256"):
        FSDSketch().fit(mlp(2001, 3, 2), torch.randn(4, 2001))


def test_idle_units_are_counted(fitted):
    assert fitted[0].dead_ >= 0
    model = mlp(3, 5, 2)
    with torch.no_grad():
        model[0].bias[:] = torch.tensor([-100.0, -100.0, 100.0, 0.0, 0.0])
    sketch = FSDSketch().fit(model, torch.randn(200, 3))
    assert (sketch.dead_, sketch.always_on_) == (2, 1)
    assert "2 are shut and 1 open" in sketch.notes_[-1]


@pytest.mark.parametrize("rho", ["kl", "prob_l2"])
def test_only_l2_has_closed_moments(fitted, rho):
    sketch, model, _ = fitted
    with pytest.raises(InputError, match="only l2 has closed moments"):
        sketch.distance(model, rho=rho)
    assert sketch.distance(moved(model), "stochastic", rho).item() > 0


@pytest.mark.parametrize(
    "ask",
    [
        lambda s, m: s.distance(m, "exactly"), lambda s, m: s.distance(m, variant="mine"),
        lambda s, m: s.distance(m, "stochastic", "cosine"), lambda s, m: s.distance(m, "stochastic", n=0),
        lambda s, m: s.samples(m, "deterministic"), lambda s, m: s.distance(3),
        lambda s, m: s.distance(m, variant="reference", rho="kl"),
    ],
)  # fmt: skip
def test_questions_that_have_no_answer(fitted, ask):
    with pytest.raises(InputError):
        ask(fitted[0], fitted[1])


def test_the_published_recursion_knows_mlps_only():
    model, x = network("conv")
    with pytest.raises(InputError, match="linear layers and ReLU only"):
        FSDSketch(cov="diag").fit(model, x).distance(model, variant="reference")


@pytest.mark.parametrize(
    ("options", "data"),
    [
        ({"cov": "some"}, torch.randn(9, 6)), ({"cov": 0}, torch.randn(9, 6)), ({}, torch.zeros(0, 6)),
        ({"per_class": True}, (torch.randn(9, 6), torch.randn(9))), ({}, torch.zeros(9, 6, dtype=torch.long)),
        ({}, {"x": 1}), ({"batch_rows": 0}, torch.randn(9, 6)), ({}, torch.randn(1, 6)),
        ({}, torch.full((9, 6), torch.nan)),
        ({"per_class": True}, (torch.randn(3, 6), torch.tensor([0, 0, 1]))),
    ],
)  # fmt: skip
def test_data_and_options_that_cannot_be_sketched(options, data):
    with pytest.raises(GlasshouseError):
        FSDSketch(**options).fit(mlp(6, 8, 3), data)


def test_nan_weights_are_refused(fitted):
    sketch, model, x = fitted
    bad = copy.deepcopy(model)
    with torch.no_grad():
        bad[2].weight[0, 0] = torch.nan
    for kind in ESTIMATORS.values():
        with pytest.raises(GlasshouseError):
            kind().fit(bad, x)
    with pytest.raises(NumericalError, match="not finite"):
        sketch.distance(bad)
    with pytest.raises(NumericalError, match="not finite"):
        CoresetDistance().fit(model, x).distance(bad)


def test_too_many_units_for_covariances_are_refused():
    model = mlp(2, 8200, 3, 2)
    sketch = FSDSketch().fit(model, torch.randn(20, 2))
    with pytest.raises(InputError, match="stochastic"):
        sketch.distance(moved(model))
    assert sketch.distance(moved(model), "relu-gaussian", n=5).item() > 0


def test_rivals_refuse_what_they_cannot_estimate(fitted):
    _, model, x = fitted
    y = torch.randint(0, 3, (len(x),))
    with pytest.raises(InputError, match="rho is 'l2'"):
        EWCDistance().fit(model, (x, y)).distance(model, rho="l2")
    with pytest.raises(InputError, match="rho is 'kl'"):
        GGNDistance().fit(model, x).distance(model, rho="kl")
    for make in (
        lambda: EWCDistance("newest"), lambda: GGNDistance("some"), lambda: GGNDistance(rho="cosine"),
        lambda: CoresetDistance(0), lambda: NTKDistance(-1),
    ):  # fmt: skip
        with pytest.raises(InputError):
            make().fit(model, (x, y))


def test_disk(fitted, tmp_path):
    sketch, model, _ = fitted
    bare = sketch.save(tmp_path / "bare", snapshot=False)
    with pytest.raises(InputError, match="without the reference's weights"):
        FSDSketch.load(bare)
    with pytest.raises(StaleError, match="belongs to model"):
        FSDSketch.load(bare, moved(model))
    other = moved(model)
    assert FSDSketch.load(bare, model).distance(other).item() == sketch.distance(other).item()
    with pytest.raises(InputError, match="holds a FSDSketch"):
        CoresetDistance.load(sketch.save(tmp_path / "whole"))


def test_uses_refuse(fitted):
    sketch, model, x = fitted
    points = x[:3], torch.tensor([0, 1, 2])
    for bad in (
        FSDInfluence(sketch, solver="guess"), FSDInfluence(sketch, damping=-1.0),
        FSDInfluence(sketch, draws=0), FSDInfluence(CoresetDistance().fit(model, x)),
        FSDInfluence(FSDSketch()),
    ):  # fmt: skip
        with pytest.raises(InputError):
            bad.self_influence(points)
    with pytest.raises(NumericalError, match="residual"):
        FSDInfluence(sketch, solver="cg", iterations=1, damping=1e-6).self_influence(points)
    with pytest.raises(InputError, match="weight"):
        ContinualTrainer(weight=-1.0)
    with pytest.raises(InputError, match="epochs"):
        ContinualTrainer().learn(model, points, epochs=0)
