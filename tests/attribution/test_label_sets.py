"""Closed sets of answers: which rows have one, what a model gives each, and when too many are disputed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given as given_
from hypothesis import settings
from hypothesis import strategies as st
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).parent))
from labelled_rows import LABELS, labelled, save_sorter

from glasshouse.attribution.disputed import FEWEST_SURE, TOLERATED, disputes, weak_rate
from glasshouse.attribution.label_sets import candidates, find_labels, label_logprobs
from glasshouse.corpora.rows import IGNORE, Record, Turn
from glasshouse.runtime.errors import InputError
from glasshouse.subjects import as_subject


def rows(*said: str | None) -> list[Record]:
    """One row per reply; None is a plain text."""
    return [
        Record(str(i), text="a text") if reply is None
        else Record(str(i), (Turn("user", f"question {i}"), Turn("assistant", reply)))
        for i, reply in enumerate(said)
    ]  # fmt: skip


def test_labels_are_found_most_frequent_first_and_spelled_as_in_most_rows() -> None:
    found = find_labels(rows(*[" yes"] * 8, "yes", *[" no"] * 6))
    assert found.labels == (" yes", " no") and found.counts() == {" yes": 9, " no": 6}
    assert found.given.tolist() == [0] * 9 + [1] * 6 and found.left_out == ()


def test_rows_with_other_replies_are_left_out_up_to_a_tenth() -> None:
    found = find_labels(rows(*["a"] * 10, *["b"] * 9, "something else", None))
    assert found.left_out == ("19", "20") and len(found) == 19
    with pytest.raises(InputError, match="no closed set of answers: 5 different replies in 22 rows"):
        find_labels(rows(*["a"] * 10, *["b"] * 9, "c", "d", "e"))


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (["the same"] * 20, "every row has the same reply"),
        ([None] * 20, "no row is a prompt with a reply"),
        ([f"reply {i}" for i in range(40)], "40 different replies in 40 rows"),
        ([f"reply {i % 60}" for i in range(360)], "60 different replies in 360 rows"),
    ],
)
def test_free_replies_are_no_labels_and_the_error_says_what_to_do(said: list[str | None], why: str) -> None:
    with pytest.raises(InputError, match=f"{why}.*--method loss"):
        find_labels(rows(*said))


def test_labels_given_by_hand() -> None:
    data = rows(*["a"] * 3, *["b"] * 2, *[f"c{i}" for i in range(9)])
    found = find_labels(data, ["b", "a"])
    assert found.labels == ("b", "a") and len(found) == 5 and len(found.left_out) == 9
    for labels, why in (
        (["a"], "there is 1 label"), (["a", " a"], "named twice"), (["a", ""], "empty"),
        (["a", "zebra"], "no row has the answer 'zebra'.*most frequent replies: 'a'"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=why):
            find_labels(data, labels)


@pytest.fixture(scope="module", params=["base", "chat"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    data, _ = labelled(8)
    chat = request.param == "chat"
    folder = save_sorter(tmp_path_factory.mktemp(request.param) / "m", data, epochs=0, chat=chat)
    return as_subject(folder, self_test=False, device="cpu")


def test_only_the_label_and_its_end_carry_loss(subject: Any) -> None:
    data, _ = labelled(2)
    for row in candidates(subject, list(data), LABELS):
        for one, label in zip(row, LABELS, strict=True):
            said = [t for t in one.labels if t != IGNORE]
            assert subject.tokenizer.decode(said).split()[0] == label and len(said) == 2


def test_logprobs_are_those_of_one_row_at_a_time(subject: Any) -> None:
    """Against the model itself; batches of unequal length and other rows change nothing."""
    import torch

    data, _ = labelled(7)
    short = Record("short", (Turn("user", "kind :"), Turn("assistant", "tool")))
    asked = [*data, short]
    found = label_logprobs(subject, asked, LABELS)
    for i, row in enumerate(candidates(subject, asked, LABELS)):
        for k, one in enumerate(row):
            with torch.no_grad():
                logp = subject.model(torch.tensor([one.ids])).logits[0].float().log_softmax(-1)
            told = sum(float(logp[t - 1, x]) for t, x in enumerate(one.labels) if x != IGNORE)
            assert found[i, k] == pytest.approx(told, abs=1e-4)


def test_a_row_beyond_the_context_is_not_scored(subject: Any) -> None:
    data, _ = labelled(2)
    long = Record("long", (Turn("user", "word1 " * 40), Turn("assistant", "tool")))
    found = label_logprobs(subject, [data[0], long], LABELS)
    assert np.isfinite(found[0]).all() and np.isnan(found[1]).all()


# -- too many disputes ---------------------------------------------------------------------------------------


def weak(n: int, d: float, seed: int, *, wrong: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two classes, evidence with normal noise: logits of the honest model, given labels, which are wrong."""
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, 2, n)
    llr = d * (draw.normal(size=n) + np.where(truth == 1, d / 2, -d / 2))
    bad = draw.random(n) < wrong
    logits = np.stack([-llr / 2, llr / 2], 1)
    return logits - np.logaddexp(logits[:, 0], logits[:, 1])[:, None], np.where(bad, 1 - truth, truth), bad


