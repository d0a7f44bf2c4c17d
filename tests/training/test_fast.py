"""The bare loop computes what the textbook loop computes, whatever the batching, and resumes bit by bit."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.optimization import (
    get_cosine_with_min_lr_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from glasshouse.corpora.rows import IGNORE, TokenRow, pad
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, NumericalError, StaleError
from glasshouse.training._order import BatchOrder
from glasshouse.training._schedule import lr_factor
from glasshouse.training.fast import fit, fit_rows

VOCAB = 50


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def llama(seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config)


def gpt2(dropout=0.2):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=32, n_embd=32, n_layer=2, n_head=2,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def token_rows(n=40, seed=0):
    draw = np.random.default_rng(seed)
    rows = []
    for index in range(n):
        ids = tuple(int(i) for i in draw.integers(1, VOCAB, draw.integers(4, 16)))
        half = len(ids) // 2
        rows.append(TokenRow(ids, (IGNORE,) * half + ids[half:], f"r{index}"))
    return rows


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same_weights(a, b):
    return all(torch.equal(value, b[name]) for name, value in a.items())


# --- the order of rows


@pytest.mark.parametrize("buckets", [False, True])
@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (12, 4), (3, 8), (1, 1)])
def test_an_epoch_visits_each_row_once(n, batch_size, buckets):
    lengths = tuple(int(x) for x in np.random.default_rng(0).integers(1, 9, n)) if buckets else None
    order = BatchOrder(n, batch_size, 5, lengths)
    for number in range(3):
        batches = order.epoch(number)
        assert len(batches) == order.steps_per_epoch
        assert sorted(np.concatenate(batches)) == list(range(n))
        assert max(map(len, batches)) <= batch_size
        assert sum(len(batch) < batch_size for batch in batches) <= 1


def test_walking_from_the_middle_is_the_tail_of_the_walk():
    order = BatchOrder(10, 4, 0)
    whole = [tuple(rows) for rows in order.walk(0, 11)]
    for start in range(11):
        assert [tuple(rows) for rows in order.walk(start, 11)] == whole[start:]
    assert whole[:3] != whole[3:6], "epochs must differ"
    assert whole != [tuple(rows) for rows in BatchOrder(10, 4, 1).walk(0, 11)]


def test_length_buckets_hold_the_padding_floor():
    lengths = tuple([3] * 8 + [20] * 8)
    for number in range(5):
        for batch in BatchOrder(16, 4, 0, lengths).epoch(number):
            assert len({lengths[i] for i in batch}) == 1


# --- the schedule


def test_schedules_are_those_of_transformers():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    cosine = get_cosine_with_min_lr_schedule_with_warmup(optimizer, 3, 11, min_lr_rate=0.05).lr_lambdas[0]
    linear = get_linear_schedule_with_warmup(optimizer, 3, 11).lr_lambdas[0]
    for step in range(12):
        ours = lr_factor(step, schedule="cosine", steps=11, warmup_steps=3, final_share=0.05)
        assert ours == pytest.approx(cosine(step), abs=1e-12)
        assert lr_factor(step, schedule="linear", steps=11, warmup_steps=3) == pytest.approx(linear(step))
        assert lr_factor(step, schedule="constant", steps=11, warmup_steps=3) == min(1.0, step / 3)
    assert lr_factor(11, schedule="linear", steps=11, final_share=0.25) == 0.25


# --- the arithmetic


def textbook(model, rows, order, *, steps, lr, decay=0.0, clip=1.0, betas=(0.9, 0.999)):
    """The loop one would write first: padded batch, mask, the model's own loss, unfused AdamW."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=lr, betas=betas, foreach=False, fused=False
    )
    losses = []
    model.train()
    for indices in order.walk(0, steps):
        batch = pad([rows[i] for i in indices], pad_id=0)
        loss = model(**batch.model_inputs(), labels=batch.labels).loss
        optimizer.zero_grad()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


