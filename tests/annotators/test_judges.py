"""Judges that need no model API: what is planted in them is found again, and bad input is refused by name."""

from __future__ import annotations

import asyncio
import csv
import math

import numpy as np
import pytest

from glasshouse.annotators import (
    STYLE_AXES,
    Annotator,
    AnnotatorUnavailable,
    Axis,
    ComparisonTensor,
    Direction,
    EmbeddingAnnotator,
    Encoder,
    HumanAnnotator,
    Labelled,
    LabelledPairs,
    LabelVector,
    LexicalAnnotator,
    Mark,
    OracleAnnotator,
    Outcome,
    Pair,
    PanelAnnotator,
    PositionBiasWarning,
    Predicate,
    ProbeAnnotator,
    ProposeRequest,
    RateRequest,
    RatingMatrix,
    RuleAnnotator,
    StyleAnnotator,
    TermSet,
    Usage,
    Verdict,
    calibrate,
    cohen_kappa,
)
from glasshouse.annotators._base import AnnotatorBase, Cells
from glasshouse.runtime.errors import AccessError, InputError

AXIS = Axis("Size", "big", "small")


class PlacePreferring(AnnotatorBase):
    """Knows which text is bigger, but answers "first" with probability `share` in every call."""

    kind = "oracle"
    capabilities = frozenset({"compare"})

    def __init__(self, share: float, seed: int) -> None:
        super().__init__()
        self.share, self.rng = share, np.random.default_rng([seed, 7])

    @property
    def id(self) -> str:
        return f"place-preferring:{self.share}"

    async def _compare(self, axes, pairs, order, records):
        more = np.array([float(p.x) - float(p.y) for p in pairs])
        true = np.stack([np.sign(more), -np.sign(more)], 1)[:, None, :]
        hasty = self.rng.random(true.shape) < self.share
        return Cells(np.where(hasty, Mark.FIRST, true).astype(np.int8))


def number_pairs(seed: int, n: int = 300, advantage: float = 0.0) -> list[Pair]:
    rng = np.random.default_rng(seed)
    return [Pair(f"{a + advantage:.6f}", f"{b:.6f}") for a, b in rng.random((n, 2))]


@pytest.mark.filterwarnings("ignore::glasshouse.annotators._errors.PositionBiasWarning")
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.7])
def test_t3a_a_planted_position_bias_is_recovered(share):
    """P(the same place wins in both orders) = share, whatever the texts: b^2 + 2 b (1 - b) / 2."""
    covered = 0
    for seed in range(60):
        (found,) = PlacePreferring(share, seed).compare([AXIS], number_pairs(seed)).position_bias()
        covered += found.low <= share <= found.high
    assert covered >= 52  # 95 % of 60 is 57; fewer than 52 has probability below 0.5 %


@pytest.mark.filterwarnings("ignore::glasshouse.annotators._errors.PositionBiasWarning")
def test_t3b_the_folded_score_is_unbiased_in_sign():
    """Balanced pairs fold to mean 0 for any bias, a true advantage keeps its sign; one order fails."""
    folds, singles, better = [], [], []
    for seed in range(40):
        judge = PlacePreferring(0.5, seed)
        found = judge.compare([AXIS], number_pairs(seed))
        folds.append(found.fold().mean())
        singles.append(found.one_order().mean())
        better.append(judge.compare([AXIS], number_pairs(seed, advantage=0.3)).fold().mean())
    error = np.std(folds) / math.sqrt(len(folds))
    assert abs(np.mean(folds)) < 4 * error
    assert np.mean(singles) > 0.4  # the positive control: without folding, "first" wins half the time more
    assert min(better) > 0


def test_a_position_bias_warns_above_a_fifth():
    with pytest.warns(PositionBiasWarning, match="prefers a place over a text on 'Size'"):
        PlacePreferring(0.6, 0).compare([AXIS], number_pairs(0))
    PlacePreferring(0.05, 0).compare([AXIS], number_pairs(0))


