"""SOURCE on a Hugging Face Trainer's run: its own checkpoints, and those that `SourceCheckpoints` keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attribution_models import tiny_gpt2, token_rows
from torch import nn

from glasshouse.attribution import SOURCE, SourceCheckpoints, TokenUnits, read_run, recorded_run
from glasshouse.attribution.source import joined
from glasshouse.attribution.source.moments import step_sizes
from glasshouse.corpora.rows import pad
from glasshouse.runtime.errors import InputError

STEPS, N = 8, 2


class Rows(torch.utils.data.Dataset):
    """Token rows as a Trainer takes them."""

    def __init__(self) -> None:
        self.rows = token_rows(16)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> int:
        return i

    def collate(self, at: list[int]) -> dict[str, torch.Tensor]:
        batch = pad([self.rows[i] for i in at])
        return {**batch.model_inputs(), "labels": batch.labels}


def trained(folder: Path, model: nn.Module, **more: Any) -> nn.Module:
    from transformers import Trainer, TrainingArguments

    rows, resume = Rows(), more.pop("resume", None)
    callbacks = more.pop("callbacks", [SourceCheckpoints(N)])
    how = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": STEPS // N, "logging_steps": 1} | more
    args = TrainingArguments(
        str(folder), per_device_train_batch_size=4, learning_rate=1e-2, weight_decay=0.01, seed=0,
        report_to=[], disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False, **how,
    )  # fmt: skip
    trainer = Trainer(model, args, train_dataset=rows, data_collator=rows.collate, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return model.eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    folder = tmp_path_factory.mktemp("trainer")
    return folder, trained(folder, tiny_gpt2())


def test_what_the_callback_kept_is_what_the_trainer_did(run) -> None:
    """Weights of its checkpoints, the rate of every step (linear to zero), AdamW's moments, the clipping."""
    folder, model = run
    kept, own = recorded_run(folder / "source-checkpoints"), read_run(folder)
    assert [p.step for p in kept.checkpoints] == [4, 8] == [p.step for p in own.checkpoints]
    assert dict(kept.rates.rates) == pytest.approx({k: 1e-2 * (STEPS - k + 1) / STEPS for k in range(1, 9)})
    assert dict(kept.rates.rates) == pytest.approx(dict(own.rates.rates))
    assert (kept.optimizer, kept.weight_decay, kept.max_grad_norm) == ("adam", 0.01, 1.0)
    for a, b in zip(kept.checkpoints, own.checkpoints, strict=True):
        theirs = b.state()
        for name, value in a.state().items():
            torch.testing.assert_close(value, theirs[name])
    final = kept.checkpoints[-1].state()
    assert all(torch.equal(final[n], v) for n, v in model.state_dict().items() if n in final)


def test_moments_are_matched_with_parameters_by_either_road(run) -> None:
    """`optimizer.pt` numbers the parameters in two groups; the callback names them. Both must agree."""
    folder, model = run
    names = ("transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj")
    kept, own = recorded_run(folder / "source-checkpoints"), read_run(folder)
    for a, b in zip(kept.checkpoints, own.checkpoints, strict=True):
        ours, theirs = step_sizes(a, model, names), step_sizes(b, model, names)
        for name in names:
            torch.testing.assert_close(ours[name], theirs[name])
        assert ours[names[0]].shape == (24, 9)  # [out, in + 1], although Conv1D stores the transpose


@pytest.mark.parametrize("form", ["hybrid", "factored"])
def test_scores_do_not_depend_on_the_road(run, form: str) -> None:
    folder, model = run
    rows = TokenUnits(token_rows(16))
    asked = rows.subset([0, 1])
    kept = recorded_run(folder / "source-checkpoints")
    method = SOURCE(**kept.options(), segments=2, adam_form=form).fit(model, rows)
    table = method.score(asked)
    assert any("clipped at norm 1" in n for n in table.meta["notes"])
    assert any("dropout" in n for n in table.meta["notes"])
    same = SOURCE(read_run(folder), segments=2, optimizer="adam", weight_decay=0.01, adam_form=form)
    other = same.fit(model, rows).score(asked)
    scale = np.abs(table.scores).max()
    np.testing.assert_allclose(other.scores, table.scores, atol=1e-3 * scale)
    with pytest.raises(InputError, match="Adam's"):
        SOURCE(read_run(folder), segments=2).fit(model, rows)


