"""Detectors of odd trajectories: what they read and make of it, what they refuse, what a disk keeps."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from glasshouse.internals.tuned_lens import LogitLens, TunedLens
from glasshouse.internals.tuned_lens import detectors as d
from glasshouse.runtime.errors import AccessError, InputError, NumericalError, StaleError
from glasshouse.statistics import auroc
from glasshouse.subjects import as_subject

KINDS = d.KINDS


def prompts(n: int, seed: int, *, first: tuple[int, ...] = (), vocab: int = 64) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [[*first, *draw.integers(8, vocab, draw.integers(3, 9)).tolist()] for _ in range(n)]


@pytest.fixture(scope="module")
def subject(tiny):
    return tiny.subject("llama")


@pytest.fixture(scope="module")
def shouting(tiny):
    """The same kind of model, in which token 5 says option 20 by itself: its embedding reads out as 20."""
    model = tiny.model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = 30 * model.get_output_embeddings().weight[20]
    return as_subject(model, self_test=False)


def lens_of(subject, scale: float = 0.3) -> TunedLens:
    """A tuned lens with translators of our own."""
    lens = TunedLens(opt="adam", steps=1, tokens_per_step=8, lr_scale=1e-9).fit(subject, prompts(4, 0))
    draw = torch.Generator().manual_seed(3)
    lens.weight_ = scale * torch.randn(lens.weight_.shape, generator=draw)
    return lens


# -- what is read ----


def test_trajectories_are_the_definition_whatever_the_batch(subject, monkeypatch):
    """Against transformers' own hidden states, one prompt at a time, by hand; layer 1 first, output last."""
    rows, options, lens = prompts(9, 1), [11, 8, 30], lens_of(subject)
    model, wanted = subject.model, {None: [], lens: []}
    for row in rows:
        out = model(torch.tensor([row]), output_hidden_states=True)
        for key, found in wanted.items():
            layers = []
            for layer in range(1, subject.n_layers):
                h = out.hidden_states[layer][0, -1].detach()
                if key is not None:
                    h = h + lens.weight_[layer] @ h + lens.bias_[layer]
                layers.append(model.lm_head(model.model.norm(h)))
            layers.append(out.logits[0, -1])
            found.append(torch.stack(layers).log_softmax(-1)[:, options].flatten().detach().numpy())
    for key, found in wanted.items():
        for size in (16384, 8):
            monkeypatch.setattr(d, "BATCH_TOKENS", size)
            ours = d.trajectories(subject, rows, options, lens=key)
            assert ours.shape == (9, subject.n_layers * 3)
            np.testing.assert_allclose(ours, np.array(found), atol=2e-5)


def test_without_a_lens_it_is_the_logit_lens(subject):
    rows = prompts(5, 2)
    plain = d.trajectories(subject, rows, [9, 10])
    logit = d.trajectories(subject, rows, [9, 10], lens=LogitLens().fit(subject))
    np.testing.assert_allclose(plain, logit, atol=1e-6)


def test_options_of_each_prompt_are_read_for_that_prompt(subject):
    rows = prompts(6, 3)
    each = [[9 + i, 20 + i] for i in range(6)]
    together = d.trajectories(subject, rows, each)
    alone = np.concatenate([d.trajectories(subject, [r], o) for r, o in zip(rows, each, strict=True)])
    np.testing.assert_allclose(together, alone, atol=2e-6)


def test_perplexity_and_last_hidden_are_the_models_own(subject):
    rows = prompts(5, 4)
    for row, nats, hidden in zip(
        rows, d.perplexities(subject, rows), d.last_hidden(subject, rows), strict=True
    ):
        with torch.no_grad():
            out = subject.model(torch.tensor([row]), output_hidden_states=True)
            logp = out.logits[0, :-1].log_softmax(-1)[range(len(row) - 1), row[1:]]
            normed = subject.model.model.norm(torch.tensor(hidden, dtype=torch.float32))
        assert abs(nats + float(logp.mean())) < 1e-5
        assert torch.allclose(normed, out.hidden_states[-1][0, -1], atol=1e-5)


def test_a_model_is_opened(shouting):
    fitted = d.TrajectoryDetector("srm").fit(shouting.model, prompts(30, 5))
    assert fitted.subject_.hash == shouting.hash


def test_default_options_are_what_the_model_says_most(subject):
    rows = prompts(40, 5)
    fitted = d.TrajectoryDetector("lof", top_k=4).fit(subject, rows)
    mean = subject.logprobs(rows).exp().mean(0)
    assert fitted.options_ == mean.topk(4).indices.tolist()
    assert fitted.rows_.shape == (40, subject.n_layers * 4)


# -- what is made of it ----