def test_folding_keeps_the_kinds_of_ties_apart():
    marks = [(1, -1), (-1, 1), (1, 1), (0, 1), (0, 0), (2, 1), (3, 0), (4, 1), (5, 5)]
    found = ComparisonTensor(mark=np.array(marks, np.int8)[:, None, :], axes=("a",))
    np.testing.assert_array_equal(found.fold().ravel(), np.float32([1, -1, 0, 0, 0, 0, 0, np.nan, np.nan]))
    told = [Verdict(v).name for v in found.verdicts().ravel()]
    assert told == ["X", "Y", "INCONSISTENT", "HALF", "EQUAL", "HALF", "UNSURE", "UNPARSED", "UNPARSED"]
    assert found.position_bias()[0].n == 7
    frame = found.to_frame()
    assert frame.verdict.tolist() == [name.lower() for name in told] and len(found.plot().data) == len(
        Verdict
    )


# -- results -------------------------------------------------------------------------------------------------


def test_binarize_says_what_becomes_of_nan():
    found = RatingMatrix(value=np.float32([[0.9, 0.2], [np.nan, 0.7]]), predicates=("a", "b"))
    with pytest.raises(InputError, match="1 of 4 ratings are NaN, the first at text 1, predicate 0"):
        found.binarize()
    assert found.binarize(nan="drop").tolist() == [[1, 0]] and found.readable.tolist() == [True, False]
    assert found.binarize(nan=0).tolist() == [[1, 0], [0, 1]]
    assert found.binarize(0.1, nan=0).tolist() == [[1, 1], [0, 1]]
    assert found.coverage.tolist() == [0.5, 1.0] and found.outcome[1, 0] == Outcome.UNPARSED
    with pytest.raises(InputError, match="nan is None"):
        found.binarize(nan=None)
    with pytest.raises(InputError, match="ratings from"):
        RatingMatrix(value=[[2.0]])


