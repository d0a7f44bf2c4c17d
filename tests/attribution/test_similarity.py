"""Similarity baselines against hidden states read by hand; padding, files and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from attribution_models import tiny_conv, tiny_gpt2, tiny_llama, token_rows
from torch import nn

from glasshouse.attribution import TensorUnits, TokenUnits, bm25_scores
from glasshouse.attribution.evaluate import randomised
from glasshouse.attribution.reading import as_texts
from glasshouse.attribution.similarity import RepresentationSimilarity
from glasshouse.attribution.text_similarity import BM25, EmbeddingSimilarity
from glasshouse.corpora.rows import Record, TokenRow
from glasshouse.runtime import files
from glasshouse.runtime.errors import AccessError, InputError, NumericalError, StaleError


def states(model: nn.Module, rows: list[TokenRow], pooling: str) -> np.ndarray:
    """The last hidden states as transformers gives them, one row at a time, without padding."""
    found = []
    for row in rows:
        with torch.no_grad():
            h = model(input_ids=torch.tensor([row.ids]), output_hidden_states=True).hidden_states[-1][0]
        found.append((h[-1] if pooling == "last" else h.mean(0)).double().numpy())
    return np.stack(found)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("family", [tiny_gpt2, tiny_llama])
def test_hidden_states_are_those_of_the_model(family, pooling: str, side: str) -> None:
    model, rows = family(), token_rows()
    units = TokenUnits(rows, side=side)
    method = RepresentationSimilarity(pooling=pooling, batch_rows=4).fit(model, units)
    h = states(model, rows, pooling)
    dots = RepresentationSimilarity(pooling=pooling, metric="dot").fit(model, units).score(rows[:3]).scores
    np.testing.assert_allclose(dots, h[:3] @ h.T, rtol=1e-3, atol=1e-4)
    unit = h / np.linalg.norm(h, axis=1, keepdims=True)
    np.testing.assert_allclose(method.score(rows[:3]).scores, unit[:3] @ unit.T, atol=1e-4)
    assert method.score(rows[:3], query_agg="mean").query_ids == ("mean",)


def test_another_site_is_another_similarity() -> None:
    model, rows = tiny_gpt2(), token_rows()
    with torch.no_grad():
        h = torch.stack([
            model(input_ids=torch.tensor([r.ids]), output_hidden_states=True).hidden_states[1][0, -1]
            for r in rows
        ])  # fmt: skip
    found = RepresentationSimilarity("resid_post.0", metric="dot").fit(model, rows).score(rows[:2]).scores
    np.testing.assert_allclose(found, (h[:2] @ h.T).numpy(), rtol=1e-3, atol=1e-4)


def test_a_plain_module_gives_the_input_of_its_last_layer(mlp, classes) -> None:
    X, y = classes
    with torch.no_grad():
        h = mlp[:-1](X)
    dots = RepresentationSimilarity(metric="dot").fit(mlp, classes)
    assert dots.site_ == "4"
    np.testing.assert_allclose(dots.score((X[:3], y[:3])).scores, (h[:3] @ h.T).numpy(), rtol=1e-4, atol=1e-6)
    first = RepresentationSimilarity("0", metric="dot").fit(mlp, classes)
    np.testing.assert_allclose(first.score((X[:3], y[:3])).scores, (X[:3] @ X.T).numpy(), rtol=1e-4)
    signed = RepresentationSimilarity(metric="dot", labels="sign").fit(mlp, classes).score((X[:3], y[:3]))
    sign = np.where(y[:3, None] == y[None], 1.0, -1.0)
    np.testing.assert_allclose(signed.scores, (h[:3] @ h.T).numpy() * sign, rtol=1e-4, atol=1e-6)
    picture = TensorUnits(
        torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(5) % 3
    )
    whole = RepresentationSimilarity("0", metric="dot").fit(tiny_conv(), picture).features_
    assert torch.equal(whole, picture.inputs.flatten(1))
    assert "similarity" in signed.meta["convention"]
    assert mlp.training is False and dots.cost(3)["factor_bytes"] > 0


def test_saved_resumed_and_stale(tmp_path: Path, monkeypatch, mlp, classes) -> None:
    asked = (classes[0][:3], classes[1][:3])
    calm = RepresentationSimilarity("2", shards=3).fit(mlp, classes)

    def kill(stage: str, path: Path) -> None:
        if stage == "before" and path.name == "hidden-00001.safetensors":
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "fault_hook", kill)
    with pytest.raises(KeyboardInterrupt):
        RepresentationSimilarity("2", shards=3).fit(mlp, classes, store=tmp_path / "store")
    monkeypatch.setattr(files, "fault_hook", None)
    again = RepresentationSimilarity("2", shards=3).fit(mlp, classes, store=tmp_path / "store")
    assert torch.equal(again.features_, calm.features_)
    calm.save(tmp_path / "saved")
    read = RepresentationSimilarity.load(tmp_path / "saved", mlp, classes)
    assert np.array_equal(read.score(asked).scores, calm.score(asked).scores)
    np.testing.assert_allclose(
        calm.score(asked, candidates=asked).scores, calm.score(asked).scores[:, :3], rtol=1e-5
    )
    assert calm.score(asked, top_k=2).scores.shape == (3, 2)
    with pytest.raises(StaleError, match="data"):
        RepresentationSimilarity.load(tmp_path / "saved", mlp, asked)
    with pytest.raises(StaleError, match="model"):
        RepresentationSimilarity.load(tmp_path / "saved", randomised(mlp), classes)


def test_bm25_is_the_function_behind_the_call() -> None:
    rows = token_rows()
    found = BM25().fit(None, rows).score(rows[:3])
    corpus = [row.ids for row in rows]
    np.testing.assert_allclose(found.scores, bm25_scores(corpus[:3], corpus), rtol=1e-6)
    assert found.train_ids == tuple(row.row_id for row in rows)
    texts = ["the red fox", "a blue cat and a red dog", "nothing"]
    flat = BM25(b=0.0).fit(None, texts).score(["red"]).scores
    assert flat[0, 0] == flat[0, 1] > flat[0, 2] == 0  # without length, one "red" is worth one "red"
    records = [Record(str(k), text=t) for k, t in enumerate(texts)]
    assert np.array_equal(BM25(b=0.0).fit(None, records).score(["red"]).scores, flat)
    often = BM25(k1=0.0).fit(None, ["red red", "red", "blue"]).score(["red"]).scores
    assert often[0, 0] == often[0, 1]


def test_bm25_files(tmp_path: Path) -> None:
    rows = token_rows()
    BM25(k1=0.9).fit(None, rows).save(tmp_path)
    again = BM25.load(tmp_path, None, rows)
    assert again.k1 == 0.9 and np.array_equal(
        again.score(rows[:2]).scores, BM25(k1=0.9).fit(None, rows).score(rows[:2]).scores
    )
    with pytest.raises(StaleError):
        BM25.load(tmp_path, None, rows[:3])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """An encoder folder as transformers writes it: random weights, a word tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    words = ["<pad>", "the", "red", "fox", "a", "blue", "cat", "dog", "and", "<unk>"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>").save_pretrained(folder)
    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return folder


def test_embeddings_are_those_of_the_encoder(encoder: Path, tmp_path: Path) -> None:
    from glasshouse.annotators.embedding import Encoder

    texts = ["the red fox", "a blue cat and a dog", "the red fox", "the dog"]
    method = EmbeddingSimilarity(encoder).fit(None, texts)
    table = method.score(texts[:2])
    by_hand = Encoder(encoder).embed(texts)
    np.testing.assert_allclose(table.scores, by_hand[:2] @ by_hand.T, atol=1e-5)
    assert table.scores[0, 0] == pytest.approx(1.0, abs=1e-5) == table.scores[0, 2]
    method.save(tmp_path / "saved")
    again = EmbeddingSimilarity.load(tmp_path / "saved", None, texts)
    assert np.array_equal(again.score(texts[:2]).scores, table.scores)
    few = EmbeddingSimilarity(encoder).fit(None, texts, store=tmp_path / "store")
    assert torch.equal(few.features_, method.features_)
    with pytest.raises(StaleError):
        EmbeddingSimilarity(encoder).fit(None, texts[:2], store=tmp_path / "store")
    assert method.cost(2)["scores"] > 0


def test_refusals(tmp_path: Path, mlp, classes) -> None:
    with pytest.raises(AccessError, match="no encoder"):
        EmbeddingSimilarity(tmp_path).fit(None, ["one"])
    with pytest.raises(AccessError, match="tokenizer"):
        as_texts(token_rows(), None)
    with pytest.raises(AccessError, match="tokenizer"):
        BM25(terms="tokens").fit(None, ["one"])
    with pytest.raises(InputError, match="twice"):
        BM25().fit(None, [Record("a", text="x"), Record("a", text="y")])
    with pytest.raises(InputError, match="no rows"):
        BM25().fit(None, [])
    with pytest.raises(InputError, match="type int"):
        BM25().fit(None, [3])
    with pytest.raises(InputError, match="k1"):
        BM25(b=2.0).fit(None, ["one"])
    with pytest.raises(InputError, match="no module"):
        RepresentationSimilarity("nowhere").fit(mlp, classes)
    with pytest.raises(InputError, match="unknown site"):
        RepresentationSimilarity("nowhere").fit(tiny_gpt2(), token_rows())
    with pytest.raises(InputError, match="class label"):
        RepresentationSimilarity(labels="sign").fit(tiny_gpt2(), token_rows())
    with pytest.raises(InputError, match="no Linear"):
        RepresentationSimilarity().fit(nn.Sequential(nn.Tanh()), classes)
    dead = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        dead[0].weight.zero_(), dead[0].bias.fill_(-1)
    with pytest.raises(NumericalError, match="no direction"):
        RepresentationSimilarity().fit(dead, classes)
    with torch.no_grad():
        dead[0].weight.fill_(float("nan"))
    with pytest.raises(NumericalError, match="NaN"):
        RepresentationSimilarity().fit(dead, classes)
    for options in ({"pooling": "first"}, {"metric": "l2"}, {"labels": "no"}, {"batch_rows": 0}):
        with pytest.raises(InputError):
            RepresentationSimilarity(**options).fit(mlp, classes)
    with pytest.raises(InputError, match="not fitted"):
        RepresentationSimilarity().score(classes)