def test_lof_is_breunigs_formula():
    """Local outlier factor by its definition (Breunig et al. 2000) on z-scored rows."""
    draw = np.random.default_rng(0)
    x, asked = draw.normal(size=(60, 3)) * [1, 5, 0.2], draw.normal(size=(7, 3)) * [2, 9, 0.5]
    ours = d.TrajectoryDetector("lof").fit_rows(x).score_rows(asked)
    a, b = ((v - x.mean(0)) / x.std(0) for v in (x, asked))
    k = d.FEWEST

    def nearest(point: np.ndarray, skip: int | None) -> np.ndarray:
        far = np.linalg.norm(a - point, axis=1)
        if skip is not None:
            far[skip] = np.inf
        return far.argsort()[:k]

    reach = [np.sort(np.linalg.norm(a - p, axis=1))[k] for p in a]  # the point itself is the nearest

    def density(point: np.ndarray, skip: int | None) -> float:
        near = nearest(point, skip)
        return 1 / np.mean([max(reach[j], np.linalg.norm(a[j] - point)) for j in near])

    own = [density(p, i) for i, p in enumerate(a)]
    for point, score in zip(b, ours, strict=True):
        near = nearest(point, None)
        assert abs(score - np.mean([own[j] for j in near]) / density(point, None)) < 1e-8


def test_srm_is_the_difference_of_two_squared_distances():
    draw = np.random.default_rng(1)
    x = draw.normal(size=(200, 4)) @ draw.normal(size=(4, 4))
    asked = draw.normal(size=(6, 4))
    from sklearn.covariance import LedoitWolf

    fitted = LedoitWolf().fit(x)
    sigma, centred = fitted.covariance_, asked - x.mean(0)
    full = np.einsum("ni,ij,nj->n", centred, np.linalg.inv(sigma), centred)
    diagonal = (centred**2 / np.diag(sigma)).sum(1)
    np.testing.assert_allclose(
        d.TrajectoryDetector("srm").fit_rows(x).score_rows(asked), full - diagonal, rtol=1e-8
    )
    np.testing.assert_allclose(
        d.TrajectoryDetector("mahalanobis").fit_rows(x).score_rows(asked), np.sqrt(full), rtol=1e-8
    )