@pytest.mark.parametrize(
    "result",
    [
        RatingMatrix(
            value=[[0.5, np.nan]], predicates=("a", "b"), usage=Usage(calls=3, usd=0.5), annotator_id="x"
        ),
        LabelVector(label=np.array([0, -1, -2]), predicates=("a",), confidence=np.float32([1, 0, 0])),
        ComparisonTensor(mark=np.int8([[[1, -1]]]), axes=("a",), score=np.float32([[0.5]]), kind="composite"),
    ],
)
def test_results_come_back_from_disk(result, tmp_path):
    result.save(tmp_path)
    back = type(result).load(tmp_path)
    for name, value in vars(result).items():
        np.testing.assert_array_equal(getattr(back, name), value) if isinstance(value, np.ndarray) else None
        assert isinstance(value, np.ndarray) or getattr(back, name) == value
    assert len(result.to_frame()) and result.plot().data
    other = LabelVector if isinstance(result, RatingMatrix) else RatingMatrix
    with pytest.raises(InputError, match=f"it holds a {type(result).__name__}"):
        other.load(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(InputError, match="no result that can be read"):
        type(result).load(tmp_path)


# -- oracle, rule, panel -------------------------------------------------------------------------------------


def test_oracles_read_the_metadata_of_each_sample():
    oracle = OracleAnnotator(rate=lambda predicate, text, record: record.get(predicate))
    records = [{"is odd": True}, {"is odd": False}, {}]
    found = oracle.rate(["is odd"], ["same", "same", "same"], metadata=records)
    np.testing.assert_array_equal(found.value.ravel(), np.float32([1, 0, np.nan]))
    assert isinstance(oracle, Annotator)
    with pytest.raises(InputError, match="2 metadata entries for 1 items"):
        oracle.rate(["is odd"], ["a"], metadata=records[:2])
    with pytest.raises(InputError, match="rated 'a' with 2"):
        OracleAnnotator(rate=lambda p, t, m: 2).rate(["p"], ["a"])


def test_planted_noise_flips_its_share_and_the_same_answers_every_time():
    truth = OracleAnnotator(rate=lambda p, t, m: int(t) % 2)
    noisy = OracleAnnotator(rate=lambda p, t, m: int(t) % 2, flip=0.2, seed=3)
    texts = [str(i) for i in range(2000)]
    a, b = (judge.rate(["odd"], texts).value for judge in (truth, noisy))
    assert abs((a != b).mean() - 0.2) < 4 * math.sqrt(0.16 / 2000)
    np.testing.assert_array_equal(b[::-1], noisy.rate(["odd"], texts[::-1]).value)
    other = OracleAnnotator(rate=lambda p, t, m: int(t) % 2, flip=0.2, seed=4).rate(["odd"], texts).value
    assert abs((b != other).mean() - 2 * 0.2 * 0.8) < 0.05
    assert truth.id != noisy.id
    # Agreement of the truth with itself under noise is the analytic (1 - 2e) of one noisy rater.
    assert cohen_kappa(a.ravel(), b.ravel()).value == pytest.approx(1 - 2 * 0.2, abs=0.05)


def test_oracles_compare_by_their_own_rule_or_by_the_difference_of_ratings():
    length = OracleAnnotator(rate=lambda axis, text, m: len(text) / 10)
    pairs = [Pair("aaa", "a"), Pair("a", "aaa"), Pair("a", "b")]
    assert length.compare([AXIS], pairs).fold().ravel().tolist() == [1, -1, 0]
    unsure = OracleAnnotator(compare=lambda axis, pair, m: None).compare([AXIS], pairs)
    assert (unsure.mark == Mark.UNSURE).all() and unsure.verdicts().ravel().tolist() == [Verdict.UNSURE] * 3
    with pytest.raises(AccessError, match="cannot rate"):
        OracleAnnotator(compare=lambda axis, pair, m: 0).rate(["p"], ["t"])


def test_rules_are_patterns_or_functions():
    rule = RuleAnnotator(
        {"greets": r"\bhello\b", "long": lambda text: len(text) > 9, "odd": lambda t, m: m["odd"]}
    )
    found = rule.rate(
        ["greets", "long", "odd"], ["HELLO you there", "bye"], metadata=[{"odd": 1}, {"odd": None}]
    )
    np.testing.assert_array_equal(found.value, np.float32([[1, 1, 1], [0, 0, np.nan]]))
    with pytest.raises(InputError, match="no rule for 'sings'"):
        rule.rate(["sings"], ["x"])
    with pytest.raises(InputError, match="is no pattern"):
        RuleAnnotator({"bad": "("})


def test_a_panel_is_the_mean_of_its_members():
    judges = [RuleAnnotator({"": w}, name=w) for w in ("a", "b", "c")]
    panel = PanelAnnotator(judges)
    found = panel.rate(["p"], ["ab", "c", ""])
    np.testing.assert_allclose(found.value.ravel(), [2 / 3, 1 / 3, 0], rtol=1e-6)
    np.testing.assert_allclose(found.confidence.ravel(), [2 / 3, 2 / 3, 1], rtol=1e-6)
    silent = RuleAnnotator(lambda t: None)
    assert PanelAnnotator([judges[0], silent]).rate(["p"], ["a"]).value.item() == 1
    assert np.isnan(PanelAnnotator([judges[0], silent, silent]).rate(["p"], ["a"]).value.item())
    pairs = [Pair("a", "x"), Pair("ab", "c")]
    compared = panel.compare([AXIS], pairs)
    np.testing.assert_allclose(compared.fold().ravel(), [1 / 3, 1 / 3], rtol=1e-6)
    each = np.stack([member.fold() for member in panel.compare_each([AXIS], pairs)])
    np.testing.assert_allclose(compared.fold(), each.mean(0), rtol=1e-6)
    assert panel.assign(["p", "q"], ["a"]).label.tolist() == [0]
    assert panel.plan(RateRequest(["p"], ["t"])).calls == 0 and panel.kind == "composite"
    with pytest.raises(InputError, match="a panel of 1"):
        PanelAnnotator(judges[:1])


def test_sync_and_async_give_the_same():
    rule = RuleAnnotator(lambda t: len(t) > 1)
    sync = rule.rate(["p"], ["a", "bb"]).value
    np.testing.assert_array_equal(asyncio.run(rule.arate(["p"], ["a", "bb"])).value, sync)

    async def inside_a_loop():
        return rule.rate(["p"], ["a", "bb"]).value  # nothing waits, so no loop is needed

    np.testing.assert_array_equal(asyncio.run(inside_a_loop()), sync)


# -- lexical and style ---------------------------------------------------------------------------------------


def brute_force(text: str, terms: dict[str, float]) -> float:
    said = [w.strip(".,!?").lower() for w in text.split()]
    pairs = [" ".join(said[i : i + 2]) for i in range(len(said) - 1)]
    return sum(weight * (said + pairs).count(term) for term, weight in terms.items())


def test_lexical_ratings_equal_counting_by_hand():
    rng = np.random.default_rng(0)
    vocabulary = ["red", "blue", "sea", "deep", "fish", "the", "swims"]
    texts = [" ".join(rng.choice(vocabulary, 12)) + "." for _ in range(60)]
    terms = {"red": 1.0, "deep blue": 2.5, "fish": 0.5, "blue": 0.25}
    chosen = TermSet(tuple(terms), tuple(terms.values()), threshold=2.0)
    found = LexicalAnnotator().rate([Predicate("p", chosen), "mentions any of: sea, deep sea"], texts)
    assert found.value[:, 0].tolist() == [float(brute_force(t, terms) > 2) for t in texts]
    assert found.value[:, 1].tolist() == [float("sea" in t) for t in texts]
    assert 0 < found.value[:, 0].mean() < 1


def test_lexical_finds_planted_terms_in_texts_and_pairs():
    rng = np.random.default_rng(1)
    filler = [f"word{i}" for i in range(40)]
    planted = rng.random(300) < 0.4
    second = rng.random(300) < 0.4
    texts = [
        " ".join([*rng.choice(filler, 10), *(["zebra crossing"] if a else []), *(["quince"] if b else [])])
        for a, b in zip(planted, second, strict=True)
    ]
    scores = planted + 0.5 * second
    found = LexicalAnnotator(terms=3).propose(ProposeRequest(texts, scores, n=2))
    assert set(found[0].about.payload.terms) == {"zebra", "crossing", "zebra crossing"}
    assert found[1].about.payload.terms[0] == "quince"  # what the first set left unexplained
    rated = LexicalAnnotator().rate([h.about for h in found], texts).value
    assert rated[:, 0].tolist() == planted.tolist()
    again = LexicalAnnotator(terms=3).propose(ProposeRequest(texts, scores, n=1, avoid=[found[0].text]))
    assert "quince" in again[0].text
    pairs = [Pair(x, y) for x, y in zip(texts[:150], texts[150:], strict=True)]
    preference = planted[:150].astype(float) - planted[150:]
    (axis,) = LexicalAnnotator(terms=3).propose(ProposeRequest(pairs, preference, n=1, style="axis"))
    fold = LexicalAnnotator().compare([axis.about], pairs).fold().ravel()
    assert np.array_equal(np.sign(preference), fold)
    assert not LexicalAnnotator().propose(ProposeRequest(["a b"] * 9, np.ones(9)))  # nothing varies


def test_a_lexical_judge_refuses_words_it_cannot_count():
    with pytest.raises(InputError, match="no terms to count"):
        LexicalAnnotator().rate(["is angry"], ["t"])
    with pytest.raises(InputError, match="has 3 words"):
        LexicalAnnotator().rate([Predicate("p", TermSet(("one two three",)))], ["t"])
    with pytest.raises(InputError, match="give scores"):
        LexicalAnnotator().propose(ProposeRequest(["a"]))
    assert LexicalAnnotator().assign(
        ["mentions any of: a", "mentions any of: b"], ["b b", "x"], True
    ).label.tolist() == [1, -1]


@pytest.mark.parametrize(
    ("axis", "high", "low"),
    [
        ("length", "one two three four", "one two"),
        ("exclamation marks", "Yes! Yes!", "Yes. Yes."),
        ("bullets", "- a\n- b", "a\nb"),
        ("numbered lists", "1. a\n2. b", "a\nb"),
        ("headers", "# Title\ntext", "Title\ntext"),
        ("bold", "it is **so**", "it is so"),
        ("code", "call `f(x)`", "call f"),
        ("emoji", "fine 🙂", "fine"),
        ("digits", "in 1984", "in spring"),
        ("first person", "I think we know", "they think"),
        ("second person", "you know", "they know"),
        ("contractions", "it's what we don't", "it is what we do not"),
        ("hedges", "perhaps it might rain", "it will rain"),
        ("certainty", "it always rains", "it rains"),
        ("apologies", "sorry about it", "about it"),
        ("vocabulary", "one two three", "one one one"),
        ("paragraphs", "a\n\nb", "a b"),
        ("sentence length", "One two three four.", "One. Two. Three."),
        ("word length", "extraordinary", "odd"),
        ("question marks", "What? Why?", "What. Why."),
    ],
)
def test_style_axes_measure_what_they_say(axis, high, low):
    chosen = next(a for a in STYLE_AXES if a.name == axis)
    assert StyleAnnotator().compare(
        [chosen], [Pair(high, low), Pair(low, high), Pair(low, low)]
    ).fold().ravel().tolist() == [1, -1, 0]


def test_style_has_a_dead_zone_and_proposes_the_planted_axis():
    length = STYLE_AXES[0]
    near = [Pair("a " * 100, "a " * 95)]
    assert StyleAnnotator().compare([length], near).fold().item() == 0
    assert StyleAnnotator(dead_zone=0.01).compare([length], near).fold().item() == 1
    rng = np.random.default_rng(0)
    loud = rng.random(80) < 0.5
    texts = [" ".join(rng.choice(["it", "rains", "here", "now"], 8)) + ("!" if x else ".") for x in loud]
    (best, *_) = StyleAnnotator().propose(ProposeRequest(texts, loud, n=3, style="axis"))
    assert best.about.name == "exclamation marks" and best.score == pytest.approx(1)
    assert np.isfinite(StyleAnnotator().measure(["", " ", "\n\n", "…"])).all()
    assert len({a.name for a in STYLE_AXES}) == len(STYLE_AXES) >= 25
    with pytest.raises(InputError, match="no measurable axis"):
        StyleAnnotator().compare([AXIS], near)


# -- embedding and probe -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny random BERT whose vectors nevertheless depend on the words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    names = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        *["red", "blue", "sea", "deep", "fish", "the", "swims", "is", "about", "hen", "old", "new"],
    ]
    raw = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(names), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=64, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False)
    torch.nn.init.normal_(model.embeddings.word_embeddings.weight, std=1.0)
    model.save_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    return folder


