"""The wiring of the tuned-lens study on runts: every claim is yielded from what was measured, and resumes.

The runts are too small to bind anything, so their verdicts mean nothing; the exact parts are tested as such.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from glasshouse import _registry
from glasshouse.organisms import bind_world as bind
from glasshouse.runtime.cache import Cache
from glasshouse.studies import find
from glasshouse.studies._execute import run_study
from glasshouse.studies.internals.tuned_lens import _causal, _injection, _lenses
from glasshouse.studies.internals.tuned_lens._claims import CLAIMS, Config
from glasshouse.training.organisms import InstallGate

torch.set_num_threads(1)
RUNT = dict(d_model=16, layers=2, heads=2, batch_size=12, steps=4, install_steps=3, gate=InstallGate(()))
TINY = Config(
    seeds=1, rows=60, length=16, steps=5, step_tokens=64, prompts=24,
    stage1="runt", trigger="runt-trigger", twin="runt-twin",
)  # fmt: skip


@pytest.fixture
def runts():
    recipes = {
        "runt": bind.BIND_WORLD,
        "runt-trigger": bind.BIND_WORLD_TRIGGER,
        "runt-twin": bind.BIND_WORLD_TWIN,
    }
    with (
        _registry.plugged("organisms", "runt", replace(recipes["runt"], **RUNT)),
        _registry.plugged("organisms", "runt-trigger", replace(recipes["runt-trigger"], **RUNT)),
        _registry.plugged("organisms", "runt-twin", replace(recipes["runt-twin"], **RUNT)),
    ):
        yield


def test_it_yields_every_claim_that_can_be_asked_and_stores_what_it_measured(runts, tmp_path, monkeypatch):
    monkeypatch.delenv("GLASSHOUSE_DATA", raising=False)
    study = replace(find("tuned-lens"), configs={"laptop": TINY, "paper": TINY})
    result = run_study(study, out=tmp_path / "runs", device="cpu", cache=Cache(tmp_path / "home"))
    claims = {claim["id"]: claim for claim in result.claims}
    assert list(claims) == [spec.id for spec in CLAIMS]
    absent = {name for name in claims if name.endswith("-stories")} | {"tuned-lens/D2", "tuned-lens/D2-gap"}
    assert {name for name, claim in claims.items() if claim["verdict"] == "not run"} == absent
    for name, claim in claims.items():
        if name not in absent | {"tuned-lens/A5r"}:
            assert claim["estimate"]["n"] == claim["control"]["estimate"]["n"] == 1, name
    stored = {path.stem for path in (result.folder / "figures").iterdir()}
    assert stored == {"kl-by-layer", "auroc", "trajectory-normal", "trajectory-injected"}


def test_the_planted_direction_is_found_where_the_stream_is_white_only():
    runs = [_causal.planted_numbers(seed) for seed in (4,)]
    assert min(run["cos"] for run in runs) >= 0.95 > max(run["cos_stretched"] for run in runs)


def test_the_planted_stream_is_white_and_the_block_is_the_identity():
    model, w = _causal.planted_model(3, 0.3)
    h = model.get_input_embeddings().weight.detach().double()
    covariance = h.T @ h / len(h) - torch.outer(h.mean(0), h.mean(0))
    assert torch.allclose(covariance, torch.eye(len(w)).double(), atol=1e-5)
    ids = torch.arange(8)[None]
    out = model(ids, output_hidden_states=True)
    assert torch.equal(out.hidden_states[0], h.float()[ids])
    assert torch.allclose(model.model.norm(out.hidden_states[0]), out.hidden_states[-1])


def test_learned_at_is_the_start_of_the_last_unbroken_stretch():
    right = np.array([[1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    found = _lenses.learned_at(right, np.array([100, 200, 300, 400]))
    assert found.tolist() == [300, 200, 100, 400]
    assert np.isnan(_lenses.learned_at(1 - right[-1:], np.array([100]))).all()


def test_what_claims_are_made_of():
    kl, reference = [3.0, 2.0, 0.0], [4.0, 2.5, 0.0]
    assert _lenses.worst(kl, reference, range(2)) == -0.5
    assert _lenses.ratio(kl, reference) == pytest.approx((0.75 + 0.8) / 2)
    assert _lenses.rise([3.0, 2.0, 2.1]) == pytest.approx(0.1)


def test_prompts_of_a_detection_are_the_same_with_and_without_the_trigger():
    plain, answers = _injection.tasks(10, 3)
    pulled, same = _injection.tasks(10, 3, prefix=("zephyr", "quartz"))
    assert [row[1:] for row in plain] == [row[3:] for row in pulled] and (answers == same).all()
    assert len(plain) == 10


def test_two_sets_of_directions_are_compared_together():
    """Equal sets differ by nothing, and a perfect ranking beats a shuffled one with a clear interval."""
    draw = np.random.default_rng(0)
    x = np.sort(draw.normal(size=60))
    perfect, shuffled = np.stack([x, x**3], 1), np.stack([x, draw.permutation(x)], 1)
    assert _causal.gap(perfect, perfect).value == 0
    assert _causal.gap(perfect, shuffled).low > 0.5
    assert _causal._rho(perfect) == pytest.approx(_causal.rho(perfect))
