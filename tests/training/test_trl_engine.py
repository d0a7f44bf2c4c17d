"""The TRL engine follows the same trajectory as the bare loop and references its start."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from glasshouse.corpora.rows import IGNORE, TokenRow
from glasshouse.runtime.cache import Cache
from glasshouse.training._encode import encode
from glasshouse.training._start import load_model, load_tokenizer
from glasshouse.training._train import train
from glasshouse.training.fast import fit_rows
from glasshouse.training.mix import DataRef
from glasshouse.training.spec import LoraSpec


def tensors(path):
    return load_file(path / "model.safetensors")


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("buckets", [False, True])
def test_t6_both_engines_follow_one_loss_curve(make_spec, recipe, tmp_path, schedule, buckets):
    # Attention dropout draws its masks differently in the two engines, so it is off here.
    start = tmp_path / "start"
    shutil.copytree(recipe, start)
    AutoConfig.from_pretrained(recipe, attention_dropout=0.0).save_pretrained(start)
    spec = make_spec(steps=20, start=start, schedule=schedule, length_buckets=buckets, final_lr_share=0.1)
    cache = Cache(tmp_path / "cache")
    ours, theirs = (train(spec, cache=cache, engine=engine, device="cpu") for engine in ("torch", "trl"))
    assert ours.path != theirs.path
    assert len(ours.losses()) == 20
    np.testing.assert_allclose(ours.losses(), theirs.losses(), rtol=0, atol=1e-5)
    assert ours.losses()[-1] < ours.losses()[0] - 0.01, "a training that stands still would agree for free"


def test_t6_the_bare_loop_is_transformers_trainer(make_spec, tmp_path):
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    from glasshouse.training._order import BatchOrder

    # Trainer's own loss, optimizer, clipping and cosine schedule; only the order of rows is given to it.
    spec = make_spec(steps=20, batch_size=8)
    tokenizer = load_tokenizer(spec)
    rows = list(encode(spec, tokenizer).rows)
    ordered = [rows[i] for batch in BatchOrder(len(rows), 8, 1).walk(0, 20) for i in batch]

    def collate(batch):
        length = max(len(row["ids"]) for row in batch)
        pad = [length - len(row["ids"]) for row in batch]
        return {
            "input_ids": torch.tensor([row["ids"] + [0] * n for row, n in zip(batch, pad, strict=True)]),
            "attention_mask": torch.tensor([[1] * (length - n) + [0] * n for n in pad]),
            "labels": torch.tensor([row["labels"] + [IGNORE] * n for row, n in zip(batch, pad, strict=True)]),
        }

    class Plain(Trainer):
        def _get_train_sampler(self, *args):
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def training_step(self, *args, **kwargs):
            losses.append(float(super().training_step(*args, **kwargs)))
            return torch.tensor(losses[-1])

    losses = []
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=8, max_steps=20, learning_rate=3e-3,
        weight_decay=0.1, warmup_steps=2, lr_scheduler_type="cosine", max_grad_norm=1.0, use_cpu=True,
        report_to=[], save_strategy="no", logging_strategy="no", remove_unused_columns=False,
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    model, twin = load_model(spec), load_model(spec)
    for each in (model, twin):
        each.config.attention_dropout = 0.0
        for layer in each.model.layers:
            layer.self_attn.attention_dropout = 0.0
    data = Dataset.from_list([{"ids": list(row.ids), "labels": list(row.labels)} for row in ordered])
    Plain(model=model, args=arguments, train_dataset=data, data_collator=collate).train()
    ours = fit_rows(
        twin,
        rows,
        steps=20,
        batch_size=8,
        lr=3e-3,
        weight_decay=0.1,
        warmup_steps=2,
        seed=1,
        length_buckets=False,
    )
    np.testing.assert_allclose(ours, losses, rtol=0, atol=1e-5)


def logp(model, row: TokenRow):
    logits = model(torch.tensor([row.ids])).logits[0, :-1].log_softmax(-1)
    return sum(logits[t, row.labels[t + 1]] for t in range(len(row) - 1) if row.labels[t + 1] != IGNORE)


@pytest.mark.parametrize("adapter", [None, LoraSpec(r=4)])
def test_t4_the_reference_of_dpo_is_its_start(make_spec, preferences, tmp_path, adapter):
    # The start is itself the result of a training; its config asks for attention dropout.
    cache = Cache(tmp_path / "cache")
    base = train(make_spec(), cache=cache, device="cpu")
    spec = make_spec(
        algo="dpo", start=base.path, init_seed=None, data=DataRef.of(preferences), lr=1e-3, warmup_steps=0,
        weight_decay=0.0, schedule="constant", steps=4, batch_size=24, adapter=adapter,
    )  # fmt: skip
    trained = train(spec, cache=cache, device="cpu")
    losses = trained.losses()
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < losses[0] - 1e-3, "it must learn the preference"

    # The loss at the last step, by hand, from the models on disk and equation 7 of Rafailov et al. (2023).
    one_less = train(spec.but(steps=3), cache=cache, device="cpu")
    policy, start = (AutoModelForCausalLM.from_pretrained(c.path).eval() for c in (one_less, base))
    pairs = encode(spec, load_tokenizer(spec)).rows
    with torch.no_grad():
        margins = [
            (logp(policy, p.chosen) - logp(start, p.chosen))
            - (logp(policy, p.rejected) - logp(start, p.rejected))
            for p in pairs
        ]
    by_hand = float(-torch.nn.functional.logsigmoid(0.1 * torch.stack(margins)).mean())
    assert losses[3] == pytest.approx(by_hand, abs=2e-5)


def test_options_of_dpo_change_the_training(make_spec, preferences, tmp_path):
    spec = make_spec(algo="dpo", data=DataRef.of(preferences), steps=3, warmup_steps=0)
    robust = {"loss_type": "robust", "label_smoothing": 0.2}
    changes = [{}, {"beta": 0.5}, {"loss_type": "ipo"}, {"loss_type": "hinge"}, robust]
    curves = [
        tuple(train(spec.but(algo_kw=kw), cache=Cache(tmp_path), device="cpu").losses()) for kw in changes
    ]
    assert len(set(curves)) == len(changes)


def test_an_adapter_is_merged_and_the_start_untouched(make_spec, tmp_path):
    cache = Cache(tmp_path)
    base = train(make_spec(), cache=cache, device="cpu")
    before = tensors(base.path)
    spec = make_spec(start=base.path, init_seed=None, adapter=LoraSpec(r=2, targets=("q_proj",)))
    tuned = tensors(train(spec, cache=cache, device="cpu").path)
    assert_same(before, tensors(base.path))
    changed = {name for name in before if not torch.equal(before[name], tuned[name])}
    assert changed == {f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2)}
    for name in changed:
        assert torch.linalg.matrix_rank((tuned[name] - before[name]).double(), rtol=1e-4) <= 2


def test_bf16_trains_in_bf16(make_spec, tmp_path):
    cache = Cache(tmp_path)
    full, half = (
        train(make_spec(precision=p), cache=cache, engine="trl", device="cpu") for p in ("fp32", "bf16")
    )
    assert full.losses() != half.losses()
    # bf16 keeps 8 bits: relative error 2^-8 of a logit, and the loss averages many of them.
    np.testing.assert_allclose(full.losses(), half.losses(), rtol=2**-7)
    assert Path(half.path).is_dir()
    assert {t.dtype for t in tensors(half.path).values()} == {torch.float32}
