"""The two-line log of a training loop: the same losses to the bit, the same sketches as LoGra's."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attribution_models import VOCAB, tiny_gpt2, token_rows
from torch import nn

from glasshouse.attribution import GradientLog, LoGra, load_log, patch_trainer
from glasshouse.attribution.logra import RankWarning, recording
from glasshouse.corpora.rows import pad
from glasshouse.runtime.errors import (
    InputError,
    NumericalError,
    ReductionError,
    RunError,
    StaleError,
    UntrackedModuleError,
)

PLAIN = """
import torch
from torch import nn
{imports}
torch.manual_seed(0)
X, y = torch.randn(48, 6), torch.randint(0, 3, (48,))
model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
losses = []
{attach}
for rows in torch.randperm(48).split(8):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(X[rows]), y[rows])
    {backward}
    optimizer.step()
    losses.append(loss.item())
"""

TRAINER = """
import torch
import transformers
{imports}
from attribution_models import VOCAB, tiny_gpt2

def rows(count, seed):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCAB, (count, 9), generator=g)
    return [{{"input_ids": r.tolist(), "labels": r.tolist(), "attention_mask": [1] * 9}} for r in ids]

model = {model}
args = transformers.TrainingArguments(
    output_dir=folder, num_train_epochs=2, per_device_train_batch_size=4, per_device_eval_batch_size=5,
    logging_steps=1, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, seed=0,
)
trainer = {trainer}(model=model, args=args, train_dataset=rows(12, 0))
trainer.train()
{extract}
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
"""

PEFT = (
    "peft.get_peft_model(tiny_gpt2(), "
    "peft.LoraConfig(r=2, target_modules=['c_fc'], lora_dropout=0.0, fan_in_fan_out=True))"
)


def run(script: str, folder: Path) -> dict[str, Any]:
    space: dict[str, Any] = {"folder": str(folder)}
    with torch.random.fork_rng():
        exec(compile(script, "script", "exec"), space)
    return space


def changed(before: str, after: str) -> int:
    """Lines that differ: a changed line counts once, as do an added and a removed one."""
    found = 0
    matcher = difflib.SequenceMatcher(None, before.splitlines(), after.splitlines())
    for tag, i, j, k, m in matcher.get_opcodes():
        found += 0 if tag == "equal" else max(j - i, m - k)
    return found


def test_a_plain_script_becomes_a_logging_script(tmp_path: Path) -> None:
    """[logra/t7a, t7b] Three changed lines; the training losses are the same to the bit."""
    before = PLAIN.format(imports="", backward="loss.backward()", attach="")
    after = PLAIN.format(
        imports="from glasshouse.attribution import GradientLog",
        backward="with log.record(ids=rows, divided_by=len(rows)): loss.backward()",
        attach="log = GradientLog(3).attach(model)",
    )
    assert changed(before, after) <= 3
    plain, logged = run(before, tmp_path), run(after, tmp_path)
    assert plain["losses"] == logged["losses"] and len(plain["losses"]) == 6
    for a, b in zip(plain["model"].parameters(), logged["model"].parameters(), strict=True):
        assert torch.equal(a, b)
    assert logged["log"].self_score().shape == (48,) and logged["log"].about_["weights_moved"]


@pytest.mark.parametrize("kind", ["trainer", "peft"])
def test_a_trainer_script_becomes_a_logging_script(kind: str, tmp_path: Path) -> None:
    """[logra/t7a, t7b] The same for transformers' Trainer and for a LoRA-adapted model."""
    imports = "import peft\n" if kind == "peft" else ""
    model = PEFT if kind == "peft" else "tiny_gpt2()"
    before = TRAINER.format(imports=imports, model=model, trainer="transformers.Trainer", extract="")
    after = TRAINER.format(
        imports=imports + "from glasshouse.attribution import patch_trainer", model=model,
        trainer="patch_trainer(transformers.Trainer, rank=2)", extract="log = trainer.extract_log()",
    )  # fmt: skip
    assert changed(before, after) <= 3
    plain, logged = run(before, tmp_path), run(after, tmp_path)
    assert plain["losses"] == logged["losses"] and len(plain["losses"]) == 6
    trainer, log = logged["trainer"], logged["log"]
    names = [name for name in log.about_["modules"]]
    assert all("lora_" in name for name in names) if kind == "peft" else names
    assert log.about_["reduction"] == "divided" and not log.about_["weights_moved"]
    assert trainer.self_influence().shape == (12,)
    table = trainer.influence(logged["rows"](3, 5))
    assert table.scores.shape == (3, 12) and table.query_ids[1] == "query 1"
    top = trainer.influence(logged["rows"](3, 5), top_k=4)
    assert top.top(1, 4) == table.top(1, 4)
    # A training row asked about itself: nothing raises its log-probability more, per unit of self-influence.
    own = trainer.influence(logged["rows"](12, 0))
    assert (own.scores.argmax(1) == np.arange(12)).mean() > 0.9
    for p in trainer.model.parameters():
        p.data.mul_(1.01)
    with pytest.raises(StaleError, match="another model hash"):
        trainer.influence(logged["rows"](3, 5))


