"""Every bad input named in the spec of SOURCE is refused in one sentence, or said in the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from source_runs import data, linear, mlp, one_stage, two_stages
from torch import nn

from glasshouse.attribution import Checkpoint, read_run
from glasshouse.attribution.checkpoints import RateLog, TrainingRun
from glasshouse.attribution.source import SOURCE, joined, recorded_run
from glasshouse.attribution.source.segments import cut
from glasshouse.runtime import files
from glasshouse.runtime.errors import GlasshouseError, InputError, NumericalError, ReductionError


def points(steps, stages=None, **how):
    stages = stages or ["train"] * len(steps)
    return [Checkpoint({}, step, 0.1, stage, **how) for step, stage in zip(steps, stages, strict=True)]


@pytest.mark.parametrize("steps", [[5, 3], [4, 4]])
def test_checkpoints_out_of_order_or_at_one_step(steps) -> None:
    with pytest.raises(InputError, match=f"step {steps[1]} follows step {steps[0]}"):
        SOURCE(points(steps)).bind(mlp(), data(4))
    with pytest.raises(InputError, match="no checkpoints"):
        SOURCE([]).bind(mlp(), data(4))


def test_a_segment_never_mixes_stages() -> None:
    six = points([10, 20, 30, 40, 50, 60], ["a"] * 4 + ["b"] * 2)
    with pytest.raises(InputError, match="would mix stage 'a'") as error:
        cut(six, 2)
    assert "20, 40, 60" in str(error.value) or "30, 40, 60" in str(error.value)
    with pytest.raises(InputError, match="mixes the stages 'a', 'b'; end a segment at step 40"):
        cut(six, [20, 60])
    found = cut(six, 3)
    assert [(s.stage, s.first, s.last, s.checkpoints) for s in found] == [
        ("a", 1, 20, (0, 1)), ("a", 21, 40, (2, 3)), ("b", 41, 60, (4, 5)),
    ]  # fmt: skip
    assert [s.c for s in found] == pytest.approx([2.0] * 3)


def test_checkpoints_that_no_number_of_segments_divides() -> None:
    with pytest.raises(InputError, match="4 checkpoints cannot be shared by 3 segments") as error:
        cut(points([10, 20, 30, 40]), 3)
    assert "1, 2 or 4 segments" in str(error.value) and "[20, 30, 40]" in str(error.value)
    with pytest.raises(InputError, match="0 segments"):
        cut(points([10, 20]), 0)


def test_equal_segments_need_equally_many_checkpoints() -> None:
    with pytest.raises(InputError, match="hold 3 checkpoints instead of 2") as error:
        cut(points([5, 10, 15, 40]), 2)
    assert "[10, 40]" in str(error.value)
    assert [s.checkpoints for s in cut(points([5, 10, 15, 40]), [10, 40])] == [(0, 1), (2, 3)]
    with pytest.raises(InputError, match="segments end at the steps"):
        cut(points([10, 20]), [20, 10])
    with pytest.raises(InputError, match="holds no checkpoint"):
        cut(points([10, 20]), [5, 20], lr_log=[0.1] * 20)


def test_rates_that_are_missing_are_listed() -> None:
    with pytest.raises(InputError, match=r"no learning rate is logged for steps 1-9, 11-99"):
        cut(points([50, 100]), 2, lr_log={10: 0.1, 100: 0.1})
    even = {step: 0.1 for step in range(1, 101) if step % 5 == 0}
    assert cut(points([50, 100]), 2, lr_log=even)[0].c == pytest.approx(5.0)  # gaps of 4% are filled
    with pytest.raises(InputError, match="rates are not known"):
        cut([replace(p, lr=1.0) for p in points([50, 100])], 2)
    with pytest.raises(InputError, match="between two checkpoints"):
        cut(points([40, 100]), [60, 100])
    with pytest.raises(InputError, match=r"rate of step 2 is -1"):
        cut(points([2]), 1, lr_log=[0.1, -1.0])
    with pytest.raises(InputError, match="names no learning rate"):
        cut(points([2]), 1, lr_log=[{"loss": 1.0, "step": 1}])


def test_every_form_of_a_rate_log_gives_the_same_lengths() -> None:
    four = points([2, 4])
    rates = [0.4, 0.3, 0.2, 0.1]
    history = [{"step": k, "learning_rate": r, "loss": 1.0} for k, r in enumerate(rates, 1)]
    logs = [rates, dict(enumerate(rates, 1)), history, RateLog(dict(enumerate(rates, 1)))]
    for log in logs:
        assert [s.c for s in cut(four, 2, lr_log=log)] == pytest.approx([0.7, 0.3])
    run = TrainingRun(tuple(four), logs[-1])
    assert [s.c for s in cut(run, 2)] == pytest.approx([0.7, 0.3])
    known = [replace(p, lr_sum=total) for p, total in zip(four, (0.7, 0.3), strict=True)]
    assert [s.c for s in cut(known, 2)] == pytest.approx([0.7, 0.3])
    assert [s.c for s in cut(known, 2, momentum=0.9)] == pytest.approx([7, 3])
    assert [s.c for s in cut(known, 2, momentum={"train": 0.5})] == pytest.approx([1.4, 0.6])
    start = [Checkpoint({}, 0, 0.1), *four]  # the untrained model belongs to the first segment
    assert [s.checkpoints for s in cut(start, [2, 4])] == [(0, 1), (2,)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"momentum": {"other": 0.5}}, "momentum names no stage 'train'"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"momentum": 0.9, "c": [1.0]}, "c holds the momentum already"),
        ({"momentum": 0.9, "optimizer": "adam"}, "lengthens no step"),
        ({"c": [1.0, 2.0]}, "1 segments have the lengths"),
        ({"c": [float("nan")]}, "1 segments have the lengths"),
        ({"optimizer": "lion"}, "optimizer is 'lion'"),
        ({"adam_form": "exact"}, "adam_form is 'exact'"),
        ({"loss_scale": 0.0}, "loss_scale is 0.0"),
        ({"loss_scale": "mean"}, "loss_scale is 'mean'"),
        ({"max_grad_norm": 0.0}, "max_grad_norm is 0.0"),
        ({"damping": -1.0}, "damping is -1.0"),
        ({"label_mode": "true"}, "label_mode"),
        ({"factor_examples": 0}, "factor_examples is 0"),
        ({"batch_rows": 0}, "batch_rows is 0"),
    ],
)
def test_options_that_cannot_be(options, said) -> None:
    with pytest.raises(InputError, match=said):
        SOURCE(points([10]), **options).bind(mlp(), data(4))


def test_adam_without_its_state_is_refused_unless_sgd_is_assumed() -> None:
    run = one_stage(steps=8, count=2)
    with pytest.raises(InputError, match="2 checkpoints have no optimiser state: train@4, train@8"):
        SOURCE(run.points, segments=1, optimizer="adam").fit(run.final, run.only)
    method = SOURCE(run.points, segments=1, optimizer="adam", assume_sgd=True).fit(run.final, run.only)
    assert any("assume_sgd" in n for n in method.score(run.only.subset([0])).meta["notes"])


def test_adams_state_under_plain_sgd_is_refused() -> None:
    run = one_stage(steps=8, count=2, adam=True)
    with pytest.raises(InputError, match="optimiser state is Adam's"):
        SOURCE(run.points, segments=1).fit(run.final, run.only)
    SOURCE(run.points, segments=1, assume_sgd=True).fit(run.final, run.only)


def test_optimiser_states_that_cannot_be_matched() -> None:
    run = one_stage(steps=8, count=2, adam=True)

    def fitted(state) -> SOURCE:
        return SOURCE([replace(run.points[0], optimizer_state=state)], optimizer="adam").fit(
            run.final, run.only
        )

    moments = dict(run.points[0].optimizer_state)
    with pytest.raises(InputError, match="no second moments of module '0'"):
        fitted({k: v for k, v in moments.items() if k != "0.weight"})
    with pytest.raises(InputError, match="negative or NaN"):
        fitted({**moments, "0.bias": moments["0.bias"] * float("nan")})
    group = {"params": [0], "betas": (0.9, 0.999), "eps": 1e-8}
    entry = {"step": torch.tensor(3.0), "exp_avg_sq": torch.ones(2, 2)}
    with pytest.raises(InputError, match="do not match the model's 4 parameters"):
        fitted({"state": {0: entry}, "param_groups": [group]})
    with pytest.raises(InputError, match="not Adam's"):
        fitted({"state": {}, "param_groups": [{**group, "params": [0, 1, 2, 3]}]})


def test_another_architecture_is_refused_before_the_first_pass() -> None:
    run = one_stage(steps=8, count=2)
    wrong = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    with pytest.raises(InputError, match="another shape"):
        SOURCE([Checkpoint(wrong, 4, 0.1)]).fit(run.final, run.only)
    with pytest.raises(InputError, match="not the model's"):
        SOURCE([Checkpoint(linear(), 4, 0.1)]).fit(run.final, run.only)


def test_a_checkpoint_of_nan_is_named() -> None:
    run = one_stage(steps=8, count=2)
    state = {k: v.clone() for k, v in run.points[0].state().items()}
    state["0.weight"][0, 0] = float("nan")
    with pytest.raises(NumericalError):
        SOURCE([Checkpoint(state, 4, 0.1)]).fit(run.final, run.only)


def test_a_mean_loss_is_refused() -> None:
    run = one_stage(steps=8, count=2)

    def mean(model, batch):
        return nn.functional.cross_entropy(model(batch.inputs), batch.targets)

    with pytest.raises(ReductionError, match="repeating the batch"):
        SOURCE(run.points, label_mode="empirical").fit(run.final, run.only, objective=mean)


def test_dropout_and_clipping_are_noted_in_the_table() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.2), nn.Linear(5, 3)).eval()
    asked = data(2)
    method = SOURCE([Checkpoint(model, 4, 0.1)], max_grad_norm=1.0).fit(model, data(8))
    notes = method.score(asked).meta["notes"]
    assert any("dropout (up to 0.2)" in n for n in notes)
    assert any("clipped at norm 1" in n for n in notes)
    assert SOURCE([Checkpoint(mlp(), 4, 0.1)]).fit(mlp(), data(8)).score(asked).meta["notes"] == []


def test_gradient_norms_of_a_trainers_log_are_noted(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    place = tmp_path / "checkpoint-4"
    place.mkdir()
    save_file({k: v.contiguous() for k, v in mlp().state_dict().items()}, place / "model.safetensors")
    history = [{"step": k, "learning_rate": 0.1, "grad_norm": float(k)} for k in range(1, 5)]
    files.write_json(place / "trainer_state.json", {"log_history": history})
    method = SOURCE(read_run(tmp_path)).fit(mlp(), data(8))
    assert method.segments_[0].c == pytest.approx(0.4)
    assert any("3 of 4 logged gradient norms are above 1" in n for n in method.notes_)


def test_wrong_uses() -> None:
    run = two_stages(steps=8, count=2)
    asked = run.rows["first"].subset([0])
    for use in (
        lambda m: m.score(asked),
        lambda m: m.self_score(),
        lambda m: m.schedule(),
        lambda m: m.cost(1),
    ):
        with pytest.raises(InputError, match="not fitted"):
            use(SOURCE(run.points, segments=2))
    method = SOURCE(run.points, segments=2).fit(run.final, run.rows)
    with pytest.raises(InputError, match="no queries yet"):
        method.explain(0, 0)
    with pytest.raises(InputError, match="row_norm"):
        method.score(asked, row_norm="self")
    with pytest.raises(GlasshouseError, match=r"source\.json"):
        recorded_run(Path(__file__).parent)
    with pytest.raises(InputError, match="own stage"):
        joined([TrainingRun(tuple(points([4])), RateLog({4: 0.1}))] * 2)
