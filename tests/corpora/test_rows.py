"""Token rows and batches: masks, position ids and indices agree with brute force on either side."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glasshouse.corpora.rows import IGNORE, Record, TokenRow, Turn, length_buckets, pad, rows_to_padded
from glasshouse.runtime.errors import InputError

Side = Literal["left", "right"]
SIDES: list[Side] = ["left", "right"]
ROWS = [
    TokenRow((5, 6, 7), (IGNORE, 6, 7), "a"),
    TokenRow((8,), (8,), "b"),
    TokenRow((1, 2, 3, 4), (IGNORE, IGNORE, IGNORE, 4), "c"),
]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("multiple", [1, 3, 8])
@pytest.mark.parametrize("pad_id", [0, 5])
def test_every_row_is_found_in_its_batch(side: Side, multiple: int, pad_id: int) -> None:
    batch = pad(ROWS, side=side, multiple=multiple, pad_id=pad_id)
    assert len(batch) == 3 and batch.row_ids == ("a", "b", "c")
    length = batch.input_ids.shape[1]
    assert length % multiple == 0 and length - multiple < 4 <= length
    for index, row in enumerate(ROWS):
        real = batch.attention_mask[index].bool()
        assert batch.input_ids[index][real].tolist() == list(row.ids)
        assert batch.labels[index][real].tolist() == list(row.labels)
        assert batch.position_ids[index][real].tolist() == list(range(len(row)))
        assert (real.flip(0) if side == "left" else real)[: len(row)].all()
        assert (batch.input_ids[index][~real] == pad_id).all() and (
            batch.labels[index][~real] == IGNORE
        ).all()
    assert set(batch.model_inputs()) == {"input_ids", "attention_mask", "position_ids"}
    assert torch.equal(batch.to("cpu").labels, batch.labels)


@pytest.mark.parametrize("side", SIDES)
def test_positions_in_rows_are_positions_in_the_batch(side: Side) -> None:
    batch = pad(ROWS, side=side, multiple=8)
    wanted = torch.tensor([[0, 2, -1, -3], [0, 0, -1, -1], [3, 1, -4, -2]])
    found = batch.input_ids.gather(1, rows_to_padded(wanted, batch))
    expected = [[row.ids[i] for i in at] for row, at in zip(ROWS, wanted.tolist(), strict=True)]
    assert found.tolist() == expected


@pytest.mark.parametrize("outside", [1, 7, -2])
def test_a_position_outside_its_row_is_refused(outside: int) -> None:
    for side in SIDES:
        with pytest.raises(InputError, match="outside its row"):
            rows_to_padded(torch.tensor([[0], [outside], [0]]), pad(ROWS, side=side))


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_buckets_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = length_buckets(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[index] for index in batch)
        assert padded <= budget or len(batch) == 1
    assert batches == length_buckets(lengths, budget)


def test_rows_without_tokens_or_with_torn_labels_are_refused() -> None:
    with pytest.raises(InputError, match="row 'x'"):
        TokenRow((), (), "x")
    with pytest.raises(InputError, match="2 ids but 1 labels"):
        TokenRow((1, 2), (1,))
    with pytest.raises(InputError, match="no rows"):
        pad([])


def test_what_a_record_says() -> None:
    record = Record("0", (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")))
    assert (record.plain, record.said("user"), record.said("system")) == ("a\nb\nc", "a\nc", "")
    assert record == Record("0", record.turns, fields={"kept": 1}, where="elsewhere:3")
