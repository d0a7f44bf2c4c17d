"""Scores equal a plain full forward pass, shared prompt or not, in any batch."""

import pytest
import torch

from glasshouse.runtime.errors import InputError
from glasshouse.subjects import BoundaryMergeError, as_subject


def naive(subject, prompt, completion) -> torch.Tensor:
    with torch.no_grad():
        logits = subject.model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].float()
    logprobs = logits.log_softmax(-1)
    at = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
    return torch.stack([logprobs[t, token] for t, token in zip(at, completion, strict=True)])


def test_score_equals_a_full_forward_pass(tiny, any_subject) -> None:
    prompts, completions = tiny.rows(9), tiny.rows(9, seed=1, low=1)
    expected = [naive(any_subject, p, c) for p, c in zip(prompts, completions, strict=True)]
    found = any_subject.score(prompts, completions, per_token=True)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5 * float(two.abs().max()))
    total = any_subject.score(prompts, completions)
    torch.testing.assert_close(total, torch.stack([one.sum() for one in expected]), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 64, 16384])
def test_a_shared_prompt_gives_the_same_scores(tiny, any_subject, batch_tokens) -> None:
    prompt = tiny.rows(1, seed=3, low=40, high=44)[
        0
    ]  # long enough that it is run once and its cache repeated
    completions = [[5], *tiny.rows(10, seed=4, low=1, high=12), [7]]
    prompts = [prompt] * 11 + [prompt[:5]]
    expected = torch.stack(
        [naive(any_subject, p, c).sum() for p, c in zip(prompts, completions, strict=True)]
    )
    found = any_subject.score(prompts, completions, batch_tokens=batch_tokens)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_logprobs_equal_the_last_row_of_a_full_pass(tiny, any_subject) -> None:
    rows = tiny.rows(20)
    with torch.no_grad():
        expected = torch.stack(
            [any_subject.model(input_ids=torch.tensor([row])).logits[0, -1].log_softmax(-1) for row in rows]
        )
    for batch_tokens in (1, 100, 8192):
        found = any_subject.logprobs(rows, batch_tokens=batch_tokens)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    back = any_subject.logprobs(rows[::-1]).flip(0)
    torch.testing.assert_close(back, expected, rtol=1e-5, atol=1e-4)


def test_results_may_be_learned_from(tiny) -> None:
    rows = tiny.rows(3)
    weight = torch.ones(300, requires_grad=True)
    (tiny.subject("gpt2").logprobs(rows) @ weight).sum().backward()
    assert weight.grad is not None


def test_training_mode_is_left_as_it_was(tiny) -> None:
    subject = tiny.subject("gpt2")
    expected = subject.logprobs(tiny.rows(3))
    subject.model.train()
    try:
        assert torch.equal(subject.logprobs(tiny.rows(3)), expected)  # GPT-2 has dropout 0.1
        assert all(module.training for module in subject.model.modules())
    finally:
        subject.model.eval()


def test_a_text_beside_ids_is_tokenised_apart(tiny) -> None:
    subject = tiny.subject("gpt2")
    ids = [subject.encode("a t"), subject.encode("h b")]
    found = subject.score(ids[:1], ids[1:])
    assert torch.equal(found, subject.score(ids[:1], ["h b"]))
    assert torch.equal(found, subject.score(["a t"], ids[1:]))


def piece_tokenizer():
    """Pieces that begin with the space before a word, put before the first word of every text, too."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [
        "<bos>",
        "\u2581",
        "\u2581a",
        "\u2581is",
        "\u2581red",
        ".",
        "r",
        "e",
        "d",
        "re",
        "red",
        "i",
        "s",
        "a",
        "is",
    ]
    merges = ["r e", "re d", "i s", "\u2581 a", "\u2581 is", "\u2581 red"]
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, [tuple(m.split()) for m in merges])
    inner = Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>")


def test_a_text_is_tokenised_as_it_stands_after_its_prompt(tiny) -> None:
    subject = as_subject(tiny.subject("gpt2").model, tokenizer=piece_tokenizer())
    names = subject.tokenizer.convert_ids_to_tokens
    [(before, after)] = subject.encode_pairs(["a is"], [" red."])
    assert names(before) == ["\u2581a", "\u2581is"] and names(after) == ["\u2581red", "."]
    [(_, dot)] = subject.encode_pairs(["a is"], ["."])
    assert names(dot) == ["."] and names(subject.encode(".")) == ["\u2581", "."]  # apart, a space comes along
    assert subject.score(["a is"], ["."]).tolist() == subject.score([before], [dot]).tolist()
    assert subject.score(["a is"], ["."]).tolist() != subject.score([before], [subject.encode(".")]).tolist()
    with pytest.raises(BoundaryMergeError, match=r"pair 1: .*share the token '\u2581red'; move the space"):
        subject.score(["a", "a "], [" is", "red"])


def test_a_stories_score_is_that_of_the_joint_text(stories_folder) -> None:
    subject = as_subject(stories_folder, device="cpu")
    start, end = "Once upon a time, there was", " a little girl named Lily."
    whole, before = subject.encode(start + end), subject.encode(start)
    [found] = subject.score([start], [end])
    assert whole[: len(before)] == before
    assert float(found) == pytest.approx(float(naive(subject, before, whole[len(before) :]).sum()), abs=1e-4)
    assert float(found) > float(subject.score([before], [end])[0]) + 5  # apart: another first piece


@pytest.mark.parametrize(
    "prompts,completions,message",
    [
        ([[1]], [[1], [2]], "1 prompts but 2 completions"),
        ([[1], [1]], [[1], []], "pair 1: the completion has no tokens"),
        ([[1] * 60], [[2] * 10], "row 0: the row has 69 tokens, but the model's context holds 64"),
        ([[1]], [[2, 400]], "token 400"),
    ],
)
def test_refusals(tiny, prompts, completions, message) -> None:
    with pytest.raises(InputError, match=message):
        tiny.subject("gpt2").score(prompts, completions)
