"""TracIn against brute force, against real retraining for small steps, and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from attribution_models import tiny_conv, tiny_gpt2, tiny_llama, token_rows
from torch import nn

from glasshouse.attribution import TensorUnits, TokenUnits
from glasshouse.attribution.checkpoints import (
    Checkpoint,
    RateLog,
    check_order,
    loaded,
    rate_sums,
    read_run,
    read_state,
)
from glasshouse.attribution.objectives import ClassLoss, TokenLoss, measure
from glasshouse.attribution.tracin import TracIn
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, StaleError


def moved(model: nn.Module, seed: int, size: float = 0.05) -> nn.Module:
    """The same architecture a step away: a checkpoint of a run that never was."""
    import copy

    g = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(size * torch.randn(p.shape, generator=g))
    return other


def path_of(model: nn.Module) -> list[Checkpoint]:
    return [
        Checkpoint(moved(model, 1), 10, 0.5),
        Checkpoint(moved(model, 2), 30, 0.1),
        Checkpoint(None, 60, 0.01),
    ]


def rows_of(f, model: nn.Module, names: tuple[str, ...], units) -> torch.Tensor:
    """Gradients [N, P] of every row over the tracked modules' weights and biases, by plain autograd."""
    found = []
    for i in range(len(units)):
        model.zero_grad()
        f(model, units.batch([i])).sum().backward()
        parts = [p.grad for n in names for p in model.get_submodule(n).parameters(recurse=False)]
        found.append(torch.cat([p.flatten().double() for p in parts]))
    return torch.stack(found)


def images() -> TensorUnits:
    g = torch.Generator().manual_seed(2)
    return TensorUnits(torch.randn(7, 1, 4, 4, generator=g), torch.randint(0, 3, (7,), generator=g))