def test_two_runs_are_joined_into_stages(run, tmp_path: Path) -> None:
    import copy

    folder, model = run
    final = trained(tmp_path, copy.deepcopy(model))
    first = recorded_run(folder / "source-checkpoints", stage="pretrain")
    second = recorded_run(tmp_path / "source-checkpoints", stage="finetune")
    both = joined([first, second])
    assert [(p.stage, p.step) for p in both.checkpoints] == [
        ("pretrain", 4), ("pretrain", 8), ("finetune", 12), ("finetune", 16),
    ]  # fmt: skip
    assert both.rates.at(9) == pytest.approx(1e-2)  # the schedule starts anew
    rows = TokenUnits(token_rows(16))
    data = {"pretrain": rows, "finetune": TokenUnits(token_rows(8, seed=3))}
    method = SOURCE(**both.options(), segments=2, adam_form="factored").fit(final, data)
    table = method.score(rows.subset([0]), per_segment=True)
    late = [n.startswith("3-") for n in table.train_ids]
    assert (table.per_module["segment/0"][:, late] == 0).all() and sum(late) == 8
    with pytest.raises(InputError, match="own stage"):
        joined([first, first])


def test_a_resumed_run_keeps_its_rates(run, tmp_path: Path) -> None:
    """Stopped after 4 of 8 steps and resumed: the same record as the run that was never stopped."""
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 5
            return control

    trained(tmp_path, tiny_gpt2(), callbacks=[SourceCheckpoints(N), Stop()])
    trained(tmp_path, tiny_gpt2(), resume=str(tmp_path / "checkpoint-4"))
    kept, whole = (recorded_run(f / "source-checkpoints") for f in (tmp_path, run[0]))
    assert dict(kept.rates.rates) == pytest.approx(dict(whole.rates.rates))
    assert [p.step for p in kept.checkpoints] == [4, 8]
    for a, b in zip(kept.checkpoints, whole.checkpoints, strict=True):
        for name, value in b.state().items():
            torch.testing.assert_close(a.state()[name], value)


def test_heavy_ball_sgd_is_recorded_with_its_momentum(tmp_path: Path) -> None:
    trained(tmp_path, tiny_gpt2(), optim="sgd", optim_args="momentum=0.9", max_grad_norm=0.0)
    kept = recorded_run(tmp_path / "source-checkpoints")
    assert (kept.optimizer, kept.momentum, kept.max_grad_norm) == ("sgd", 0.9, None)
    options = kept.options()
    method = SOURCE(**options, segments=2).bind(tiny_gpt2(), token_rows(16))
    rates = [1e-2 * (STEPS - k) / STEPS for k in range(STEPS)]
    assert [s.c for s in method.segments_] == pytest.approx([sum(rates[:4]) * 10, sum(rates[4:]) * 10])


def test_optimisers_without_a_form_and_bad_counts_are_refused(tmp_path: Path) -> None:
    trained(tmp_path, tiny_gpt2(), optim="rmsprop")
    with pytest.raises(InputError, match="neither plain SGD nor Adam"):
        recorded_run(tmp_path / "source-checkpoints").options()
    with pytest.raises(InputError, match="n is 0"):
        SourceCheckpoints(0)
    with pytest.raises(InputError, match="8 steps hold no 9 checkpoints"):
        trained(tmp_path / "few", tiny_gpt2(), callbacks=[SourceCheckpoints(9)])


def test_adapters_alone_are_kept_and_traced(tmp_path: Path) -> None:
    """Of a LoRA model the callback keeps what was trained, and SOURCE tracks it."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        tiny_gpt2(), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    )
    trained(tmp_path, model)
    kept = recorded_run(tmp_path / "source-checkpoints")
    assert all("lora_" in name for name in kept.checkpoints[0].state())
    method = SOURCE(**kept.options(), segments=1, adam_form="factored").fit(model, token_rows(16))
    assert all("lora_" in name for name in method.names_)
    assert np.abs(method.score(token_rows(2)).scores).max() > 0
