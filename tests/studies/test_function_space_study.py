"""The study's statistics on arrays whose answers are known, and its networks where the images are at hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from glasshouse.runtime.cache import Cache
from glasshouse.studies import find
from glasshouse.studies._execute import run_study
from glasshouse.studies.attribution import fashion
from glasshouse.studies.attribution.function_space_distance import (
    Config,
    _beside,
    _lead,
    _median_error,
    _spearman,
)

needs_images = pytest.mark.skipif(fashion.data_file() is None, reason="needs GLASSHOUSE_DATA (fashion-mnist)")


def _values(estimate: list[float], truth: list[float], base: list[int]) -> np.ndarray:
    return np.stack([estimate, truth, base], 1).astype(float)


def test_spearman_is_the_mean_over_base_networks():
    """Pooled, two networks of different scale would make any estimate look ordered."""
    values = _values([1, 2, 3, 103, 102, 101], [1, 2, 3, 101, 102, 103], [0, 0, 0, 1, 1, 1])
    assert _spearman(values) == pytest.approx(0.0)


def test_the_lead_is_over_the_best_rival():
    own = _values([1, 2, 3, 4], [1, 2, 3, 4], [0] * 4)
    rivals = [_values(x, [1, 2, 3, 4], [0] * 4) for x in ([4, 3, 2, 1], [1, 2, 4, 3])]
    assert _lead(_beside(own, rivals)) == pytest.approx(0.2)
    assert _lead(_beside(rivals[0], [own])) == pytest.approx(-2.0)
    assert _median_error(_values([1, 2, 6], [2, 2, 4], [0] * 3)) == pytest.approx(0.5)


@needs_images
def test_there_are_68_networks_and_the_first_is_nearest():
    from glasshouse.studies.attribution.function_space_distance.accuracy import perturbed

    x, y = fashion.pictures("pool", 0, 200)
    model = fashion.train_mlp(x, y, 0, fashion.Recipe("small", rows=200, epochs=1))
    networks, groups = perturbed(model, x, y, 0)
    assert len(networks) == 68 and len(set(groups)) == 28
    with torch.no_grad():
        far = [float((net(x) - model(x)).square().sum()) for net in networks[:6]]
    assert far[0] == min(far)


@needs_images
@pytest.mark.slow
def test_it_runs_whole(tmp_path):
    small = Config(seeds=2, accuracy_seeds=1, rows=800, rank=5, tasks=2, audit_seeds=2, draws=20)
    study = dataclasses.replace(find("function-space-distance"), configs={"laptop": small, "paper": small})
    result = run_study(study, out=tmp_path / "runs", cache=Cache(tmp_path / "cache"))
    assert {claim["id"] for claim in result.claims} == {spec.id for spec in study.claims}
    assert all(claim["estimate"] is not None for claim in result.claims)
