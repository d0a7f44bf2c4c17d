"""Generation equals plain transformers row by row, whatever else is in the batch."""

import pytest
import torch

from glasshouse.corpora.rows import Turn
from glasshouse.runtime.errors import AccessError, InputError
from glasshouse.subjects import as_subject


def plain_greedy(subject, row, steps: int) -> list[int]:
    from transformers import GenerationConfig

    ids = torch.tensor([row])
    settings = GenerationConfig(do_sample=False, max_new_tokens=steps, eos_token_id=1, pad_token_id=0)
    out = subject.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return out[0, len(row) :].tolist()


def ids_of(groups) -> list[list[tuple[int, ...]]]:
    return [[one.ids for one in group] for group in groups]


def test_greedy_equals_transformers_row_by_row(tiny, any_subject) -> None:
    rows = tiny.rows(6)
    found = any_subject.generate(rows, max_new_tokens=8)
    assert [list(one.ids) for [one] in found] == [plain_greedy(any_subject, row, 8) for row in rows]


def test_stop_tokens_end_rows_and_leave_the_others_alone(tiny, any_subject) -> None:
    rows = tiny.rows(12)
    free = [list(one.ids) for [one] in any_subject.generate(rows, max_new_tokens=10, stop_ids=())]
    stops = {ids[k] for ids, k in zip(free, (0, 1, 2, 3, 4, 5), strict=False)}  # rows end at different steps
    found = any_subject.generate(rows, max_new_tokens=10, stop_ids=tuple(stops))
    for ids, [one] in zip(free, found, strict=True):
        cut = next((k + 1 for k, token in enumerate(ids) if token in stops), len(ids))
        assert list(one.ids) == ids[:cut]
        assert one.finished == (ids[cut - 1] in stops)
        assert one.text == any_subject.decode(ids[: cut - 1] if one.finished else ids[:cut])
    assert sum(one.finished for [one] in found) > 0


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "n": 3}, {"temperature": 1.5, "top_p": 0.6}])
def test_a_completion_does_not_depend_on_batch_size(tiny, any_subject, options) -> None:
    rows = tiny.rows(8)
    together = any_subject.generate(rows, max_new_tokens=6, seed=4, **options)
    apart = any_subject.generate(rows, max_new_tokens=6, seed=4, batch_tokens=1, **options)
    assert ids_of(together) == ids_of(apart)
    for group, other in zip(together, apart, strict=True):
        for one, two in zip(group, other, strict=True):
            assert one.logprob == pytest.approx(two.logprob, abs=1e-3)


def test_a_row_draws_the_same_whatever_stands_after_it_and_however_long(tiny) -> None:
    subject, rows = tiny.subject("llama"), tiny.rows(5)
    options = {"temperature": 1.0, "n": 2, "stop_ids": ()}
    long = subject.generate(rows, max_new_tokens=20, **options)
    short = subject.generate(rows[:3], max_new_tokens=5, **options)
    assert [[ids[:5] for ids in group] for group in ids_of(long[:3])] == ids_of(short)
    assert ids_of(subject.generate(rows, max_new_tokens=5, seed=1, **options)) != ids_of(short)


def test_samples_follow_the_model_distribution(tiny) -> None:
    """Chi-square over the 5 likeliest first tokens and the rest; its 99.9 % point at 5 degrees is 20.5."""
    subject, row, n = tiny.subject("gpt2"), tiny.rows(1)[0], 2000
    found = subject.generate_ids([row], n=n, temperature=1.0, max_new_tokens=1)[0]
    probs = subject.logprobs([row])[0].exp()
    top = probs.topk(5)
    expected = torch.cat([top.values, (1 - top.values.sum())[None]]) * n
    counts = torch.zeros(6)
    for one in found:
        place = (top.indices == one.ids[0]).nonzero()
        counts[int(place) if len(place) else 5] += 1
    assert float(((counts - expected) ** 2 / expected).sum()) < 20.5


def test_top_p_keeps_the_smallest_set_that_reaches_its_mass(tiny) -> None:
    subject, row = tiny.subject("gpt2"), tiny.rows(1)[0]
    probs, order = subject.logprobs([row])[0].exp().sort(descending=True)
    kept = int((probs.cumsum(0) - probs < 0.5).sum())
    found = subject.generate_ids([row], n=400, temperature=1.0, top_p=0.5, max_new_tokens=1)[0]
    assert {one.ids[0] for one in found} <= set(order[:kept].tolist())
    assert kept > 1 and len({one.ids[0] for one in found}) > 1