def language_batch(n: int = 6):
    rows = token_rows(n)
    batch = pad(rows)
    return rows, batch


def summed(model, batch):
    from glasshouse.attribution.objectives import TokenLoss

    return TokenLoss()(model, batch).sum()


@pytest.mark.parametrize("branch", [False, True])
@pytest.mark.parametrize("curvature", ["raw", "ekfac"])
def test_the_log_of_a_loop_is_the_log_of_the_method(branch: bool, curvature: str) -> None:
    model, rows = tiny_gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0).train(), token_rows(6)
    log = GradientLog(3, branch=branch, curvature=curvature, dtype="float32")
    with log.attach(model):
        for part in (slice(0, 4), slice(4, 6)):
            piece = pad(rows[part])
            loss = summed(model, piece)  # the forward pass may lie outside the block
            with log.record(piece.row_ids, mask=piece.attention_mask):
                loss.backward()
    method = LoGra(3, curvature=curvature, dtype="float32").fit(tiny_gpt2(), rows)
    vectors = method.log_.vectors()
    assert np.abs(log.finalize().log_.vectors() - vectors).max() < 1e-4 * np.abs(vectors).max()
    asked = log.for_queries()
    with asked.attach(model), asked.record(["a", "b"]):
        summed(model, pad(rows[:2])).backward()
    expected = method.score(rows[:2], "completion_logprob").scores
    assert np.abs(log.score(asked).scores - expected).max() < 1e-3 * np.abs(expected).max()
    assert np.allclose(log.score(asked, of="loss").scores, -log.score(asked).scores)
    assert log.score(asked, of="loss").is_loss
    assert np.abs(log.self_score() - method.self_score()).max() < 1e-3 * method.self_score().max()
    assert not model._forward_hooks and not any(m._forward_hooks for m in model.modules())


def test_principal_directions_are_measured_first() -> None:
    model, (rows, batch) = tiny_gpt2(), language_batch()
    log = GradientLog(3, init="pca", dtype="float32").attach(model)
    with pytest.raises(InputError, match="no covariance yet"), log.record(batch.row_ids):
        pass
    with log.measure(batch.attention_mask):
        summed(model, batch).backward()
    with log.record(batch.row_ids, mask=batch.attention_mask):
        summed(model, batch).backward()
    method = LoGra(3, init="pca", dtype="float32").fit(tiny_gpt2(), rows)
    asked = log.for_queries().attach(model) if log.finalize() else None
    with asked.record(["a"]):
        summed(model, pad(rows[:1])).backward()
    expected = method.score(rows[:1]).scores
    assert np.abs(log.score(asked).scores - expected).max() < 1e-3 * np.abs(expected).max()
    with pytest.raises(InputError, match='init="pca"'), GradientLog(3).measure():
        pass


