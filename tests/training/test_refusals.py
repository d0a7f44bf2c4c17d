"""Whatever a training cannot use is refused by its place: the row and the column [training/t5]."""

import math

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig

from glasshouse.corpora.rows import Record, Turn
from glasshouse.runtime.cache import Cache
from glasshouse.runtime.errors import InputError
from glasshouse.training._train import train
from glasshouse.training.mix import DataRef


def chat(prompt, reply, **fields):
    return Record(
        "seven", turns=(Turn("user", prompt), Turn("assistant", reply)), fields=fields, where="d.jsonl:7"
    )


def ask(prompt, **fields):
    return Record("seven", turns=(Turn("user", prompt),), fields=fields, where="d.jsonl:7")


def length(rollouts):
    return [float(len(r.completion_ids)) for r in rollouts]


def reads_a_column(rollouts):
    return [float(r.column("score")) for r in rollouts]


def nan_for_one(rollouts):
    return [math.nan if r.row.id == "seven" else 0.0 for r in rollouts]


def infinite(rollouts):
    return torch.full((len(rollouts),), torch.inf)


def one_too_few(rollouts):
    return length(rollouts)[1:]


def none_for_some(rollouts):
    return [None for _ in rollouts]


ROWS = [
    # wrong columns
    ("sft", ask("w1"), None, "d.jsonl:7 column 'completion': the last turn is the user's"),
    ("dpo", ask("w1", chosen="w2"), None, "d.jsonl:7 column 'rejected': the column is missing"),
    ("reward", ask("w1", chosen="w2"), None, "d.jsonl:7 column 'rejected': the column is missing"),
    ("reward", ask("w1", chosen="w2", rejected=3), None, "column 'rejected': the column holds a int"),
    ("grpo", chat("w1", "w2"), length, "d.jsonl:7 column 'prompt': a prompt to complete is"),
    ("rloo", Record("seven"), length, "row 'seven' column 'prompt': a prompt to complete is"),
    ("rloo", ask("w1"), reads_a_column, "column 'score': the column is missing"),
    ("sft", Record("seven"), None, "row 'seven' column 'turns'"),
    ("dpo", chat("w1", "w2", chosen="w2", rejected="w3"), None, "column 'prompt': a preference needs turns"),
    # nothing there
    ("sft", Record("seven", text="  "), None, "row 'seven' column 'text': the text is empty"),
    ("sft", Record("seven", text="w1"), None, "column 'completion': no token of the row carries"),
    ("sft", chat("w1", " "), None, "d.jsonl:7 column 'completion': the completion is empty"),
    ("dpo", ask("w1", chosen="", rejected="w3"), None, "column 'chosen': the completion is empty"),
    ("reward", ask("w1", chosen="w3", rejected=" "), None, "column 'rejected': the completion is empty"),
    ("grpo", ask(" "), length, "d.jsonl:7 column 'prompt': the prompt is empty"),
    # too long
    ("sft", chat("w1 " * 20, "w2"), None, "column 'prompt': the prompt has 20 tokens and max_length is 16"),
    ("dpo", ask("w1 " * 20, chosen="w2", rejected="w3"), None, "column 'prompt': the prompt has 20 tokens"),
    ("reward", ask("w1 " * 20, chosen="w2", rejected="w3"), None, "column 'prompt': the prompt has 20"),
    ("grpo", ask("w1 " * 13), length, "column 'prompt': the prompt has 13 tokens, a completion up to 4"),
    # rewards
    ("grpo", ask("w1"), nan_for_one, "d.jsonl:7 column 'reward': the reward of"),
    ("rloo", ask("w1"), infinite, "column 'reward': the reward of"),
    ("rloo", ask("w1"), none_for_some, "is None, not a finite number"),
    ("grpo", ask("w1"), one_too_few, "column 'reward': the reward gave 5 values for 6 completions"),
    # the tokenizer
    ("sft", "no pad token", None, "start: the tokenizer has no pad token"),
    ("reward", "no pad token", None, "start: the tokenizer has no pad token"),
    ("grpo", "no pad token", length, "start: the tokenizer has no pad token"),
    ("rloo", "no end token", length, "start: neither tokenizer nor model has an end token"),
]


@pytest.mark.parametrize(("algo", "row", "reward", "says"), ROWS)
def test_t5_what_cannot_be_used_is_named_by_row_and_column(
    make_spec, recipe, records, preferences, tmp_path, algo, row, reward, says
):
    good = preferences if algo in ("dpo", "reward") else records
    if algo in ("grpo", "rloo"):
        good = [Record(r.id, turns=r.turns[:1], where="d.jsonl:1") for r in records]
    start, rows = recipe, [*good[:2], row]
    if isinstance(row, str):
        start, rows = without(row, recipe, tmp_path / "start"), good[:3]
    options = {"num_generations": 2, "max_new_tokens": 4} if reward else {}
    spec = make_spec(
        algo=algo, start=start, data=DataRef.of(rows), max_length=16, algo_kw=options, batch_size=3
    )
    seen, rest = [], {} if reward is None else {"reward": reward}
    with pytest.raises(InputError) as error:
        train(
            spec, cache=Cache(tmp_path / "c"), device="cpu", callbacks=[lambda s, *_: seen.append(s)], **rest
        )
    assert isinstance(error.value, ValueError) and says in str(error.value)
    assert set(seen) <= {0}, "no step is done"
    assert Cache(tmp_path / "c").ls() == []


def without(token, recipe, folder):
    tokenizer = AutoTokenizer.from_pretrained(recipe)
    setattr(tokenizer, {"no pad token": "pad_token", "no end token": "eos_token"}[token], None)
    tokenizer.save_pretrained(folder)
    ends = {"eos_token_id": None} if token == "no end token" else {}
    LlamaConfig.from_pretrained(recipe, **ends).save_pretrained(folder)
    return folder