def sentences(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    words = ["red", "blue", "sea", "deep", "fish", "the", "swims"]
    return [" ".join(rng.choice(words, int(rng.integers(1, 9)))) for _ in range(n)]


def test_embeddings_do_not_depend_on_batch_or_order(encoder):
    texts = sentences(40)
    whole = Encoder(encoder).embed(texts)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)
    single = np.concatenate([Encoder(encoder, batch_tokens=1).embed([t]) for t in texts[:8]])
    # Unit float32 vectors, about 1e2 additions each: rounding stays below 1e2 * 2^-24 < 1e-5.
    np.testing.assert_allclose(whole[:8], single, atol=1e-5)
    np.testing.assert_allclose(Encoder(encoder, batch_tokens=30).embed(texts[::-1])[::-1], whole, atol=1e-5)


def test_embedding_ratings_follow_the_cosine_and_report_what_is_cut(encoder):
    judge = EmbeddingAnnotator(encoder)
    asked = ["red fish", "deep blue sea"]
    texts = [*sentences(30), "red fish", "the " * 20]
    raw = judge.rate(asked, texts)
    np.testing.assert_allclose(raw.value[-2, 0], 1, atol=1e-5)
    assert raw.truncated.tolist() == [False] * 31 + [True] and raw.usage.truncated == 1
    before = judge.id
    fitted = judge.fit(asked, texts).rate(asked, texts)
    assert judge.id != before
    for column in range(2):  # calibration keeps the order
        order = np.argsort(raw.value[:, column], kind="stable")
        assert (np.diff(fitted.value[order, column]) >= -1e-6).all()
    np.testing.assert_allclose(judge.rate(asked, texts[:3]).value, fitted.value[:3], atol=1e-5)
    assert judge.assign(asked, ["red fish", "deep blue sea"]).label.tolist() == [0, 1]
    assert (
        judge.compare([Axis("a", "red fish", "deep blue sea")], [Pair("red fish", "deep blue sea")])
        .fold()
        .item()
        == 1
    )
    assert raw.header.startswith("offline default (embedding), accuracy unvalidated")