def mlp_log(**options) -> tuple[GradientLog, nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    log = GradientLog(**{"rank": 2, **options}).attach(model)
    return log, model, torch.randn(12, 6), torch.randint(0, 3, (12,))


def entropy(model, X, y, reduction="sum"):
    return nn.functional.cross_entropy(model(X), y, reduction=reduction)


def test_attaching_twice_is_refused() -> None:
    log, model, *_ = mlp_log()
    with pytest.raises(InputError, match="attached already"):
        log.attach(model)
    with pytest.raises(InputError, match="another log is attached"):
        GradientLog(2).attach(model)
    log.detach()
    GradientLog(2).attach(model).detach()


def test_a_mean_is_seen_and_a_wrong_divisor_too() -> None:
    log, model, X, y = mlp_log()
    with pytest.raises(ReductionError, match="divided by 12"), log.record(range(12)):
        entropy(model, X, y, "mean").backward()
    with pytest.raises(ReductionError, match="divided by 12"), log.record(range(12), divided_by=11):
        entropy(model, X, y, "mean").backward()
    with log.record(range(12), divided_by=12):
        entropy(model, X, y, "mean").backward()
    log.detach()
    whole, *_ = mlp_log()
    with whole.record(range(12)):
        entropy(whole.model_, X, y).backward()
    a, b = log.finalize().log_.vectors(), whole.finalize().log_.vectors()
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-3 * np.abs(b).max())
    for loss in (lambda z: (z**2).mean(), lambda z: nn.functional.mse_loss(z, torch.zeros_like(z))):
        squared, model, X, y = mlp_log()
        with pytest.raises(ReductionError, match="is a mean"), squared.record(range(12)):
            loss(model(X)).backward()
        with squared.record(range(12)):
            (model(X) ** 2).sum().backward()
        assert squared.finalize().about_["reduction"] == "unseen"


def test_modules_without_gradient_are_listed() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.read = nn.Linear(6, 3), nn.Linear(3, 3)

        def forward(self, x):
            return nn.functional.linear(self.used(x), self.read.weight)

    model = Functional()
    log = GradientLog(2).attach(model)
    with pytest.raises(UntrackedModuleError, match="no gradient to read"), log.record(range(4)):
        entropy(model, torch.randn(4, 6), torch.arange(4) % 3).backward()


@pytest.mark.parametrize(
    ("options", "says"),
    [({"seed": 1}, "another seed"), ({"rank": 3}, "another rank"), ({"modules": ["0"]}, "another modules"),
     ({"init": "kaiming"}, "another init")],
)  # fmt: skip
def test_queries_of_another_log_are_refused(options, says) -> None:
    log, model, X, y = mlp_log()
    with log.record(range(12)):
        entropy(model, X, y).backward()
    log.finalize()
    other = GradientLog(**{"rank": 2, **options}).attach(model)
    with other.record(["q"]):
        entropy(model, X[:1], y[:1]).backward()
    with pytest.raises(StaleError, match=says):
        log.score(other)


def test_queries_of_another_model_are_refused() -> None:
    log, model, X, y = mlp_log()
    with log.record(range(12)):
        entropy(model, X, y).backward()
    log.finalize()
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    asked = log.for_queries().attach(model)
    with asked.record(["q"]):
        entropy(model, X[:1], y[:1]).backward()
    with pytest.raises(StaleError, match="another model hash"):
        log.search(asked, 3)


def test_repeated_rows_and_wrong_calls_are_refused() -> None:
    log, model, X, y = mlp_log()
    with log.record(range(6)):
        entropy(model, X[:6], y[:6]).backward()
    for ids in ([5, 6], [7, 7]):
        with pytest.raises(InputError, match="recorded before"), log.record(ids):
            entropy(model, X[:2], y[:2]).backward()
    with pytest.raises(UntrackedModuleError, match="12 rows in a batch of 5 ids"), log.record(range(20, 25)):
        entropy(model, X, y).backward()
    with pytest.raises(InputError, match="no ids"), log.record([]):
        pass
    with pytest.raises(InputError, match="divided_by"), log.record([9], divided_by=0):
        pass
    log.detach()
    with pytest.raises(InputError, match="not attached"), log.record([9]):
        pass
    with pytest.raises(InputError, match="nothing was recorded"):
        GradientLog(2).finalize()
    with pytest.raises(InputError, match="finished"):
        log.finalize().attach(model)


def test_dropout_is_refused_or_noted() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 3)).train()
    X, y = torch.randn(4, 6), torch.arange(4) % 3
    strict, lax = GradientLog(2), GradientLog(2, noise="allow")
    with strict.attach(model), pytest.raises(InputError, match="random"), strict.record(range(4)):
        entropy(model, X, y).backward()
    with lax.attach(model), lax.record(range(4)):
        entropy(model, X, y).backward()
    assert lax.finalize().about_["noisy"] == ["1"]


def test_overflow_and_nan_name_row_and_module() -> None:
    log, model, X, y = mlp_log(scaling="none", noise="allow")
    X[3] *= 1e8
    beyond = pytest.raises(NumericalError, match=r"row '3' reaches .* beyond float16")
    with beyond as error, log.record(range(12)):
        entropy(model, X, y).backward()
    assert "'0'" in str(error.value) and "bfloat16" in str(error.value)
    log.detach()
    wide = GradientLog(2, scaling="none", dtype="bfloat16").attach(model)
    with wide.record(range(12)):
        entropy(model, X, y).backward()
    X[2] = float("nan")
    with pytest.raises(NumericalError, match="row '14'"), wide.record(range(12, 24)):
        entropy(model, X, y).backward()


