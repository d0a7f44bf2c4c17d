"""IF-COMP on language models: whole answers as labels, next tokens, and what batches must not change."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from labelled_rows import LABELS, labelled, save_sorter

from glasshouse.attribution.ifcomp import Choices, Complexity, IFComp
from glasshouse.corpora.rows import IGNORE, TokenRow
from glasshouse.runtime.errors import InputError
from glasshouse.subjects import as_subject


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Any:
    rows, _ = labelled(60, seed=3)
    folder = save_sorter(tmp_path_factory.mktemp("choices") / "m", rows, epochs=4)
    return as_subject(folder, self_test=False, device="cpu")


@pytest.fixture(scope="module")
def choices(subject: Any) -> Choices:
    rows, _ = labelled(40, seed=3)
    return Choices.from_records(subject, list(rows), labels=["animal", "tool", "plant"])


@pytest.fixture(scope="module")
def uneven(subject: Any) -> Choices:
    """Answers of one, two and three tokens."""
    rows = []
    for i in range(12):
        prompt = (8, 20 + i, 30)
        answers = [(11,), (12, 13), (13, 11, 12)]
        rows.append([TokenRow(prompt + a, (IGNORE,) * 3 + a, f"p{i}") for a in answers])
    return Choices(rows, [i % 3 for i in range(12)])


def _logprob(model: Any, row: TokenRow) -> torch.Tensor:
    logp = model(torch.tensor([row.ids])).logits[0].float().log_softmax(-1)
    return sum(logp[t - 1, x] for t, x in enumerate(row.labels) if x != IGNORE)  # type: ignore[return-value]


@pytest.mark.parametrize("which", ["choices", "uneven"])
def test_gram_of_answers_is_that_of_explicit_gradients(
    subject: Any, which: str, request: pytest.FixtureRequest
) -> None:
    """Every answer's log-probability differentiated on its own, parameter by parameter."""
    points = request.getfixturevalue(which)
    method = IFComp(10.0).fit(subject, points)
    found = method.complexity(points)
    model = subject.model
    modules = {name: model.get_submodule(name) for name in method.names_}
    for n in (0, 5):
        J: list[dict[str, torch.Tensor]] = []
        for k, row in enumerate(points.rows[n]):
            value = _logprob(model, row)
            assert found.logits[n, k] == pytest.approx(float(value.detach()), abs=1e-4)
            parameters = [p for m in modules.values() for p in (m.weight, m.bias)]
            grads = iter(torch.autograd.grad(value, parameters))
            # GPT-2's layers store [in, out].
            J.append({name: torch.cat([next(grads).T, next(grads)[:, None]], 1) for name in modules})
        K = torch.zeros(3, 3)
        for name in modules:
            stack = torch.stack([one[name] for one in J])
            solved = method.factors_[name].precondition(stack, "auto")
            K += torch.einsum("coi,doi->cd", stack, solved)
        np.testing.assert_allclose(found.gram[n], K.numpy(), atol=1e-4 * float(K.abs().max()))


def test_lambda_adds_the_answers_of_a_point_before_squaring(subject: Any, uneven: Choices) -> None:
    """Sum of Lambda = mean over points of |G_n|^2 with labels as drawn, from the loss itself."""
    method = IFComp(10.0).fit(subject, uneven)
    job = method._sampled_jobs()[0]
    total = 0.0
    names = [(m, subject.model.get_submodule(m)) for m in method.names_]
    for n in range(len(uneven)):
        batch = uneven.batch([n])
        outputs = method.head_.outputs(subject.model, batch)
        loss = method.head_.loss(outputs, method.head_.draw(outputs, batch, job.seed)).sum()
        parameters = [p for _, m in names for p in (m.weight, m.bias)]
        total += sum(float(g.square().sum()) for g in torch.autograd.grad(loss, parameters))
    found = sum(float(f.Lambda.sum()) for f in method.factors_.values())
    assert found == pytest.approx(total / len(uneven), rel=1e-3)


def test_batches_and_order_change_nothing(subject: Any, uneven: Choices) -> None:
    one = IFComp(10.0).fit(subject, uneven)
    small = IFComp(10.0, batch_rows=1, shards=3).fit(subject, uneven)
    np.testing.assert_allclose(
        small.complexity(uneven).parametric, one.complexity(uneven).parametric, rtol=2e-3
    )
    order = list(range(len(uneven)))[::-1]
    turned = IFComp(10.0).fit(subject, uneven.subset(order)).complexity(uneven.subset(order))
    np.testing.assert_allclose(turned.parametric[::-1], one.complexity(uneven).parametric, rtol=2e-3)


def test_answers_go_to_disk_and_back(subject: Any, choices: Choices, tmp_path: Path) -> None:
    method = IFComp(3.0, samples=2).fit(subject, choices)
    again = IFComp.load(method.save(tmp_path / "f"), subject, choices)
    one, other = method.complexity(choices), again.complexity(choices)
    np.testing.assert_array_equal(one.gram, other.gram)
    assert Complexity.load(one.save(tmp_path / "c")).ids == choices.ids


def test_a_stored_fit_and_its_points_are_not_computed_again(
    subject: Any, choices: Choices, tmp_path: Path
) -> None:
    """One shard is missing, as after a kill: it alone is made again."""
    method = IFComp(3.0, shards=4).fit(subject, choices, store=tmp_path)
    first = method.complexity(choices, store=tmp_path)
    (tmp_path / "gram" / "gram-00002.safetensors").unlink()
    again = IFComp(3.0, shards=4).fit(subject, choices, store=tmp_path).complexity(choices, store=tmp_path)
    np.testing.assert_array_equal(first.gram, again.gram)


def test_wrong_answers_cost_more(tmp_path: Path) -> None:
    rows, bad = labelled(240, wrong=0.1, seed=1)
    subject = as_subject(save_sorter(tmp_path / "m", rows, epochs=10), self_test=False, device="cpu")
    points = Choices.from_records(subject, list(rows))
    report = IFComp(3.0).fit(subject, points).mislabel_report()
    assert report.aurocs(bad)["codelength"].low > 0.8
    worst = {row for row, _ in report.top(10)}
    assert worst <= {record.id for record, is_bad in zip(rows, bad, strict=True) if is_bad}
    assert list(report.to_frame()["id"][:10]) == [row for row, _ in report.top(10)]
    report.save(tmp_path / "report.parquet")


def test_next_tokens_of_one_position(subject: Any) -> None:
    """The k likeliest tokens in place of given answers; the labelled token is the given one."""
    rows = [TokenRow((8, 20 + i, 7, 11), (IGNORE, IGNORE, IGNORE, 11), f"r{i}") for i in range(10)]
    with pytest.raises(InputError, match="more than one labelled token"):
        IFComp(top_k=3).fit(subject, [*rows, TokenRow((8, 9, 7), (8, 9, 7), "many")])
    found = IFComp(10.0, top_k=3).fit(subject, rows).complexity(rows)
    with torch.no_grad():
        z = subject.model(torch.tensor([row.ids for row in rows])).logits[:, 2].float()
    np.testing.assert_array_equal(found.labels, z.topk(3).indices.numpy())
    np.testing.assert_allclose(found.loss(), (z.logsumexp(1) - z[:, 11]).numpy(), rtol=1e-4)
    assert (found.norms > 0).all()


def test_labels_of_records_are_found_or_given(subject: Any, choices: Choices) -> None:
    rows, _ = labelled(40, seed=3)
    found = Choices.from_records(subject, list(rows))
    assert set(found.labels) == set(LABELS) and choices.labels == LABELS
    assert found.sha256 != choices.sha256, "another order of the answers is other data"