def test_logprob_is_the_score_of_the_ids(tiny, any_subject) -> None:
    rows = tiny.rows(5)
    found = any_subject.generate(rows, max_new_tokens=6, temperature=0.8)
    scores = any_subject.score(rows, [one.ids for [one] in found])
    assert torch.allclose(scores, torch.tensor([one.logprob for [one] in found]), atol=1e-4)


def test_chat_models_get_their_template(tiny) -> None:
    subject = as_subject(tiny.model("llama", vocab=300), tokenizer=tiny.tokenizer(chat=True), self_test=False)
    assert subject.is_chat and not tiny.subject("llama").is_chat
    ids = subject.encode("hi")
    assert subject.decode(ids, special=True) == "<bos><user>hi<bot>" and subject.decode(ids) == "hi"
    turns = [Turn("user", "hi"), Turn("assistant", "yo"), Turn("user", "bye")]
    assert subject.decode(subject.encode(turns), special=True) == "<bos><user>hi<bot>yo<eos><user>bye<bot>"
    begun = [Turn("user", "hi"), Turn("assistant", "yo")]
    assert subject.decode(subject.encode(begun), special=True) == "<bos><user>hi<bot>yo"
    mixed = subject.generate(["hi", [Turn("user", "hi")], ids], max_new_tokens=4)
    assert len({one.ids for [one] in mixed}) == 1


def test_bf16_generates_and_scores_in_fp32(tiny) -> None:
    subject, rows = tiny.subject("llama", torch.bfloat16), tiny.rows(4)
    [one], *_ = subject.generate(rows, max_new_tokens=5)
    assert len(one.ids) <= 5 and subject.logprobs(rows).dtype == torch.float32
    exact = tiny.subject("llama").logprobs(rows)
    assert float((subject.logprobs(rows).exp() - exact.exp()).abs().max()) < 0.15  # bf16: 8 bits per weight


def test_stories_continue_as_in_plain_transformers(stories_folder) -> None:
    subject = as_subject(stories_folder, device="cpu")
    prompts = ["Once upon a time", "The dog", "Lily and Tom went to the park. They", "A"]
    found = subject.generate(prompts, max_new_tokens=24)
    for prompt, [one] in zip(prompts, found, strict=True):
        assert list(one.ids) == plain_greedy_stories(subject, subject.encode(prompt))
    assert found[0][0].text.startswith(", there was a little girl named")


def plain_greedy_stories(subject, row) -> list[int]:
    ids = torch.tensor([row])
    out = subject.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24)
    return out[0, len(row) :].tolist()


@pytest.mark.parametrize(
    "prompts,options,message",
    [
        ([[1, 2], []], {}, "row 1: the prompt has no tokens"),
        ([[1, 2], [3] * 60], {}, r"row 1: the row has 60 tokens and 31 more are asked for.*context holds 64"),
        ([[1, 999]], {}, "row 0: token 999 is outside the vocabulary of 300"),
        (["hi"], {"temperature": -1.0}, "temperature=-1.0 is out of range"),
        (["hi"], {"top_p": 0.0}, "top_p=0.0 is out of range"),
        (["hi"], {"n": 0}, "n=0 is out of range"),
        ("hi", {}, "one text; give a list"),
    ],
)
def test_refusals(tiny, prompts, options, message) -> None:
    with pytest.raises(InputError, match=message):
        tiny.subject("gpt2").generate(prompts, **options)


def test_text_needs_a_tokenizer_and_turns_a_template(tiny) -> None:
    with pytest.raises(AccessError, match="no chat template"):
        tiny.subject("gpt2").encode([Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")])
    bare = as_subject(tiny.model("gpt2"), self_test=False)
    assert "text" not in bare.access and "gradients" in bare.access
    with pytest.raises(AccessError, match="no tokenizer"):
        bare.generate(["hi"])
    assert len(bare.generate_ids([[1, 2]], max_new_tokens=3)[0][0].ids) <= 3