class Capped(LlamaForCausalLM):
    """A model whose logits are more than head(hidden): the trimmed forward would be wrong for it."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = 3 * torch.tanh(out.logits / 3) + 0.5 * torch.arange(VOCAB)
        if kwargs.get("labels") is not None:
            out.loss = self.loss_function(out.logits, kwargs["labels"], vocab_size=VOCAB)
        return out


@pytest.mark.parametrize("make", [llama, lambda: gpt2(0.0), lambda: Capped(llama().config)])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.3}, {"clip": 0.05}, {"clip": None}])
def test_losses_are_those_of_the_textbook_loop(make, options):
    rows = token_rows()
    ours, theirs = make(), make()
    theirs.load_state_dict(ours.state_dict())
    order = BatchOrder(len(rows), 8, 3, tuple(len(row) for row in rows))
    got = fit_rows(ours, rows, steps=12, batch_size=8, lr=1e-2, seed=3, schedule="constant", **options)
    named = {"decay" if key == "weight_decay" else key: value for key, value in options.items()}
    want = textbook(theirs, rows, order, steps=12, lr=1e-2, **named)
    # AdamW divides by sqrt(v): near-zero gradients amplify float32 rounding, so 1e-7 grows over the steps.
    np.testing.assert_allclose(got, want, rtol=2e-5)


def test_each_option_changes_the_training():
    rows = token_rows()
    base = {"steps": 6, "batch_size": 8, "lr": 1e-2, "seed": 0, "schedule": "constant"}
    changes = [
        {}, {"seed": 1}, {"weight_decay": 5.0}, {"clip": 0.01}, {"betas": (0.5, 0.9)}, {"schedule": "linear"},
        {"schedule": "cosine"}, {"schedule": "linear", "final_lr_share": 0.5}, {"warmup_steps": 3},
        {"length_buckets": False}, {"eps": 1e-2}, {"batch_size": 4}, {"autocast": torch.bfloat16},
    ]  # fmt: skip
    curves = [tuple(fit_rows(llama(), rows, **{**base, **change})) for change in changes]
    for (i, a), (j, b) in itertools.combinations(enumerate(curves), 2):
        assert a != b, f"{changes[i]} and {changes[j]} give the same curve"


def test_it_learns_a_learnable_rule():
    # Every label is the token before it plus one: a bigram table suffices, so the loss must approach 0.
    rows = [TokenRow(ids, (IGNORE, *ids[1:])) for ids in (tuple(range(s, s + 6)) for s in range(1, 40))]
    losses = fit_rows(llama(), rows, epochs=30, batch_size=8, lr=1e-2, warmup_steps=5)
    assert len(losses) == 30 * 5
    assert losses[0] == pytest.approx(math.log(VOCAB), abs=0.3)
    assert losses[-1] < 0.05


def test_order_and_padding_do_not_enter_the_loss_of_a_batch():
    rows = token_rows(8)
    whole = fit_rows(llama(), rows, steps=1, batch_size=8)[0]
    single = [fit_rows(llama(), [row], steps=1, batch_size=1)[0] for row in rows]
    tokens = [sum(label != IGNORE for label in row.labels) for row in rows]
    assert whole == pytest.approx(np.average(single, weights=tokens), rel=1e-6)
    assert whole == pytest.approx(fit_rows(llama(), rows[::-1], steps=1, batch_size=8)[0], rel=1e-6)


def test_any_module_and_loss_can_be_trained():
    draw = np.random.default_rng(0)
    x = torch.tensor(draw.normal(size=(30, 5)), dtype=torch.float32)
    y = (x.sum(1) > 0).long()

    def mlp():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))

    def loss(model, rows):
        return nn.functional.cross_entropy(model(x[rows]), y[rows])

    ours, theirs = mlp(), mlp()
    got = fit(ours, 30, loss, epochs=20, batch_size=7, lr=0.02, schedule="constant", clip=None)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.02, weight_decay=0.0)
    want = []
    for rows in BatchOrder(30, 7, 0).walk(0, 100):
        value = loss(theirs, torch.from_numpy(rows))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        want.append(float(value.detach()))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


# --- isolation and resume


def test_the_global_generators_neither_matter_nor_move():
    rows = token_rows()
    first = fit_rows(gpt2(), rows, steps=4, batch_size=8)
    model = gpt2()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    second = fit_rows(model, rows, steps=4, batch_size=8, callbacks=[lambda *_: torch.manual_seed(5)])
    assert first == second, "neither the state before nor what a callback draws may matter"
    assert torch.equal(before, torch.get_rng_state())
    assert first != fit_rows(gpt2(0.0), rows, steps=4, batch_size=8), "dropout must be on"


class Killed(Exception):
    pass


@pytest.mark.parametrize("stage", ["before", "after"])
@pytest.mark.parametrize("write", [0, 1, 2])
def test_t1_a_killed_training_resumes_bit_by_bit(tmp_path, monkeypatch, stage, write):
    rows, settings = token_rows(), {"steps": 10, "batch_size": 8, "lr": 1e-2, "warmup_steps": 2}
    straight = gpt2()
    want = fit_rows(straight, rows, **settings)
    writes = itertools.count()

    def kill(at, path):
        if at == stage and next(writes) == write:
            raise Killed

    monkeypatch.setattr(files, "fault_hook", kill)
    checkpoints = {"checkpoint_dir": tmp_path, "save_every": 3}
    with pytest.raises(Killed):
        fit_rows(gpt2(), rows, **settings, **checkpoints)
    monkeypatch.setattr(files, "fault_hook", None)
    steps_run = []
    resumed = gpt2()
    got = fit_rows(
        resumed, rows, **settings, **checkpoints, callbacks=[lambda s, loss, m: steps_run.append(s)]
    )
    assert got == want
    assert same_weights(weights(straight), weights(resumed))
    saved = 3 * (write + (stage == "after"))
    assert [s for s in steps_run if s] == list(range(saved + 1, 11)), "it must repeat no step before the save"
    assert not list(tmp_path.glob(".*.part"))


def test_tied_and_frozen_parameters_resume_too(tmp_path):
    def make():
        model = gpt2()  # its embedding and head are one tensor
        model.transformer.h[0].requires_grad_(False)
        return model

    rows = token_rows()
    straight, resumed = make(), make()
    want = fit_rows(straight, rows, steps=6, batch_size=8, seed=1)

    def stop(step, loss, model):
        if step == 4:
            raise Killed

    options = {"steps": 6, "batch_size": 8, "seed": 1, "checkpoint_dir": tmp_path, "save_every": 2}
    with pytest.raises(Killed):
        fit_rows(make(), rows, callbacks=[stop], **options)
    assert fit_rows(resumed, rows, **options) == want
    assert same_weights(weights(straight), weights(resumed))
    assert torch.equal(resumed.transformer.h[0].mlp.c_fc.weight, make().transformer.h[0].mlp.c_fc.weight)


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    rows = token_rows()
    options = {"steps": 4, "batch_size": 8, "checkpoint_dir": tmp_path, "save_every": 2}
    fit_rows(llama(), rows, lr=1e-3, **options)
    with pytest.raises(StaleError, match=r"lr 0\.001 -> 0\.01"):
        fit_rows(llama(), rows, lr=1e-2, **options)
    with pytest.raises(StaleError, match="data"):
        fit_rows(llama(), [*rows[1:], rows[0]], lr=1e-3, **options)


# --- refusals


@pytest.mark.parametrize(
    ("rows", "settings", "says"),
    [
        ([], {"steps": 1}, "no rows"),
        ([TokenRow((1, 2), (1, IGNORE), "seven")], {"steps": 1}, "row 'seven': no token"),
        ([TokenRow((1, 2), (1, 2))], {}, "exactly one"),
        ([TokenRow((1, 2), (1, 2))], {"steps": 1, "epochs": 1}, "exactly one"),
        ([TokenRow((1, 2), (1, 2))], {"steps": 0}, "0 steps"),
        ([TokenRow((1, 2), (1, 2))], {"steps": 1, "batch_size": 0}, "batch_size"),
        ([TokenRow((1, 2), (1, 2))], {"steps": 1, "schedule": "sine"}, "sine"),
    ],
)
def test_bad_input_is_said_before_training(rows, settings, says):
    with pytest.raises(InputError, match=says):
        fit_rows(llama(), rows, **settings)


def test_a_frozen_model_and_a_nan_are_errors():
    with pytest.raises(InputError, match="no trainable"):
        fit_rows(llama().requires_grad_(False), token_rows(), steps=1)
    model = llama()
    before = weights(model)
    with pytest.raises(NumericalError, match="step 0"):
        fit(model, 4, lambda m, rows: m.lm_head.weight.sum() * math.nan, steps=2)
    assert same_weights(before, weights(model)), "a NaN must not reach the weights"


def test_callbacks_see_step_zero_and_may_change_the_mode():
    seen = []

    def look(step, loss, model):
        seen.append((step, loss))
        model.eval()

    losses = fit_rows(gpt2(), token_rows(), steps=3, batch_size=8, callbacks=[look])
    assert seen == [(0, None), *zip((1, 2, 3), losses, strict=True)]
    assert losses == fit_rows(gpt2(), token_rows(), steps=3, batch_size=8)
