"""Stages: credit goes to the segments in which a row was seen, and to no others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attribution_models import tiny_gpt2, token_rows
from source_runs import data, one_stage, two_stages

from glasshouse.attribution import Checkpoint, TensorUnits, TokenUnits
from glasshouse.attribution.source import SOURCE
from glasshouse.runtime.errors import InputError


@pytest.fixture(scope="module")
def staged():
    run = two_stages()
    return run, SOURCE(run.points, segments=4).fit(run.final, run.rows)


def test_a_row_of_stage_two_gets_nothing_from_stage_one(staged) -> None:
    """Exactly zero, and the other way round; with both stages a row seen in both gets both terms."""
    run, method = staged
    asked = run.rows["first"].subset([0, 5])
    table = method.score(asked, "margin", per_segment=True)
    late = [n.startswith("late") for n in table.train_ids]
    early = np.logical_not(late)
    for segment in ("segment/0", "segment/1"):
        assert (table.per_module[segment][:, late] == 0).all()
        assert (table.per_module[segment][:, early] != 0).all()
    for segment in ("segment/2", "segment/3"):
        assert (table.per_module[segment][:, early] == 0).all()
        assert (table.per_module[segment][:, late] != 0).all()


def test_a_stage_alone_is_its_share_of_the_whole(staged) -> None:
    run, method = staged
    asked = run.rows["second"].subset([0, 5])
    whole = method.score(asked, "margin")
    assert whole.train_ids == run.rows["first"].ids + run.rows["second"].ids
    for stage, columns in (("first", slice(0, 30)), ("second", slice(30, 50))):
        table = method.score(asked, "margin", stage=stage)
        assert table.train_ids == run.rows[stage].ids
        assert table.meta["stage"] == stage and table.meta["n_train"] == len(run.rows[stage])
        np.testing.assert_array_equal(table.scores, whole.scores[:, columns])


def test_each_stage_is_divided_by_its_own_number_of_rows(staged) -> None:
    """A stage-2 row scored as a candidate of stage 1 gets stage 1's terms; of stage 2, its own."""
    run, method = staged
    asked, row = run.rows["first"].subset([0]), run.rows["second"].subset([3])
    own = method.score(asked, "margin", stage="second").scores[:, [3]]
    np.testing.assert_allclose(
        method.score(asked, "margin", stage="second", candidates=row).scores, own, rtol=1e-5
    )
    other = method.score(asked, "margin", stage="first", candidates=row).scores
    assert abs(float(other[0, 0]) - float(own[0, 0])) > 1e-6
    with pytest.raises(InputError, match="in no stage"):
        method.score(asked, "margin", candidates=row)


def test_a_row_of_both_stages_gets_the_terms_of_both() -> None:
    run = two_stages()
    shared = run.rows["first"].subset([0, 1, 2])
    late = run.rows["second"]
    second = TensorUnits(
        torch.cat([shared.inputs, late.inputs]), torch.cat([shared.targets, late.targets]),
        [*shared.ids, *late.ids],
    )  # fmt: skip
    method = SOURCE(run.points, segments=2).fit(run.final, {"first": run.rows["first"], "second": second})
    asked = late.subset([0, 1])
    whole = method.score(asked, "margin")
    assert len(whole.train_ids) == 50
    parts = {s: method.score(asked, "margin", stage=s).scores for s in ("first", "second")}
    np.testing.assert_allclose(
        whole.scores[:, :3], parts["first"][:, :3] + parts["second"][:, :3], rtol=1e-5, atol=1e-8
    )
    explained = method.explain(0, "early 1")
    np.testing.assert_allclose(explained.scores[0, 0], parts["second"][0, 1], rtol=1e-3)


def test_ids_that_differ_between_stages_are_refused() -> None:
    run = two_stages()
    clash = data(20, 7, "early")  # the same names for other rows
    with pytest.raises(InputError, match="'early 0' names one row in stage 'first' and another in 'second'"):
        SOURCE(run.points, segments=2).fit(run.final, {"first": run.rows["first"], "second": clash})


def test_stages_need_data_each(staged) -> None:
    run, method = staged
    with pytest.raises(InputError, match="every stage once"):
        SOURCE(run.points, segments=2).fit(run.final, run.rows["first"])
    with pytest.raises(InputError, match="no stage 'third'"):
        method.score(run.rows["first"].subset([0]), "margin", stage="third")


def test_self_scores_are_the_diagonal_of_scores_on_the_rows_own_loss(staged) -> None:
    """With the sign of a helpful row: minus the score on the loss."""
    run, method = staged
    rows = run.rows["first"]
    table = method.score(rows, "loss", stage="first")
    np.testing.assert_allclose(method.self_score(stage="first"), -np.diag(table.scores), rtol=1e-3, atol=1e-6)
    whole = method.self_score()
    np.testing.assert_allclose(whole[:30], method.self_score(stage="first"), rtol=1e-5, atol=1e-8)


def test_small_pieces_of_self_scores_change_nothing(staged, monkeypatch: pytest.MonkeyPatch) -> None:
    from glasshouse.attribution.source import asking

    _, method = staged
    whole = method.self_score()
    monkeypatch.setattr(asking, "SELF_FLOATS", 400)
    np.testing.assert_allclose(method.self_score(), whole, rtol=1e-4, atol=1e-7)