def test_quantised_base_weights_are_fine() -> None:
    """Only a and g are needed: an int8 layer below a trained one is logged when it is named."""

    class Int8(nn.Module):
        def __init__(self, inner: nn.Linear) -> None:
            super().__init__()
            self.in_features, self.out_features, self.bias = inner.in_features, inner.out_features, None
            self.scale = float(inner.weight.detach().abs().max()) / 127
            whole = (inner.weight.detach() / self.scale).round().to(torch.int8)
            self.weight = nn.Parameter(whole, requires_grad=False)

        def forward(self, x):
            return nn.functional.linear(x, self.weight.float() * self.scale)

    torch.manual_seed(0)
    base = nn.Linear(5, 5, bias=False)
    model = nn.Sequential(nn.Linear(6, 5), Int8(base), nn.ReLU(), nn.Linear(5, 3))
    X, y = torch.randn(8, 6), torch.randint(0, 3, (8,))
    beside = GradientLog(2).attach(model)
    assert beside.names_ == ("0", "3"), "unnamed, it is left out"
    beside.detach()
    log = GradientLog(2, modules=["0", "1", "3"], dtype="float32").attach(model)
    with log.record(range(8)):
        entropy(model, X, y).backward()
    dense = nn.Sequential(model[0], nn.Linear(5, 5, bias=False), nn.ReLU(), model[3])
    dense[1].weight.data = model[1].weight.float() * model[1].scale
    method = LoGra(2, dtype="float32").fit(dense, (X, y))
    close = np.abs(log.finalize().log_.vectors() - method.log_.vectors()).max()
    assert close < 1e-4 * np.abs(method.log_.vectors()).max()


def test_ranks_beyond_a_side_are_capped_aloud() -> None:
    with pytest.warns(RankWarning, match="rank 64 is larger than a side of 2"):
        log, *_ = mlp_log(rank=64)
    assert log.layout_.width == 5 * 7 + 3 * 6
    with pytest.warns(RankWarning):
        LoGra(64).fit(nn.Linear(6, 3), (torch.randn(4, 6), torch.arange(4) % 3))


def record_all(folder: Path) -> GradientLog:
    log, model, X, y = mlp_log(store=folder, modules=["0"])
    with log:
        for rows in torch.arange(12).split(6):
            with log.record(rows):
                entropy(model, X[rows], y[rows]).backward()
    return log.finalize()


def test_a_fault_at_any_write_resumes_to_the_same_log(tmp_path: Path, faults, monkeypatch) -> None:
    monkeypatch.setattr(recording, "SHARD_BYTES", 1)
    events = faults.at()
    calm = record_all(tmp_path / "calm").log_.vectors()
    faults.off()
    assert sum("after shard" in event for event in events) == 4, "two shards, and their links when finished"
    for number, point in enumerate(events, 1):
        faults.at(number)
        with pytest.raises(faults.Killed):
            record_all(tmp_path / str(number))
        faults.off()
        recording._ATTACHED.clear()
        assert np.array_equal(record_all(tmp_path / str(number)).log_.vectors(), calm), point


def test_a_finished_log_answers_in_another_process(tmp_path: Path) -> None:
    log = record_all(tmp_path)
    asked, model, X, y = mlp_log(modules=["0"])
    with asked.record(["q"]):
        entropy(model, X[:1], y[:1]).backward()
    later = load_log(tmp_path)
    assert np.array_equal(later.score(asked).scores, log.score(asked).scores)
    shard = tmp_path / "finished" / "sketches" / "shard-00000.npy"
    whole = shard.read_bytes()
    shard.unlink()
    with pytest.raises(RunError, match=r"shard-00000.*is missing"):
        load_log(tmp_path)
    shard.write_bytes(whole[:-8])
    with pytest.raises(RunError, match=r"shard-00000.*bytes"):
        load_log(tmp_path)


def test_what_is_no_trainer_is_refused() -> None:
    with pytest.raises(InputError, match="no Trainer"):
        patch_trainer(nn.Module)
    assert VOCAB
