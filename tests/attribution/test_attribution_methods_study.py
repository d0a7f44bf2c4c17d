"""The pieces of the study attribution-methods: its organism is the organism, its roster runs."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from glasshouse.attribution.checkpoints import Checkpoint, loaded
from glasshouse.organisms.planted_canary import canary_world, grow_canary_model
from glasshouse.studies.attribution.attribution_methods import CLAIMS, Config, images, words
from glasshouse.studies.attribution.attribution_methods.roster import REMOVED, ROSTER, Trained
from glasshouse.studies.attribution.fashion import NOISY, data_file, queries


def test_the_watched_canary_is_the_organism_weight_for_weight() -> None:
    world = canary_world(0)
    plain = grow_canary_model(world, 0, epochs=0.06)
    watched, path = words.watched_canary(world, 0, epochs=0.06)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))
    assert len(path) == words.PATH and path[-1] == Checkpoint(watched, path[-1].step, 1.0, lr_sum=1.0)
    with loaded(watched, path[0]) as early:
        assert not torch.equal(early.lm_head.weight, watched.lm_head.weight)


def test_gaps_are_positive_exactly_where_the_answer_is_right(mlp, classes) -> None:
    X, y = classes
    with torch.no_grad():
        right = (mlp(X).argmax(1) == y).numpy()
    assert np.array_equal(images.gaps(mlp, X, y) > 0, right) and 0 < right.sum() < len(right)


def test_every_method_of_the_roster_scores_every_query(classes) -> None:
    torch.manual_seed(0)
    build = lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).eval()  # noqa: E731
    model, members = build(), [build() for _ in range(4)]
    path = [Checkpoint(build() if k < 6 else model, k, 0.02) for k in range(1, 7)]
    run = Trained(NOISY, 0, model, path, classes, [model, *members])
    asked = (classes[0][:4], classes[1][:4])
    tables = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LoGra's rank is larger than these layers
        for name, make in ROSTER.items():
            tables[name] = make(run).fit(model, classes).score(asked, "margin").scores
    assert set(REMOVED) < set(tables)
    assert all(t.shape == (4, 24) and np.isfinite(t).all() and t.std() > 0 for t in tables.values())
    names = list(tables)
    same = [(a, b) for i, a in enumerate(names) for b in names[:i] if np.allclose(tables[a], tables[b])]
    assert not same, "two names for one method"


@pytest.mark.skipif(data_file() is None, reason="needs the images that GLASSHOUSE_DATA points at")
def test_the_control_of_removals_takes_queries_of_other_classes() -> None:
    tables, label = images.removal_tables(NOISY), queries()[1].numpy()
    own, other = tables["EK-FAC"].scores, tables[images.OTHER].scores
    at = [int(np.flatnonzero((own == row).all(1))[0]) for row in other]
    assert (label[at] != label).all()


def test_declared_before_the_run() -> None:
    ids = [claim.id for claim in CLAIMS]
    assert len(set(ids)) == len(ids) and all(i.startswith("attribution-methods/") for i in ids)
    assert [c.id.endswith("r") for c in CLAIMS] == [c.threshold.relation == "report" for c in CLAIMS]
    assert all(c.control for c in CLAIMS if c.threshold.relation != "report")
    assert Config().ks[1] == round(0.05 * NOISY.rows), "claims speak of 5%"
