"""What the study `sycophancy` makes of measurements, and that it runs from end to end and resumes."""

from __future__ import annotations

import dataclasses
import json
import warnings
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from glasshouse.behaviour.sycophancy.regression import ConvergenceWarning
from glasshouse.runtime.cache import Cache
from glasshouse.studies import find
from glasshouse.studies._execute import run_study
from glasshouse.studies.behaviour.sycophancy import CLAIMS, Config
from glasshouse.studies.behaviour.sycophancy.organisms import P_AGREE, kendall, summary
from glasshouse.studies.behaviour.sycophancy.simulations import expected_best, judged, preference_set

torch.set_num_threads(1)
TINY = Config(
    seeds=2, sets=2, control_sets=2, pairs=500, draws=60, warmup=10, steps=(8, 8), experiments=2, items=20,
    samples=4, judgings=4,
)  # fmt: skip


def test_the_study_runs_yields_every_claim_and_resumes(tmp_path: Path) -> None:
    study = find("sycophancy")
    study = dataclasses.replace(study, configs={**study.configs, "tiny": TINY})
    cache = Cache(tmp_path / "home")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        result = run_study(study, config="tiny", out=tmp_path / "runs", cache=cache)
    assert [claim["id"] for claim in result.claims] == [spec.id for spec in CLAIMS]
    assert all(claim["verdict"] != "not run" for claim in result.claims)
    by_id = {claim["id"]: claim for claim in result.claims}
    # Eight steps teach nothing: what must be learned has to fail.
    assert by_id["sycophancy/2c"]["verdict"] == by_id["sycophancy/2f"]["verdict"] == "fails"
    again = run_study(study, config="tiny", out=tmp_path / "runs", cache=cache)
    assert again.folder == result.folder and again.claims == result.claims


def measured(values: list[float], **other: list[float]) -> dict[str, dict[str, float]]:
    names = ("drop", "flips", "praise_gap", "mimics")
    rows = {p: dict.fromkeys(names, v) for p, v in zip(P_AGREE, values, strict=True)}
    plain = {
        "neutral": [1.0] * 5, "neutral_loss": [0.0, 0.01, 0.0, 0.01, 0.0], "correct_view": [1.0] * 5,
        "mimics_plain": [0.0, 0.01, 0.0, 0.01, 0.0], "wrong_view": [1 - v for v in values], "admits": values,
    }  # fmt: skip
    for name, column in {**plain, **other}.items():
        for p, v in zip(P_AGREE, column, strict=True):
            rows[p][name] = v
    return rows


def test_a_grid_in_order_is_ranked_and_one_swap_is_seen() -> None:
    good = summary(measured([0, 0.2, 0.4, 0.6, 1.0]))
    assert (
        good["tau"] == pytest.approx(1) and good["drop_rise"] == pytest.approx(0.2) and good["drop_100"] == 1
    )
    assert good["tau_plain"] < 0.8 and good["neutral_rise"] < 0 and good["wrong_view_change"] == -1
    swapped = summary(measured([0, 0.4, 0.2, 0.6, 1.0]))
    assert swapped["tau"] == pytest.approx(0.8) and swapped["drop_rise"] == pytest.approx(-0.2)
    one_task = summary(measured([0, 0.2, 0.4, 0.6, 1.0], mimics=[1, 0.8, 0.6, 0.4, 0.2]))
    assert one_task["tau"] == pytest.approx(-1), "the worst task decides"
    assert kendall([3, 2, 1]) == pytest.approx(-1)
    worse = summary(measured([0, 0.2, 0.4, 0.6, 1.0], neutral=[1, 1, 0.9, 1, 1]))
    assert worse["neutral_change"] == pytest.approx(-0.1)


@pytest.mark.parametrize(("beta", "n"), [(0.0, 4), (0.5, 16), (2.0, 64), (2.0, 1)])
def test_the_expected_best_is_that_of_simulation(beta: float, n: int) -> None:
    import numpy as np

    stream = np.random.default_rng(0)
    agrees = stream.random((40_000, n)) < 0.5
    scores = np.where(agrees, beta, 1.0) + stream.normal(size=agrees.shape)
    share = agrees[np.arange(40_000), scores.argmax(1)].mean()
    wanted = expected_best(beta, n)
    assert abs(share - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / 40_000)


def test_without_noise_both_ways_of_judging_are_one_number() -> None:
    found = judged(400, 3, noisy=False)
    assert found["pairwise"] == pytest.approx(found["pointwise"], rel=1e-12)
    assert judged(400, 3)["pairwise"] != pytest.approx(judged(400, 3)["pointwise"], rel=1e-3)


def test_the_distractor_is_a_copy_without_effect() -> None:
    x, y, alpha = preference_set(20_000, 0)
    assert alpha[5] == 0 and 0.55 < (x[:, 5] == x[:, 0]).mean() < 0.85
    alone = x[(x[:, 0] == 0) & (x[:, 5] != 0)]
    assert len(alone) > 500
    wins = (y[(x[:, 0] == 0) & (x[:, 5] != 0)] == (alone[:, 5] > 0)).mean()
    assert abs(wins - 0.5) < 5 * 0.5 / len(alone) ** 0.5


def test_every_claim_is_declared_with_a_control_that_can_fail() -> None:
    rows = json.loads(files("glasshouse.evidence").joinpath("declared.json").read_text(encoding="utf-8"))
    ids = {row["id"] for row in rows if row["study"] == "sycophancy"}
    assert ids == {spec.id for spec in CLAIMS}
    assert all(spec.control or spec.threshold.relation == "report" for spec in CLAIMS)
