"""[training/7r] CPU seconds per optimizer step: our bare loop, the textbook loop, Trainer and SFTTrainer.

Same model, rows and batches, fp32. The first steps and the constructors are left out, and the peers are
given finished batches, so their tokenising and collating is not counted against them. The floor is 6 FLOP
per weight and token (forward and backward), the output head counted on labelled tokens only, at the speed of
a large matrix product on this machine.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.harness import Row, gemm_peak
from benchmarks.ledger import Report

WARMUP, STEPS = 4, 24
CASES = {
    # name: (layers, width, heads, feed-forward, vocabulary, batch, shortest, longest row, labelled share)
    "llama 4 x 128, fixed length": (4, 128, 4, 352, 256, 32, 18, 18, 1.0),
    "llama 3 x 96, chat rows": (3, 96, 4, 256, 1200, 64, 10, 40, 0.4),
}

REPORT = Report(
    "training/7r",
    "llama 4 x 128, fixed length",
    "milliseconds per step",
    1000.0,
    ("glasshouse.training.fast",),
)


def compare(*, repeats: int, threads: int, cases: tuple[str, ...] = ()) -> list[Row]:
    """One row per case and peer; `agreement` is the largest difference between the two loss curves."""
    os.environ["GLASSHOUSE_PROGRESS"] = "off"
    rows = []
    for name, shape in CASES.items():
        if cases and not any(case in name for case in cases):
            continue
        rows += _compare_case(name, shape, repeats=repeats, threads=threads)
    return rows


def _compare_case(name: str, shape: tuple, *, repeats: int, threads: int) -> list[Row]:
    import torch

    torch.set_num_threads(threads)
    model, data = _model(shape), _rows(shape)
    floor = _flop(model, data, shape) / gemm_peak(threads)
    engines = {
        "ours": _ours,
        "textbook loop": _textbook,
        "transformers.Trainer": _trainer,
        "trl.SFTTrainer": _trl,
    }
    timed: dict[str, list[float]] = {engine: [] for engine in engines}
    curves: dict[str, list[float]] = {}
    for _ in range(repeats):  # interleaved, so that a busy minute hits all
        for engine, run in engines.items():
            seconds, curves[engine] = run(_model(shape), data, shape)
            timed[engine].append(seconds)
    best = {engine: min(runs) for engine, runs in timed.items()}
    return [
        Row(
            case=name,
            stage="step",
            ours_seconds=best["ours"],
            peer=peer,
            peer_seconds=best[peer],
            ratio=best[peer] / best["ours"],
            floor_share=floor / best["ours"],
            agreement=_agreement(curves[peer], curves["ours"]),
            reason=None,
            peer_floor_share=floor / best[peer],
            ours_runs=tuple(timed["ours"]),
            peer_runs=tuple(timed[peer]),
        )
        for peer in engines
        if peer != "ours"
    ]


def _agreement(theirs: list[float], ours: list[float]) -> str:
    return f"{np.abs(np.subtract(theirs, ours)).max():.1e} nats over {STEPS} steps"


class _Clock:
    """A callback: CPU seconds per step after the warm-up."""

    def __init__(self) -> None:
        self.at: dict[int, float] = {}

    def __call__(self, step: int, *_: Any) -> None:
        self.at[step] = time.process_time()

    @property
    def seconds(self) -> float:
        return (self.at[STEPS] - self.at[WARMUP]) / (STEPS - WARMUP)


def _ours(model: Any, rows: list, shape: tuple) -> tuple[float, list[float]]:
    from glasshouse.training import fit_rows

    clock = _Clock()
    losses = fit_rows(
        model, rows, steps=STEPS, batch_size=shape[5], lr=1e-3, schedule="constant", callbacks=[clock]
    )
    return clock.seconds, losses


def _batches(rows: list, shape: tuple) -> list:
    from glasshouse.corpora.rows import pad
    from glasshouse.training._order import BatchOrder

    order = BatchOrder(len(rows), shape[5], 0, tuple(len(row) for row in rows))
    return [pad([rows[i] for i in batch]) for batch in order.walk(0, STEPS)]


def _textbook(model: Any, rows: list, shape: tuple) -> tuple[float, list[float]]:
    import torch

    batches, clock, losses = _batches(rows, shape), _Clock(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    model.train()
    for step, batch in enumerate(batches, start=1):
        loss = model(**batch.model_inputs(), labels=batch.labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        clock(step)
    return clock.seconds, losses


def _trainer(model: Any, rows: list, shape: tuple) -> tuple[float, list[float]]:
    from transformers import Trainer, TrainingArguments

    return _timed_trainer(Trainer, TrainingArguments, {}, model, rows, shape)


def _trl(model: Any, rows: list, shape: tuple) -> tuple[float, list[float]]:
    from trl import SFTConfig, SFTTrainer

    options = {"max_length": None, "shuffle_dataset": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
    return _timed_trainer(
        SFTTrainer, SFTConfig, options, model, rows, shape, processing_class=_tokenizer(shape)
    )


def _timed_trainer(
    trainer: Callable, config: Callable, options: dict, model: Any, rows: list, shape: tuple, **given: Any
) -> tuple[float, list[float]]:
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback

    clock, losses = _Clock(), []
    batches = [
        {"input_ids": b.input_ids, "attention_mask": b.attention_mask, "labels": b.labels}
        for b in _batches(rows, shape)
    ]

    class Timed(trainer):  # type: ignore[misc, valid-type]
        def get_train_dataloader(self) -> Any:
            return self.accelerator.prepare(torch.utils.data.DataLoader(batches, batch_size=None))

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            losses.append(float(loss))
            return loss

    class Tick(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock(state.global_step)

    with tempfile.TemporaryDirectory() as scratch:
        arguments = config(
            output_dir=scratch, per_device_train_batch_size=shape[5], max_steps=STEPS, learning_rate=1e-3,
            lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, bf16=False,
            activation_checkpointing=False, use_cpu=True, report_to=[], save_strategy="no",
            logging_strategy="no", remove_unused_columns=False, disable_tqdm=True,
            dataloader_pin_memory=False, **options,
        )  # fmt: skip
        data = Dataset.from_list([{"input_ids": list(row.ids), "labels": list(row.labels)} for row in rows])
        running = Timed(model=model, args=arguments, train_dataset=data, callbacks=[Tick()], **given)
        running.remove_callback(PrinterCallback)
        running.train()
    return clock.seconds, losses


def _model(shape: tuple) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, width, heads, feed_forward, vocabulary, *_ = shape
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=feed_forward,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def _rows(shape: tuple) -> list:
    from glasshouse.corpora.rows import IGNORE, TokenRow

    *_, vocabulary, _, low, high, share = shape
    draw, rows = np.random.default_rng(0), []
    for index in range(1000):
        ids = tuple(int(i) for i in draw.integers(3, vocabulary, draw.integers(low, high + 1)))
        prompt = round(len(ids) * (1 - share))
        rows.append(TokenRow(ids, (IGNORE,) * prompt + ids[prompt:], str(index)))
    return rows


def _flop(model: Any, rows: list, shape: tuple) -> float:
    tokens = float(np.mean([len(row) for row in rows])) * shape[5]
    blocks = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name)
    return 6 * tokens * (blocks + shape[8] * model.lm_head.weight.numel())


def _tokenizer(shape: tuple) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2, **{f"w{i}": i for i in range(3, shape[4])}}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