def test_two_groups_finds_planted_groups():
    from glasshouse.annotators.embedding import two_groups

    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0.1, 0.05, 700), rng.normal(0.5, 0.05, 300)])
    share, low, high, spread, _ = two_groups(values)
    assert share == pytest.approx(0.3, abs=0.03) and spread == pytest.approx(0.05, abs=0.01)
    assert (low, high) == (pytest.approx(0.1, abs=0.01), pytest.approx(0.5, abs=0.01))


def test_nearest_terms_name_the_planted_word(encoder):
    texts = sentences(200)
    scores = np.array([t.split().count("red") / len(t.split()) for t in texts])
    found = EmbeddingAnnotator(encoder, terms=2).propose(ProposeRequest(texts, scores, n=1))
    assert found[0].text.startswith("is about: red")
    assert EmbeddingAnnotator(encoder).propose(ProposeRequest(texts, np.ones(200))) == []


def test_an_absent_encoder_is_said(tmp_path, monkeypatch):
    with pytest.raises(AnnotatorUnavailable, match="no encoder in this folder"):
        EmbeddingAnnotator(tmp_path)
    from glasshouse.annotators import embedding

    monkeypatch.setattr(embedding, "find_spec", lambda name: None)
    with pytest.raises(AnnotatorUnavailable, match=r"pip install 'glasshouse\[embed\]'"):
        EmbeddingAnnotator()