@pytest.mark.parametrize("name", ["gpt2", "llama", "conv"])
def test_scores_are_the_weighted_sum_of_gradient_products(name: str) -> None:
    models = {"gpt2": tiny_gpt2, "llama": tiny_llama, "conv": tiny_conv}
    model, units = models[name](), images() if name == "conv" else TokenUnits(token_rows())
    loss = ClassLoss() if name == "conv" else TokenLoss()
    asked, f = units.subset([0, 3]), measure("margin")
    method = TracIn(path_of(model), batch_rows=4).fit(model, units)
    table = method.score(asked, "margin", per_module=True)
    expected, itself = torch.zeros(2, len(units)).double(), torch.zeros(len(units)).double()
    for checkpoint, weight in zip(method.checkpoints, (5.0, 2.0, 0.3), strict=True):
        with loaded(model, checkpoint) as working:
            G, V = rows_of(loss, working, method.names_, units), rows_of(f, working, method.names_, asked)
        expected -= weight * (V @ G.T) / len(units)
        itself += weight * G.square().sum(1) / len(units)
    np.testing.assert_allclose(method.weights_, (5.0, 2.0, 0.3))
    np.testing.assert_allclose(table.scores, expected, atol=1e-4 * float(expected.abs().max()))
    np.testing.assert_allclose(sum(table.per_module.values()), table.scores, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(method.self_score(), itself, rtol=1e-4)


def test_scores_predict_what_a_double_weight_does_to_gradient_descent() -> None:
    """Full-batch descent with small steps: retraining with row n counted twice moves f by its score.

    Left out are terms of the order of the summed rate (0.016) times the curvature (below 1): 3 % allowed,
    and the null, scores of another query, is off by its whole size.
    """
    g = torch.Generator().manual_seed(0)
    X, y = torch.randn(12, 4, generator=g), torch.randint(0, 3, (12,), generator=g)
    start, rate, steps = nn.Linear(4, 3), 2e-3, 8

    def descend(weight: torch.Tensor) -> list[nn.Module]:
        model = nn.Linear(4, 3).double()
        model.load_state_dict(start.state_dict())
        path = [model]
        for _ in range(steps):
            following = nn.Linear(4, 3).double()
            following.load_state_dict(path[-1].state_dict())
            loss = nn.functional.cross_entropy(following(X.double()), y, reduction="none")
            grads = torch.autograd.grad((weight * loss).sum() / len(X), list(following.parameters()))
            with torch.no_grad():
                for p, d in zip(following.parameters(), grads, strict=True):
                    p -= rate * d
            path.append(following)
        return path

    f = measure("margin")
    asked = TensorUnits(torch.randn(3, 4, generator=g), torch.tensor([0, 1, 2]))
    double = TensorUnits(asked.inputs.double(), asked.targets).batch(range(3))
    whole = descend(torch.ones(12))
    path = [Checkpoint(m, k, rate, lr_sum=rate) for k, m in enumerate(whole[:-1])]
    truth = [
        f(descend(torch.ones(12) + torch.eye(12)[n])[-1], double) - f(whole[-1], double) for n in range(12)
    ]
    expected = torch.stack(truth, 1).detach().numpy()
    found = TracIn(path).fit(whole[-1].float(), (X, y)).score(asked, "margin").scores
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < 0.03 < 10 * 0.03 < np.abs(found[[1, 2, 0]] - expected).max() / np.abs(expected).max()


def test_options_do_what_they_say(mlp, classes) -> None:
    asked, path = (classes[0][:4], classes[1][:4]), path_of(mlp)
    whole = TracIn(path).fit(mlp, classes).score(asked, per_module=True)
    last = TracIn(path, layers="last").fit(mlp, classes)
    assert last.names_ == ("4",)
    np.testing.assert_allclose(last.score(asked).scores, whole.per_module["4"], rtol=1e-5, atol=1e-9)
    rates = TracIn(path, weights="rate").fit(mlp, classes)
    assert rates.weights_ == (0.5, 0.1, 0.01)
    by_hand = TracIn(path, weights=[0.5, 0.1, 0.01]).fit(mlp, classes).score(asked)
    assert np.array_equal(by_hand.scores, rates.score(asked).scores)
    one = TracIn(path, weights=[0, 2.0, 0]).fit(mlp, classes)
    alone = TracIn([Checkpoint(moved(mlp, 2), 1, 2.0)]).fit(mlp, classes)
    np.testing.assert_allclose(one.score(asked).scores, alone.score(asked).scores, rtol=1e-5)
    normed = alone.score(asked, row_norm="grad").scores * np.sqrt(alone.self_score() * 24 / 2)
    np.testing.assert_allclose(normed, alone.score(asked).scores, rtol=1e-4)
    cost = one.cost(4)
    assert cost["scores"] == 3 * TracIn(path[:1]).bind(mlp, classes).cost(4)["scores"]
    assert cost["checkpoint_bytes"] == 3 * 4 * sum(p.numel() for p in mlp.parameters())


def test_token_parts_add_up_and_the_subject_is_left_alone() -> None:
    model, rows = tiny_gpt2(), token_rows()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    method = TracIn(path_of(model)).fit(model, rows)
    table = method.score(rows[:2])
    parts = method.explain(1, rows[4].row_id)
    assert parts.scores.shape == (1, len(rows[4]))
    np.testing.assert_allclose(parts.scores.sum(), table.scores[1, 4], rtol=1e-3)
    tokens = method.score(rows[:2], unit="token").scores
    np.testing.assert_allclose(tokens.sum(1), table.scores.sum(1), rtol=1e-3)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_killed_score_goes_on(tmp_path: Path, monkeypatch, mlp, classes) -> None:
    asked = (classes[0][:4], classes[1][:4])
    calm = TracIn(path_of(mlp), shards=2).fit(mlp, classes).score(asked)

    def kill(stage: str, path: Path) -> None:
        if stage == "before" and path.name == "scores-001-00001.safetensors":
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "fault_hook", kill)
    with pytest.raises(KeyboardInterrupt):
        TracIn(path_of(mlp), shards=2).fit(mlp, classes).score(asked, store=tmp_path)
    monkeypatch.setattr(files, "fault_hook", None)
    again = TracIn(path_of(mlp), shards=2).fit(mlp, classes).score(asked, store=tmp_path)
    assert np.array_equal(again.scores, calm.scores)
    with pytest.raises(StaleError):
        TracIn(path_of(mlp)[:2], shards=2).fit(mlp, classes).score(asked, store=tmp_path)


def test_saved_with_its_checkpoints(tmp_path: Path, mlp, classes) -> None:
    import safetensors.torch

    safetensors.torch.save_file(moved(mlp, 3).state_dict(), tmp_path / "three.safetensors")
    path = [*path_of(mlp)[:2], Checkpoint(tmp_path / "three.safetensors", 40, 0.2)]
    method = TracIn(path, weights="rate").fit(mlp, classes)
    method.save(tmp_path / "saved")
    again = TracIn.load(tmp_path / "saved", mlp, classes)
    asked = (classes[0][:4], classes[1][:4])
    assert np.array_equal(again.score(asked).scores, method.score(asked).scores)
    safetensors.torch.save_file(moved(mlp, 4).state_dict(), tmp_path / "three.safetensors")
    with pytest.raises(StaleError, match="train@40"):
        TracIn.load(tmp_path / "saved", mlp, classes)
    with pytest.raises(InputError, match="no saved method"):
        TracIn.load(tmp_path, mlp, classes)


