"""Best-of-N against brute force, reward models with a known bias, features of pairs."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glasshouse.annotators import Axis, OracleAnnotator
from glasshouse.behaviour.sycophancy.best_of_n import bon_curve
from glasshouse.behaviour.sycophancy.features import PROGRAMMATIC, FeatureAnnotator, PreferencePair
from glasshouse.behaviour.sycophancy.reward import (
    TRUTHFUL,
    Misconception,
    human_misconceptions,
    open_reward_model,
    oracle,
    prompted,
    rm_misconceptions,
)
from glasshouse.runtime.errors import InputError, RecordError


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_the_curve_is_the_mean_over_all_subsets(n: int) -> None:
    stream = np.random.default_rng(n)
    scores, metric = stream.normal(size=(4, 6)), stream.normal(size=(4, 6))
    brute = [
        np.mean([m[max(subset, key=lambda i: s[i])] for subset in combinations(range(6), n)])
        for s, m in zip(scores, metric, strict=True)
    ]
    assert np.allclose(bon_curve(scores, metric, [n]).per_item[:, 0], brute, atol=1e-12)


def test_ties_are_broken_by_chance() -> None:
    scores, metric = [[1.0, 1.0, 0.0, 1.0]], [[3.0, 0.0, 9.0, 0.0]]
    curve = bon_curve(scores, metric, [1, 2, 4])
    # N=2: a tied pair gives the mean of its two, and the loser is only met with a winner: 1 on average.
    assert np.allclose(curve.per_item[0], [3.0, 1.0, 1.0])
    assert np.allclose(bon_curve([[0.0] * 4], metric, [3]).per_item, 3.0)


def test_the_item_is_the_unit_of_the_interval() -> None:
    metric = np.repeat(np.array([[0.0], [1.0], [1.0]]), 50, axis=1)
    curve = bon_curve(np.random.default_rng(0).normal(size=(3, 50)), metric, [1, 8])
    for estimate in curve.estimates.values():
        assert estimate.n == 3 and estimate.value == pytest.approx(2 / 3) and estimate.low < 0
    assert curve.growth().value == pytest.approx(0)
    assert list(curve.to_frame().N) == [1, 8] and len(curve.plot().data) == 1


@pytest.mark.parametrize(
    ("scores", "metric", "ns"),
    [([[1.0, np.nan]], [[1.0, 1.0]], [1]), ([[1.0]], [[1.0, 2.0]], [1]), ([[1.0, 2.0]], [[1.0, 2.0]], [3]),
     ([[1.0]], [[1.0]], [0]), ([[1.0]], [[1.0]], [])],
)  # fmt: skip
def test_curves_that_cannot_be_are_refused(scores: Any, metric: Any, ns: list[int]) -> None:
    with pytest.raises(InputError):
        bon_curve(scores, metric, ns)


# -- misconceptions ------------------------------------------------------------------------------------------


def misconceptions(n: int = 10) -> list[Misconception]:
    return [
        Misconception(
            f"m{i}", f"I think {i} is odd.", "That is false.", "That is false: it can be halved.",
            "Yes, you are right.", "hard" if i % 2 else "easy",
        )
        for i in range(n)
    ]  # fmt: skip


def test_reward_models_of_known_bias() -> None:
    pleased = rm_misconceptions(lambda prompt, response: float("right" in response), misconceptions())
    assert (
        (pleased.rate == 1).all() and set(pleased.difficulty) == {"easy", "hard"} and (pleased.n == 5).all()
    )
    truthful = rm_misconceptions(oracle(lambda prompt, response: "false" in response), misconceptions())
    assert (truthful.rate == 0).all() and (truthful.high > 0).all()
    long = rm_misconceptions(lambda prompt, response: float(len(response)), misconceptions()).set_index(
        "against"
    )
    assert (long.rate["baseline"] == 1).all() and (long.rate["helpful"] == 0).all()
    blind = rm_misconceptions(lambda prompt, response: 0.0, misconceptions())
    assert (blind.rate == 0.5).all() and (blind.ties == blind.n).all()


def test_the_prompted_model_sees_the_instruction() -> None:
    def rm(prompt: str, response: str) -> float:
        return float("false" in response) if prompt.startswith(TRUTHFUL) else float("right" in response)

    assert (rm_misconceptions(rm, misconceptions()).rate == 1).all()
    assert (rm_misconceptions(prompted(rm), misconceptions()).rate == 0).all()


def test_misconceptions_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="no misconceptions"):
        rm_misconceptions(lambda p, r: 0.0, [])
    with pytest.raises(InputError, match="the reward is NaN"):
        rm_misconceptions(lambda p, r: float("nan"), misconceptions(1))
    with pytest.raises(InputError, match="agreeing reply equals"):
        Misconception("m", "p", "same", "other", "same", "easy")
    with pytest.raises(InputError, match="is empty"):
        Misconception("m", " ", "a", "b", "c", "easy")


def test_raters_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "raters.csv"
    path.write_text(
        "difficulty,against,prefers_sycophantic\nhard,helpful,1\nhard,helpful,0\neasy,baseline,0.5\n"
    )
    table = human_misconceptions(path).set_index("difficulty")
    assert table.rate["hard"] == 0.5 and table.ties["easy"] == 1
    path.write_text("difficulty,against,prefers_sycophantic\nhard,helpful,often\n")
    with pytest.raises(RecordError, match=r"raters.csv:2"):
        human_misconceptions(path)


def test_a_checkpoint_scores_as_its_model_does(tmp_path: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "yes": 1, "no": 2, "why": 3}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>").save_pretrained(tmp_path)
    torch.manual_seed(0)
    for labels in (2, 1):
        config = GPT2Config(
            vocab_size=4, n_positions=8, n_embd=8, n_layer=1, n_head=1, num_labels=labels, pad_token_id=0
        )
        model = GPT2ForSequenceClassification(config).eval()
        model.save_pretrained(tmp_path)
        if labels == 2:
            with pytest.raises(InputError, match="it has 2 outputs"):
                open_reward_model(tmp_path)
    rm = open_reward_model(tmp_path)
    with torch.inference_mode():
        wanted = model(input_ids=torch.tensor([[3, 1, 2]])).logits.item()
    assert rm("why", "yes no") == pytest.approx(wanted, abs=1e-6) and rm("why", "no") != rm("why", "yes")


# -- features ------------------------------------------------------------------------------------------------


def test_each_programmatic_feature_sees_its_own() -> None:
    plain = "The sum is ten."
    shown = {
        "longer": "The sum is ten and nothing else at all.",
        "hedges": "Perhaps the sum is ten.",
        "agrees with the user": "You're right, the sum is ten.",
        "apologises": "Sorry, the sum is ten.",
        "praises": "Great, the sum is ten.",
        "asks back": "The sum is ten?",
        "uses lists": "- The sum is ten.",
        "repeats the user's view": "The sum is eleven.",
    }
    assert set(shown) == set(PROGRAMMATIC)
    annotator = FeatureAnnotator()
    pairs = [PreferencePair(text, plain, view="eleven") for text in shown.values()]
    found = annotator.annotate(pairs)
    back = annotator.annotate([PreferencePair(p.b, p.a, view=p.view) for p in pairs])
    assert (np.diag(found) == 1).all() and np.array_equal(found, -back)
    others = found[:, [i for i, name in enumerate(annotator.names) if name != "longer"]]
    assert (others != 0).sum() == len(shown) - 1  # nothing else fires


def test_a_judge_is_asked_where_a_feature_is_an_axis() -> None:
    axis = Axis("Warmth", "warm", "cold")
    unread = {f"{i} x" for i in range(2)}

    def compare(name: str, pair: Any, record: Any) -> float | None:
        return None if pair.x in unread or pair.y in unread else float(len(pair.x) - len(pair.y))

    pairs = [PreferencePair(f"{i} x", f"{i} longer") for i in range(40)]
    annotator = FeatureAnnotator(
        {"warm": axis, "longer": PROGRAMMATIC["longer"]}, judge=OracleAnnotator(compare=compare)
    )
    found = annotator.annotate(pairs)
    assert (found[2:, 0] == -1).all() and (found[2:, 1] == 0).all()
    with pytest.raises(InputError, match="needs a judge"):
        FeatureAnnotator({"warm": axis}).annotate(pairs)


def test_too_many_unread_pairs_are_an_error() -> None:
    def measure(text: str, pair: PreferencePair) -> float:
        return float("nan") if text.endswith("?") else float(len(text))

    def annotate(bad: int) -> tuple[np.ndarray, float]:
        pairs = [PreferencePair("a?" if i < bad else "a", "bb") for i in range(20)]
        annotator = FeatureAnnotator({"m": measure, "longer": PROGRAMMATIC["longer"]})
        return annotator.annotate(pairs), annotator.share_unparsed_

    found, share = annotate(2)
    assert np.isnan(found[:2]).all() and not np.isnan(found[2:]).any() and share == 0.1
    with pytest.raises(InputError, match="3 of 20 pairs"):
        annotate(3)
    with pytest.raises(InputError, match="no pairs"):
        FeatureAnnotator().annotate([])
    with pytest.raises(InputError, match="the same text"):
        PreferencePair("a", "a")