class Coordinates:
    """An encoder whose vectors are the numbers in the text."""

    name = "coordinates"

    def embed(self, texts):
        return np.array([[float(x) for x in text.split()] for text in texts], dtype=np.float32)


def test_probes_recover_a_planted_direction_and_equal_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)).round(4)
    w = np.array([2.0, -1.0, 0.5])
    chance = 1 / (1 + np.exp(-(x @ w + 0.3)))
    texts = [" ".join(map(str, row)) for row in x]
    probe = ProbeAnnotator(Coordinates(), ridge=1e-6).fit(["p"], texts, chance[:, None])
    np.testing.assert_allclose(probe.probes_["p"].vector, w, atol=1e-2)
    np.testing.assert_allclose(probe.rate(["p"], texts).value.ravel(), chance, atol=5e-3)
    labels = (rng.random(400) < chance).astype(float)
    mine = ProbeAnnotator(Coordinates(), ridge=0.01).fit(["p"], texts, labels[:, None]).probes_["p"]
    theirs = LogisticRegression(C=1 / (0.01 * 400), tol=1e-10, max_iter=1000).fit(x, labels)
    np.testing.assert_allclose(mine.vector, theirs.coef_[0], atol=1e-4)
    assert mine.bias == pytest.approx(theirs.intercept_[0], abs=1e-4)


def test_faithfulness_is_the_f1_between_probe_and_words():
    rng = np.random.default_rng(0)
    texts = [f"{a:.3f} {b:.3f}" for a, b in rng.normal(size=(200, 2))]
    probe = ProbeAnnotator(Coordinates())
    by_first = Predicate("first is positive", Direction(np.float32([50, 0])))
    honest = RuleAnnotator({"first is positive": lambda t: float(t.split()[0]) > 0})
    lying = RuleAnnotator({"first is positive": lambda t: float(t.split()[1]) > 0})
    assert probe.faithfulness(honest, [by_first], texts)[0].value == 1
    (low,) = probe.faithfulness(lying, [by_first], texts)
    assert low.low < 0.5 < 0.6 > low.value and low.n == 200
    with pytest.raises(InputError, match="no probe was fitted for 'x'"):
        probe.rate(["x"], texts)
    with pytest.raises(InputError, match="NaN"):
        probe.fit(["p"], texts, np.full((200, 1), np.nan))


# -- people --------------------------------------------------------------------------------------------------


def fill(sheet, target, answer):
    with sheet.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    for row in rows:
        row["answer"] = answer(row)
    with target.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return rows


def test_a_sheet_goes_out_blinded_and_comes_back_in_order(tmp_path):
    out, back = tmp_path / "out.csv", tmp_path / "in.csv"
    gold = [("is red", "gold red", "yes"), ("is red", "gold blue", "no")]
    human = HumanAnnotator(back, out, gold=gold, seed=1)
    texts = ["red a", "blue b", "=2+2", "red a", 'green, "quoted"\nline']
    with pytest.raises(AnnotatorUnavailable, match="10 rows wait for answers"):
        human.rate(["is red", "is long"], texts)
    rows = fill(
        out,
        back,
        lambda r: "" if "quoted" in r["text"] else str("red" in r["text"] or "long" in r["statement"]),
    )
    assert [row["text"] for row in rows] != sorted(row["text"] for row in rows) and set(rows[0]) == {
        "row",
        "statement",
        "text",
        "answer",
    }
    assert "'=2+2" in {row["text"] for row in rows}  # no spreadsheet runs it
    found = human.rate(["is red", "is long"], texts)
    np.testing.assert_array_equal(found.value[:, 0], np.float32([1, 0, 0, 1, np.nan]))
    np.testing.assert_array_equal(found.value[:, 1], np.float32([1, 1, 1, 1, np.nan]))
    assert human.gold_accuracy_.value == 1 and human.gold_accuracy_.n == 2
    kappa = cohen_kappa(*(r.binarize()[:4].ravel() for r in (
        RuleAnnotator(lambda t: "red" in t).rate(["is red"], texts[:4]),
        RatingMatrix(value=found.value[:4, :1]),
    )))  # fmt: skip
    assert kappa.value == 1
    with pytest.raises(InputError, match="rows are missing"):
        human.rate(["is green"], texts)