def test_tokens_modules_and_explanations_add_up_to_the_score() -> None:
    rows = TokenUnits(token_rows())
    final, points = _token_run()
    method = SOURCE(points, segments=1, c=[2.0]).fit(final, rows)
    asked = rows.subset([0, 4])
    table = method.score(asked, per_module=True)
    tokens = method.score(asked, unit="token")
    ends = np.cumsum(rows.sizes)
    sums = np.stack([tokens.scores[:, e - s : e].sum(1) for s, e in zip(rows.sizes, ends, strict=True)], 1)
    np.testing.assert_allclose(sums, table.scores, rtol=2e-3, atol=1e-6 * np.abs(table.scores).max() + 1e-7)
    modules = sum(table.per_module.values())
    np.testing.assert_allclose(modules, table.scores, rtol=1e-3, atol=1e-7)
    assert set(table.per_module) == set(method.names_)
    method.score(asked)
    part = method.explain(1, rows.ids[3])
    assert part.scores.shape == (1, rows.sizes[3])
    assert float(part.scores.sum()) == pytest.approx(float(table.scores[1, 3]), rel=1e-3, abs=1e-7)


def test_token_losses_are_averaged_over_tokens_by_default() -> None:
    """Training loops divide by labelled tokens; the scale enters eigenvalues and scores, not weight decay."""
    final, points = _token_run()
    rows = TokenUnits(token_rows())
    labelled = sum(sum(x != -100 for x in row.labels[1:]) for row in rows.rows)
    method = SOURCE(points, c=[2.0]).fit(final, rows)
    assert method.scales_["train"] == pytest.approx(len(rows) / labelled)
    summed = SOURCE(points, c=[2.0], loss_scale=1.0).fit(final, rows)
    a, b = (m.spectra_[0]["transformer.h.0.mlp.c_fc"].eigenvalues for m in (method, summed))
    torch.testing.assert_close(a, b * len(rows) / labelled)


def test_low_rank_queries_and_their_aggregation() -> None:
    run = one_stage()
    asked = run.only.subset([0, 1, 2])
    full = SOURCE(run.points, segments=2).fit(run.final, run.only).score(asked, "margin")
    for rank, least, most in ((5, 0.999, 1.0), (1, 0.7, 0.9999)):
        thin = SOURCE(run.points, segments=2, query_rank=rank, svd="full").fit(run.final, run.only)
        scores = thin.score(asked, "margin").scores
        r = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(scores, full.scores, strict=True)])
        assert least <= r <= most + 1e-9
    method = SOURCE(run.points, segments=2).fit(run.final, run.only)
    mean = method.score(asked, "margin", query_agg="mean")
    np.testing.assert_allclose(mean.scores[0], full.scores.mean(0), rtol=1e-3, atol=1e-6)
    normed = method.score(asked, "margin", row_norm="grad").scores
    assert np.abs(normed - full.scores).max() > 0
    assert method.score(asked, "margin", top_k=3).columns.shape == (3, 3)


def test_the_schedule_says_how_far_each_segment_went() -> None:
    run = two_stages(momentum=0.5)
    bound = SOURCE(run.points, segments=4, momentum=0.5).bind(run.final, run.rows)
    plan = bound.schedule()
    assert plan["effective_rank"].isna().all()
    assert plan["c"].tolist() == pytest.approx([12 * 0.1 * 2] * 4)
    assert plan["rate_sum"].tolist() == pytest.approx([1.2] * 4)
    assert plan["checkpoints"].tolist() == ["6, 12", "18, 24", "30, 36", "42, 48"]
    found = bound.fit(run.final, run.rows)
    whole, parts = found.schedule(), found.schedule(per_module=True)
    sums = parts.groupby("segment")["effective_rank"].sum()
    np.testing.assert_allclose(sums, whole["effective_rank"])
    assert ((whole["effective_rank"] > 0) & (whole["effective_rank"] < whole["directions"])).all()
    longer = SOURCE(run.points, segments=4, c=[24.0] * 4).fit(run.final, run.rows).schedule()
    assert (longer["effective_rank"] > whole["effective_rank"]).all()


def test_the_cost_is_that_of_ekfac_times_checkpoints() -> None:
    from glasshouse.attribution import EKFAC

    run = one_stage()
    one = EKFAC().bind(run.final, run.only).cost(5)
    four = SOURCE(run.points, segments=2).bind(run.final, run.only).cost(5)
    for key in ("covariance", "lambda", "scores"):
        assert four[key] == pytest.approx(4 * one[key])
    assert four["eigen"] == pytest.approx(2 * one["eigen"])
    assert four["factor_bytes"] == pytest.approx(2 * one["factor_bytes"])


def test_one_working_copy_serves_all_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """The subject's weights are never touched, and a checkpoint that is the subject itself may come last."""
    run = one_stage()
    before = {k: v.clone() for k, v in run.final.state_dict().items()}
    points = [*run.points[:-1], Checkpoint(None, run.points[-1].step, 0.1)]
    asked = run.only.subset([0])
    own = SOURCE(points, segments=2).fit(run.final, run.only).score(asked, "margin").scores
    same = SOURCE(run.points, segments=2).fit(run.final, run.only).score(asked, "margin").scores
    np.testing.assert_array_equal(own, same)
    assert all(torch.equal(before[k], v) for k, v in run.final.state_dict().items())


def _token_run():
    final = tiny_gpt2()
    return final, [Checkpoint(tiny_gpt2(seed=1), 5), Checkpoint(final, 10)]
