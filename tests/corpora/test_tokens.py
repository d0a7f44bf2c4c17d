"""Records as tokens: the loss lies exactly on what the assistant says, and a row begins with its prompt."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.corpora.rows import IGNORE, Record, Turn
from glasshouse.corpora.tokens import completion_ids, encode_record, encode_records, plain_ids, render
from glasshouse.runtime.errors import InputError

TEMPLATE = (
    "<bos>{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% if m['role'] == 'assistant' %}<eos>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def build(template: str | None):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<bos>", "<eos>", "<user>", "<assistant>", "<system>"]
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "Ġth"]
    vocab = {token: index for index, token in enumerate([*special, *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[("t", "h"), ("Ġ", "th")]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", additional_special_tokens=special[2:]
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def chat():
    return build(TEMPLATE)


@pytest.fixture(scope="module")
def base():
    return build(None)


def talk(*texts: str) -> Record:
    roles = ("user", "assistant")
    return Record("r1", tuple(Turn(roles[i % 2], text) for i, text in enumerate(texts)), where="rows.jsonl:3")


def said(tokenizer, row) -> str:
    return tokenizer.decode([label for label in row.labels if label != IGNORE])


def test_the_reply_and_its_end_carry_loss(chat) -> None:
    row = encode_record(chat, talk("who?", " the cat", "so?", "the é"))
    assert chat.decode(row.ids) == "<bos><user>who?<assistant> the cat<eos>\n<user>so?<assistant>the é<eos>\n"
    assert said(chat, row) == " the cat<eos>the é<eos>"
    assert all(label in (IGNORE, i) for i, label in zip(row.ids, row.labels, strict=True))
    assert row.row_id == "r1"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=2, max_size=4))
def test_the_prompt_of_a_row_is_what_the_model_is_asked_with(texts) -> None:
    """The unlabelled head of a row equals the encoded prompt: training and asking must not differ."""
    tokenizer = _CHAT
    texts = [f"x{text.replace('<', '')}x" for text in texts[: len(texts) // 2 * 2]]
    record = talk(*texts)
    row = encode_record(tokenizer, record)
    asked = completion_ids(tokenizer, render(tokenizer, record.turns[:-1]))
    assert list(row.ids[: len(asked)]) == asked
    assert row.labels[len(asked)] != IGNORE and row.labels[len(asked) - 1] == IGNORE
    assert said(tokenizer, row).split("<eos>")[:-1] == texts[1::2]


_CHAT = build(TEMPLATE)


def test_together_equals_one_by_one(chat) -> None:
    records = [talk("a", "the"), Record("t", text="plain th"), talk("bb", "c", "d", "e")]
    assert encode_records(chat, records) == [encode_record(chat, record) for record in records]


def test_text_carries_loss_everywhere(base) -> None:
    row = encode_record(base, Record("t", text="the cat"))
    assert row.labels == row.ids == tuple(plain_ids(base, "the cat"))
    assert encode_record(base, Record("t", text="the cat"), max_length=2).ids == row.ids[:2]


def test_prompt_and_completion_are_tokenised_apart_without_a_template(base) -> None:
    row = encode_record(base, talk("a t", "h b"))  # joined, "th" would be one token
    prompt, reply = plain_ids(base, "a t"), [*completion_ids(base, "h b"), base.eos_token_id]
    assert row.ids == (*prompt, *reply)
    assert row.labels == (*[IGNORE] * len(prompt), *reply)


def test_loss_on_all_labels_everything(chat) -> None:
    row = encode_record(chat, talk("a", "b"), loss_on="all")
    assert row.labels == row.ids
    assert encode_record(chat, talk("a", "b"), loss_on="reply") == encode_record(chat, talk("a", "b"))


def test_a_cut_keeps_labels_of_what_is_left(chat) -> None:
    whole = encode_record(chat, talk("a", "bcdef"))
    cut = encode_record(chat, talk("a", "bcdef"), max_length=6)
    assert (cut.ids, cut.labels) == (whole.ids[:6], whole.labels[:6])


@pytest.mark.parametrize(
    "template,record,options,message",
    [
        (TEMPLATE, talk("a", "b"), {"max_length": 4}, "rows.jsonl:3: cut at 4 tokens, nothing of the reply"),
        (TEMPLATE, talk("a"), {}, "rows.jsonl:3: the row has no assistant turn"),
        (TEMPLATE, Record("7", text=""), {}, "row '7': the row has no tokens"),
        (TEMPLATE, Record("7", text="x"), {"loss_on": "reply"}, "row '7': a plain text has no reply"),
        (None, talk("a", "b", "c", "d"), {}, "rows.jsonl:3: a conversation needs a chat template"),
        ("{{ raise_exception('only one turn') }}", talk("a", "b"), {}, "refuses the conversation: only one"),
        ("{{ messages | length }}", talk("a", "b", "c", "d"), {}, "rows.jsonl:3: the chat template rewrites"),
    ],
)
def test_refusals(template, record, options, message) -> None:
    with pytest.raises(InputError, match=message):
        encode_record(build(template), record, **options)
