"""`score`: the log-probability of a given text, where the prompt ends, and multiple choice on top of it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from inspect_ai.model import ChatMessageUser, GenerateConfig, get_model

from glasshouse.evaluation import Item, accuracy, items_frame, score_items
from glasshouse.evaluation.packing import _families, _rows, packs, score_packed
from glasshouse.evaluation.provider import GlasshouseAPI
from glasshouse.evaluation.scoring import score_pairs
from glasshouse.runtime.errors import AccessError, InputError
from glasshouse.subjects import BoundaryMergeError, as_subject


def direct(subject, prompt: list[int], said: list[int]) -> list[float]:
    """One row through the plain model, float32 log-softmax, no batches and no caches."""
    with torch.no_grad():
        logits = subject.model(torch.tensor([[*prompt, *said]])).logits[0].float().log_softmax(-1)
    return [float(logits[len(prompt) + i - 1, token]) for i, token in enumerate(said)]


def items_of_tokens(vocab: int, *, seed: int = 0, shots: int = 0) -> list[tuple[list[int], list[int]]]:
    """Prompts of different lengths, some beginning alike, with one to six continuations each."""
    draw = np.random.default_rng(seed)
    begun, pairs = draw.integers(4, vocab, shots).tolist(), []
    for index in range(14):
        prompt = (begun if index % 3 else []) + draw.integers(4, vocab, draw.integers(1, 9)).tolist()
        sizes = draw.integers(1, 7, draw.integers(1, 7))
        pairs += [(prompt, draw.integers(4, vocab, size).tolist()) for size in sizes]
    return pairs


@pytest.mark.parametrize("shots", [0, 40])
@pytest.mark.parametrize("batch_tokens", [1, 97, 16384])
def test_every_token_scores_as_in_the_plain_model(small, shots, batch_tokens) -> None:
    """float32 sums of a few dozen terms in another order: 1e-4 is a hundred times their rounding."""
    subject = as_subject(small.chat)
    pairs = items_of_tokens(subject.vocab_size, shots=shots)
    families = [common for _, common in _families(_rows(pairs))]
    assert (max(families) >= 40) == (shots == 40) and packs(subject, pairs)
    found = score_pairs(subject, pairs, batch_tokens=batch_tokens)
    for (prompt, said), values in zip(pairs, found, strict=True):
        assert values.dtype == np.float32
        assert values.tolist() == pytest.approx(direct(subject, prompt, said), abs=1e-4)


def test_many_long_continuations_are_spread_over_rows(small) -> None:
    subject = as_subject(small.chat)
    draw = np.random.default_rng(1)
    pairs = [([5, 6, 7], draw.integers(4, subject.vocab_size, 40).tolist()) for _ in range(15)]
    assert len(_rows(pairs)) > 1
    packed = score_packed(subject, pairs, batch_tokens=4096)
    plain = subject.score([p for p, _ in pairs], [c for _, c in pairs], per_token=True)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(packed, plain, strict=True))


def test_a_window_shorter_than_the_text_is_not_packed() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=96, sliding_window=12, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        subject = as_subject(MistralForCausalLM(config).eval(), self_test=False)
    short = [([5, 6, 7], [8, 9]), ([5, 6, 7], [9])]
    long = [(list(range(20)), [8, 9]), (list(range(20)), [9])]
    assert packs(subject, short) and not packs(subject, long)
    for pairs in (short, long):
        for (prompt, said), values in zip(pairs, score_pairs(subject, pairs, batch_tokens=512), strict=True):
            assert values.tolist() == pytest.approx(direct(subject, prompt, said), abs=1e-4)


def test_a_model_that_ignores_the_mask_is_scored_row_by_row(small, monkeypatch) -> None:
    subject = as_subject(small.llama(vocab=64), self_test=False)
    forward = subject.parts.base.forward

    def without_mask(*args, attention_mask=None, **options):
        return forward(*args, **options)

    monkeypatch.setattr(subject.parts.base, "forward", without_mask)
    pairs = [([5, 6, 7], [8, 9, 10]), ([5, 6, 7], [9, 11, 12])]
    assert not packs(subject, pairs)
    found = score_pairs(subject, pairs, batch_tokens=512)
    assert found[1].tolist() == pytest.approx(direct(subject, *pairs[1]), abs=1e-4)


def test_words_are_encoded_apart_and_pieces_together(small) -> None:
    words, chat, base = (as_subject(folder) for folder in (small.words, small.chat, small.base))
    [(before, after)] = words.encode_pairs(["is it"], ["red ?"])
    assert words.decode(before, special=True).split()[-1] == "<bot>" and words.decode(after) == "red ?"
    [(before, after)] = base.encode_pairs(["it is"], [" the"])
    assert before == base.encode("it is") and after == [
        base.tokenizer.convert_tokens_to_ids("Ġth"),
        base.tokenizer.convert_tokens_to_ids("e"),
    ]
    [(before, after)] = chat.encode_pairs(["hi"], ["the"])
    assert before == chat.encode("hi") and chat.decode(after) == "the"
    with pytest.raises(BoundaryMergeError, match=r"pair 1: .*share the token 'Ġth'; move the space"):
        base.encode_pairs(["it is", "it is "], [" ab", "the"])
    with pytest.raises(BoundaryMergeError, match="share the token 'ab'"):
        base.encode_pairs(["a"], ["b"])
    for prompts, said, why in (([""], ["a"], "prompt"), (["a"], [""], "completion")):
        with pytest.raises(InputError, match=f"pair 0: the {why} has no tokens"):
            base.encode_pairs(prompts, said)
    with pytest.raises(InputError, match="2 prompts but 1"):
        base.encode_pairs(["a", "b"], ["c"])


def test_concurrent_callers_share_batches_and_keep_their_scores(small) -> None:
    model = get_model(f"glasshouse/{small.chat}")
    texts = [("hi", "the cat"), ("hi", "a"), ("who is it", "ab"), ("hi", "the end")]

    async def one_each():
        calls = [model.api.score([[ChatMessageUser(content=p)]], [c]) for p, c in texts]
        return [found for [found] in await asyncio.gather(*calls)]

    apart = asyncio.run(one_each())
    together = asyncio.run(model.api.score([p for p, _ in texts], [c for _, c in texts]))
    subject = as_subject(small.chat)
    for one, other, (prompt, said) in zip(apart, together, texts, strict=True):
        assert one.tokens == other.tokens and one.access == "logprob"
        assert one.logprobs.tolist() == pytest.approx(other.logprobs.tolist(), abs=1e-4)
        assert one.total == pytest.approx(float(subject.score([prompt], [list(one.tokens)])[0]), abs=1e-4)
        assert subject.decode(one.tokens) == said


def test_texts_that_do_not_fit_are_refused_before_anything_runs(small) -> None:
    api = GlasshouseAPI(str(small.base), max_length=8)
    assert len(asyncio.run(api.score(["xcd"], ["defghi"]))[0].tokens) == 6  # the last is never read
    with pytest.raises(InputError, match="row 1: the row has 9 tokens, but the model's context holds 8"):
        asyncio.run(api.score(["x", "xcd"], ["z", "defghij"]))


ITEMS = [
    Item("is it red ?", (" yes", " no"), answer=0),
    Item("is it blue ?", (" no it is", " yes"), answer=1),
    Item("is it red ?", (" it", " red"), answer=0),
]


def run(coroutine):
    return asyncio.run(coroutine)


def test_choices_by_exact_scores(small) -> None:
    model = get_model(f"glasshouse/{small.yes}")
    found = run(score_items(model, ITEMS))
    exact = [
        float(model.api.subject.score([item.prompt], [option])[0])
        for item in ITEMS
        for option in item.options
    ]
    assert [value for one in found for value in one.logprobs] == pytest.approx(exact, abs=1e-4)
    assert found[1].per_byte[0] == pytest.approx(exact[2] / len("no it is"), abs=1e-4)
    assert [one.best() for one in found[:2]] == [0, 1] and {one.access for one in found} == {"logprob"}
    rate, unsure = accuracy(ITEMS[:2], found[:2])
    assert (rate.value, rate.n, unsure) == (1.0, 2, 0)
    frame = items_frame(ITEMS, found)
    assert len(frame) == 6 and set(frame["access"]) == {"logprob"} and not frame["censored"].any()


def test_what_is_not_among_the_likeliest_is_censored_never_zero(small, monkeypatch) -> None:
    monkeypatch.setattr("glasshouse.evaluation.choices.TOP_K", 3)
    model = get_model(f"glasshouse/{small.yes}")
    top = model.api.subject.logprobs(["is it ?"])[0].topk(3).values.tolist()
    items = [Item("is it ?", (" yes", "zebra"), answer=0), Item("is it ?", ("zebra", "gnu"), answer=0)]
    first, second = run(score_items(model, items, access="top_k"))
    assert first.access == "top_k" and first.censored.tolist() == [False, True]
    assert first.logprobs.tolist() == pytest.approx([top[0], top[2]], abs=1e-4)
    assert first.best() == 0 and first.best(per_byte=True) is None
    assert second.censored.all() and second.best() is None
    rate, unsure = accuracy(items, [first, second])
    assert (rate.n, unsure) == (1, 1)


def test_shares_of_replies_have_intervals_and_count_what_says_nothing(small) -> None:
    [one] = run(score_items(get_model(f"glasshouse/{small.yes}"), ITEMS[:1], access="sampled", draws=40))
    assert one.access == "sampled" and one.best() == 0
    assert one.shares[0].method == "wilson" and one.shares[0].n == 40
    assert one.unparsed == 40 - round(40 * sum(share.value for share in one.shares))
    [again] = run(score_items(get_model(f"glasshouse/{small.yes}"), ITEMS[:1], access="sampled", draws=40))
    assert again.shares == one.shares


def test_nothing_stands_in_unasked(small) -> None:
    """A model that cannot score is refused; the caller names what to use in its place."""
    mock = get_model("mockllm/model")
    with pytest.raises(AccessError, match="cannot score given text; use a glasshouse/ model, or name"):
        run(score_items(mock, ITEMS))
    silent = SimpleNamespace(
        api=object(), generate=lambda *_, **__: get_model(f"glasshouse/{small.yes}").generate(
            "is it ?", config=GenerateConfig(max_tokens=1)
        )
    )  # fmt: skip
    with pytest.raises(AccessError, match="sends no log-probabilities; name access='sampled'"):
        run(score_items(silent, ITEMS, access="top_k"))
    with pytest.raises(InputError, match="item 0: the item lacks options"):
        run(score_items(mock, [Item("hi", ("a", " "))]))