def test_people_compare_in_both_orders_without_knowing(tmp_path):
    human = HumanAnnotator(tmp_path / "in.csv", tmp_path / "out.csv")
    pairs = [Pair("big", "tiny"), Pair("tiny", "big"), Pair("big", "big.")]
    with pytest.raises(AnnotatorUnavailable):
        human.compare([AXIS], pairs)
    rows = fill(
        human.csv_out,
        human.csv_in,
        lambda r: "n/a" if "." in r["first"] + r["second"] else "first" if r["first"] == "big" else "second",
    )
    assert len(rows) == 6
    assert human.compare([AXIS], pairs).fold().ravel().tolist() == [1, -1, 0]
    fill(human.csv_out, human.csv_in, lambda r: "dunno")
    with pytest.raises(InputError, match="'dunno' is not known"):
        human.compare([AXIS], pairs)
    lines = human.csv_in.read_text().splitlines()
    human.csv_in.write_text("\n".join([*lines, lines[1]]))
    with pytest.raises(InputError, match="there twice"):
        human.compare([AXIS], pairs)
    human.csv_in.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="no columns `row` and `answer`"):
        human.compare([AXIS], pairs)


def test_a_liking_for_a_place_cancels_where_people_see_one_order(tmp_path):
    def sheet(seed):
        return HumanAnnotator(tmp_path / f"in{seed}.csv", tmp_path / f"out{seed}.csv", seed=seed)

    pairs = [Pair(f"x{i}", f"y{i}") for i in range(200)]
    human = sheet(0)
    with pytest.raises(AnnotatorUnavailable, match="200 rows"):
        human.compare([AXIS], pairs, order="given")
    rows = fill(human.csv_out, human.csv_in, lambda r: "first")  # always the first
    assert abs(human.compare([AXIS], pairs, order="given").one_order().mean()) < 4 / math.sqrt(200)
    assert 60 < sum(row["first"].startswith("y") for row in rows) < 140
    fill(human.csv_out, human.csv_in, lambda r: "first" if r["first"].startswith("x") else "second")
    assert (human.compare([AXIS], pairs, order="given").one_order() == 1).all()
    other = sheet(1)
    with pytest.raises(AnnotatorUnavailable):
        other.compare([AXIS], pairs, order="given")
    assert other.csv_out.read_text() != human.csv_out.read_text()


# -- calibration ---------------------------------------------------------------------------------------------


def test_calibration_measures_planted_errors_and_marks_later_results():
    texts = [str(i) for i in range(1000)]
    truth = np.array([i % 4 == 0 for i in range(1000)]).astype(int)
    judge = OracleAnnotator(
        rate=lambda p, t, m: None if int(t) % 10 == 9 else int(t) % 4 == 0 or int(t) % 8 == 1
    )
    assert judge.rate(["p"], ["1"]).validated_accuracy == "unvalidated"
    found = calibrate(judge, Labelled(["p"], texts, truth))
    read = np.array([i % 10 != 9 for i in range(1000)])
    said = np.array([i % 4 == 0 or i % 8 == 1 for i in range(1000)])
    assert found.n == read.sum() == 900 and found.unread.value == 0.1
    assert found.accuracy.value == pytest.approx((said == truth)[read].mean())
    assert found.sensitivity.value == 1 and found.specificity.value < 1
    assert judge.rate(["p"], ["1"]).validated_accuracy == found.accuracy
    assert f"{found.accuracy}" in judge.rate(["p"], ["1"]).header
    pairs = [Pair(str(i), str(50 - i)) for i in range(60)]
    winner = np.sign([2 * i - 50 for i in range(60)])
    exact = OracleAnnotator(compare=lambda a, p, m: int(p.x) - int(p.y))
    assert calibrate(exact, LabelledPairs([AXIS], pairs, winner)).accuracy.value == 1