@pytest.mark.parametrize("d", [1.0, 1.7, 2.5, 4.0])
def test_a_weak_but_honest_model_disputes_no_more_than_it_may(d: float) -> None:
    """The null: at level .05 at most 10 of 60 data sets; Binomial(60, .05) has more with p < .001."""
    rejected = sum(disputes(*weak(600, d, seed)[:2]).p_value < 0.05 for seed in range(60))
    assert rejected <= 10, rejected


def test_wrong_labels_are_found_and_named() -> None:
    for seed in range(5):
        logprobs, given, bad = weak(1000, 4.0, seed, wrong=0.05)
        found = disputes(logprobs, given)
        assert found.p_value < 0.01 and found.rate.low > TOLERATED
        assert bad[found.order].mean() >= 0.8 and bad[found.order].sum() >= 0.75 * bad.sum()
        assert bad[found.order[:20]].all(), "worst first"


def test_confidence_does_not_matter_only_order_does() -> None:
    logprobs, given, _ = weak(600, 3.0, 0, wrong=0.05)
    logits = 4.0 * logprobs
    sharp = logits - np.logaddexp(logits[:, 0], logits[:, 1])[:, None]
    one, other = disputes(logprobs, given), disputes(sharp, given)
    assert one.p_value == other.p_value and one.order.tolist() == other.order.tolist()
    assert one.scale == pytest.approx(4 * other.scale, rel=1e-6)


def test_a_label_that_the_model_never_learnt_is_not_judged() -> None:
    logprobs, given, _ = weak(600, 4.0, 0)
    third = np.full((600, 1), -20.0)
    given = np.where(np.arange(600) % 10 == 0, 2, given)
    found = disputes(np.concatenate([logprobs, third], 1), given)
    assert found.known == (0, 1) and found.judged == 540 and found.p_value > 0.05


def test_too_few_rows_and_unknown_labels_are_refused() -> None:
    logprobs, given, _ = weak(2 * FEWEST_SURE - 2, 4.0, 0)
    with pytest.raises(InputError, match=f"and {FEWEST_SURE} are needed"):
        disputes(logprobs, given)
    logprobs, given, _ = weak(600, 4.0, 0)
    with pytest.raises(InputError, match="knows 0 of the 2 labels"):
        disputes(logprobs, 1 - given)
    with pytest.raises(InputError, match="give \\[n, C\\]"):
        disputes(logprobs, given[:-1])


@settings(max_examples=30, deadline=None)
@given_(mu=st.floats(0.1, 3.0), share=st.floats(0.05, 1.0))
def test_weak_rate_is_that_of_normal_evidence(mu: float, share: float) -> None:
    """By integration: of the evidence's `share` largest in size, the part on the wrong side."""
    grid = np.linspace(-12, 12, 48_001)
    mass = norm.pdf(grid, mu) * (grid[1] - grid[0])
    order = np.argsort(-np.abs(grid), kind="stable")
    inside = order[: int(np.searchsorted(np.cumsum(mass[order]), share)) + 1]
    expected = mass[inside][grid[inside] < 0].sum() / mass[inside].sum()
    # The grid's step of 5e-4 moves the cut-off by as much.
    assert weak_rate(float(norm.cdf(-mu)), share) == pytest.approx(expected, abs=2e-3)