def test_refusals(tmp_path: Path, mlp, classes) -> None:
    a, b = Checkpoint(mlp, 10, 0.1), Checkpoint(mlp, 20, 0.1)
    for path, message in (([], "no checkpoints"), ([b, a], "step 10 follows"), ([a, a], "step 10 follows")):
        with pytest.raises(InputError, match=message):
            TracIn(path).fit(mlp, classes)
    with pytest.raises(InputError, match="alternate"):
        check_order([Checkpoint(mlp, k, 0.1, stage) for k, stage in enumerate("aba")])
    with pytest.raises(InputError, match="do not fit the model"):
        TracIn([Checkpoint(nn.Linear(6, 3), 1, 0.1)]).fit(mlp, classes)
    wide = {k: torch.zeros(7, *v.shape[1:]) if k == "0.weight" else v for k, v in mlp.state_dict().items()}
    with pytest.raises(InputError, match="another shape"):
        TracIn([Checkpoint(wide, 1, 0.1)]).fit(mlp, classes)
    for weights in ([1.0], [0.0, 0.0], [1.0, float("nan")], "sum"):
        with pytest.raises(InputError):
            TracIn([a, b], weights=weights).fit(mlp, classes)
    with pytest.raises(InputError, match="does not exist"):
        Checkpoint(tmp_path / "none", 1, 0.1)
    with pytest.raises(InputError, match="negative"):
        Checkpoint(mlp, 1, -0.1)
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(InputError, match="cannot be read"):
        read_state(tmp_path / "text.pt")
    with pytest.raises(InputError, match="no weights"):
        read_state(tmp_path)
    with pytest.raises(InputError, match="layers"):
        TracIn([a], layers="first").fit(mlp, classes)
    with pytest.raises(InputError, match="not fitted"):
        TracIn([a]).score(classes)


def trained_folder(root: Path, model: nn.Module, rates: dict[int, float]) -> Path:
    """A folder as the Trainer leaves it."""
    for step in (20, 5):  # 5 sorts after 20 as text
        moved(model, step).save_pretrained(root / f"checkpoint-{step}")
        log = [{"step": s, "learning_rate": r, "loss": 1.0} for s, r in rates.items() if s <= step]
        state = {"log_history": [*log, {"step": step, "eval_loss": 2.0}]}
        (root / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    return root


def test_a_trainer_run_is_read(tmp_path: Path) -> None:
    model, rows = tiny_gpt2(), token_rows()
    rates = {s: 0.1 * (1 - s / 20) for s in range(1, 21)}
    run = read_run(trained_folder(tmp_path, model, rates))
    assert [c.step for c in run] == [5, 20] and len(run) == 2
    assert [c.lr for c in run] == pytest.approx([0.075, 0.0])
    assert rate_sums(run.checkpoints) == pytest.approx(
        [sum(rates[s] for s in range(1, 6)), sum(rates[s] for s in range(6, 21))]
    )
    assert not run.rates.gaps(20)
    memory = [Checkpoint(moved(model, s), s, 0.0, lr_sum=c.lr_sum) for s, c in zip((5, 20), run, strict=True)]
    scores = TracIn(run.checkpoints).fit(model, rows).score(rows[:2]).scores
    np.testing.assert_allclose(scores, TracIn(memory).fit(model, rows).score(rows[:2]).scores, rtol=1e-5)
    with pytest.raises(InputError, match="no checkpoint-"):
        read_run(tmp_path / "checkpoint-5")
    with pytest.raises(InputError, match="logs no learning rate"):
        read_run(trained_folder(tmp_path / "silent", model, {}))


def test_rates_between_log_entries_are_interpolated_and_gaps_are_said() -> None:
    log = RateLog({10: 1.0, 20: 0.0, 100: 0.0})
    assert log.at(15) == 0.5 and log.at(5) == 1.0
    assert log.total(10, 20) == pytest.approx(sum(1 - k / 10 for k in range(1, 11)))
    assert log.gaps(100) == [(1, 9), (11, 19), (21, 99)]
    assert RateLog({s: 0.1 for s in range(5, 101, 5)}).gaps(100) == []


def test_a_state_dict_in_a_pt_file_with_company(tmp_path: Path, mlp) -> None:
    torch.save({"epoch": 3, "model": mlp.state_dict()}, tmp_path / "c.pt")
    assert Checkpoint(tmp_path / "c.pt", 3, 0.1) == Checkpoint(mlp, 3, 0.1)
    assert Checkpoint(tmp_path / "c.pt", 3, 0.1) != Checkpoint(moved(mlp, 1), 3, 0.1)
    assert len({Checkpoint(tmp_path / "c.pt", 3, 0.1), Checkpoint(mlp, 3, 0.1)}) == 1