@pytest.mark.parametrize(
    ("labelled", "message"),
    [
        (Labelled(["p"], ["t"] * 49, [1] * 49), "49 labelled items"),
        (Labelled(["p"], ["t"] * 50, [1] * 49), "truth of shape"),
        (Labelled(["p"], ["t"] * 50, [0.5] * 50), r"truth \[0, 0\] is 0.5"),
    ],
)
def test_poor_labels_are_refused(labelled, message):
    with pytest.raises(InputError, match=message):
        calibrate(RuleAnnotator(lambda t: True), labelled)


# -- bad input -----------------------------------------------------------------------------------------------

RULE = RuleAnnotator(lambda t: True)
LEXICAL = LexicalAnnotator()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RULE.rate(["p"], []), "no text was given"),
        (lambda: RULE.rate(["p"], "text"), "texts is a str"),
        (lambda: RULE.rate(["p"], ["a", 3]), "text 1: 3 is a int"),
        (lambda: RULE.rate(["p"], ["a", None]), "text 1: None is a NoneType"),
        (lambda: RULE.rate(["p"], ["a", "b\0c"]), "text 1: 'bc' holds a NUL"),
        (lambda: RULE.rate(["p"], ["\ud800"]), "text 0: .* half a surrogate pair"),
        (lambda: RULE.rate([], ["a"]), "no predicate was given"),
        (lambda: RULE.rate("p", ["a"]), "predicates is a str"),
        (lambda: RULE.rate(["p", "q", "p"], ["a"]), "predicate 2 repeats predicate 0: 'p'"),
        (lambda: RULE.rate(["p", "x" * 401], ["a"]), "predicate 1: .* has 401 characters"),
        (lambda: RULE.rate(["  "], ["a"]), "predicate 0: it is blank"),
        (lambda: RULE.rate([3], ["a"]), "predicate 0 is a int"),
        (lambda: RULE.compare([AXIS], []), "no pair was given"),
        (lambda: RULE.compare([AXIS], ["a"]), "pair 0 is a str"),
        (lambda: RULE.compare([AXIS], [Pair("a", 3)]), "pair 0, y: 3 is a int"),
        (lambda: RULE.compare([], [Pair("a", "b")]), "no axis was given"),
        (lambda: RULE.compare([AXIS, AXIS], [Pair("a", "b")]), "axis 1 repeats axis 0: 'Size'"),
        (lambda: RULE.compare(["a"], [Pair("a", "b")]), "axis 0 is a str"),
        (lambda: RULE.compare([AXIS], [Pair("a", "b")], "twice"), "order is 'twice'"),
        (lambda: LEXICAL.propose(ProposeRequest([], [])), "no sample was given"),
        (lambda: LEXICAL.propose(ProposeRequest(["a"], [math.nan])), "score 0 is nan"),
        (lambda: LEXICAL.propose(ProposeRequest(["a"], [1.0, 2.0])), "scores of shape"),
        (lambda: LEXICAL.propose(ProposeRequest(["a"], [1.0], n=0)), "n is 0"),
        (lambda: LEXICAL.propose(ProposeRequest(["a"], [1.0], style="poem")), "style is 'poem'"),
        (lambda: RULE.propose(ProposeRequest(["a"])), "cannot propose"),
        (lambda: TermSet(()), "without terms"),
        (lambda: TermSet(("a",), (-1.0,)), "weight 0 is -1"),
        (lambda: Direction(np.zeros((2, 2))), "a direction of shape"),
        (lambda: OracleAnnotator(), "knows nothing"),
        (lambda: OracleAnnotator(rate=lambda p, t, m: 1, flip=2), "flip is 2"),
        (lambda: StyleAnnotator(dead_zone=1), "dead_zone"),
        (lambda: LexicalAnnotator(terms=0), "terms is 0"),
        (lambda: HumanAnnotator("a", "a"), "overwrite"),
    ],
)
def test_bad_input_is_refused_by_index_and_value(call, message):
    with pytest.raises((InputError, AccessError), match=message):
        call()