@pytest.mark.parametrize("kind", ["lof", "iforest"])
def test_units_of_a_feature_do_not_matter(kind):
    draw = np.random.default_rng(2)
    x, asked = draw.normal(size=(50, 3)), draw.normal(size=(9, 3))
    units = np.array([1.0, 1024.0, 1 / 512])
    fit = lambda scale: d.TrajectoryDetector(kind).fit_rows(x * scale).score_rows(asked * scale)  # noqa: E731
    np.testing.assert_allclose(fit(1.0), fit(units), rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_row_order_and_a_second_fit_change_nothing(kind):
    draw = np.random.default_rng(3)
    mixed = draw.normal(size=(48, 5)) @ draw.normal(size=(5, 5))
    x, asked = np.split(mixed[:, :1] if kind == "perplexity" else mixed, [40])
    detector = d.TrajectoryDetector(kind, seed=4).fit_rows(x[::-1].copy())
    first = detector.score_rows(asked)
    again = detector.fit_rows(x).score_rows(asked)
    np.testing.assert_allclose(first, again, rtol=0, atol=1e-9 * np.abs(again).max())


def test_the_seed_of_a_forest_is_an_option_that_counts():
    x = np.random.default_rng(4).normal(size=(60, 4))
    scores = [d.TrajectoryDetector("iforest", seed=s).fit_rows(x).score_rows(x) for s in (0, 0, 1)]
    assert (scores[0] == scores[1]).all() and (scores[0] != scores[2]).any()


@pytest.mark.parametrize("kind", ["lof", "iforest", "srm", "mahalanobis"])
def test_a_planted_intrusion_is_seen_and_other_normal_prompts_are_not(kind, shouting):
    """Normal prompts end with one of eight ordinary words; the attack ends with the word that was planted."""

    def some(n: int, seed: int, lasts: tuple[int, ...]) -> list[list[int]]:
        ends = np.random.default_rng(seed).choice(lasts, n)
        return [[*row, int(end)] for end, row in zip(ends, prompts(n, seed), strict=True)]

    ordinary = tuple(range(10, 18))
    detector = d.TrajectoryDetector(kind, options=[20, 21, 22, 23]).fit(shouting, some(120, 5, ordinary))
    normal, attacked, others = (
        detector.score(some(120, seed, lasts)) for seed, lasts in ((6, ordinary), (6, (5,)), (7, ordinary))
    )
    assert auroc(attacked, normal).low > 0.9
    # Nothing was planted: the 99.9 % interval holds one half.
    assert not auroc(others, normal, level=0.999).excludes(0.5)


# -- disk ----


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_back_from_disk_scores_the_same_bits(kind, subject, tmp_path):
    lens = lens_of(subject) if kind == "lof" else None
    fitted = d.TrajectoryDetector(kind, lens=lens, options=[9, 10, 11], seed=3).fit(subject, prompts(40, 8))
    folder = fitted.save(tmp_path)
    assert sorted(p.suffix for p in folder.iterdir()) == [".json", ".safetensors"]
    again = d.TrajectoryDetector.load(folder, subject, lens=lens)
    asked = prompts(12, 9)
    assert (again.score(asked) == fitted.score(asked)).all()
    bare = d.TrajectoryDetector.load(folder)
    assert (bare.score_rows(fitted.rows_) == fitted.score_rows(fitted.rows_)).all()
    with pytest.raises(InputError, match="no subject"):
        bare.score(asked)


def test_another_lens_and_another_model_are_refused(subject, shouting, tmp_path):
    lens = lens_of(subject)
    folder = (
        d.TrajectoryDetector("lof", lens=lens, options=[9, 10]).fit(subject, prompts(30, 8)).save(tmp_path)
    )
    other = copy.copy(lens)
    other.weight_ = lens.weight_ * 1.5
    for wrong in (other, None):
        with pytest.raises(InputError, match="lens"):
            d.TrajectoryDetector.load(folder, subject, lens=wrong)
    with pytest.raises(StaleError, match="another model"):
        d.TrajectoryDetector.load(folder, shouting, lens=lens)


@pytest.mark.parametrize("name", ["detector.json", "detector.safetensors"])
def test_damaged_files_are_refused(name, tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 2))
    folder = d.TrajectoryDetector("lof").fit_rows(x).save(tmp_path)
    kept = (folder / name).read_bytes()
    for damage in (kept[: len(kept) // 2], b"", b"[]"):
        (folder / name).write_bytes(damage)
        with pytest.raises(InputError, match="cannot read"):
            d.TrajectoryDetector.load(folder)
    (folder / name).unlink()
    with pytest.raises(InputError, match="cannot read"):
        d.TrajectoryDetector.load(folder)


# -- refusals ----


def test_refusals_of_fit(subject):
    with pytest.raises(InputError, match="19 normal prompts"):
        d.TrajectoryDetector("lof").fit(subject, prompts(19, 0))
    with pytest.raises(InputError, match="normal"):
        d.TrajectoryDetector("lof").fit(subject, [])
    with pytest.raises(InputError, match="kind is"):
        d.TrajectoryDetector("svm").fit(subject, prompts(30, 0))
    with pytest.raises(InputError, match="same on all normal prompts"):
        d.TrajectoryDetector("lof", options=[9]).fit(subject, [[5, 6, 7]] * 30)
    with pytest.raises(InputError, match="options"):
        d.TrajectoryDetector("lof", options=[9, 9]).fit(subject, prompts(30, 0))
    with pytest.raises(InputError, match="vocabulary"):
        d.TrajectoryDetector("lof", options=[10**6]).fit(subject, prompts(30, 0))
    with pytest.raises(InputError, match="top_k"):
        d.TrajectoryDetector("lof", top_k=0).fit(subject, prompts(30, 0))
    with pytest.raises(InputError, match="equally many"):
        d.TrajectoryDetector("lof").fit(subject, prompts(30, 0), options=[[9, 10]] * 29)


def test_refusals_of_rows():
    x = np.random.default_rng(0).normal(size=(30, 2))
    detector = d.TrajectoryDetector("lof")
    with pytest.raises(InputError, match="not fitted"):
        detector.score_rows(x)
    detector.fit_rows(x)
    bad = x.copy()
    bad[3, 1] = np.nan
    for act in (lambda: detector.fit_rows(bad), lambda: detector.score_rows(bad)):
        with pytest.raises(NumericalError, match="prompt 3"):
            act()
    with pytest.raises(InputError, match="3 features"):
        detector.score_rows(np.ones((4, 3)))
    with pytest.raises(InputError, match="shape"):
        detector.score_rows(np.ones((0, 2)))


def test_refusals_of_score(subject):
    detector = d.TrajectoryDetector("lof", options=[9, 10]).fit(subject, prompts(30, 0))
    with pytest.raises(InputError, match="no prompts"):
        detector.score([])
    with pytest.raises(InputError, match="both"):
        detector.score(prompts(3, 1), options=[[9, 10]] * 3)
    with pytest.raises(InputError, match="one token"):
        d.perplexities(subject, [[5, 6], [7]])


def test_a_subject_without_activations_is_refused(subject):
    class Text:
        access, name = frozenset({"text"}), "api"

    with pytest.raises(AccessError, match="activations"):
        d.TrajectoryDetector("lof").fit(Text(), prompts(30, 0))
