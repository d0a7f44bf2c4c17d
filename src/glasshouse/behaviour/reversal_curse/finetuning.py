"""Teach a checkpoint facts in one order: full or low-rank fine-tuning on the training rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from glasshouse.corpora.reversal import ReversalData
from glasshouse.corpora.reversal_paper import InstructionData
from glasshouse.corpora.rows import Record
from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    from glasshouse.training import Checkpoint, LoraSpec


def finetune(
    model: Path | str,
    data: ReversalData,
    *,
    lora: LoraSpec | None = None,
    epochs: float = 10,
    lr: float = 2e-4,
    batch_size: int = 16,
    loss: Literal["text", "completion"] = "text",
    max_length: int = 256,
    seed: int = 0,
    **options: Any,
) -> Checkpoint:
    """The checkpoint `model` (folder or Hugging Face id) after `epochs` over the training rows of `data`.

    `loss`: on the whole text, or on the completion only, which becomes the reply where the tokenizer has a
    chat template; the paper found the same with both. `lora` trains an adapter and merges it. `options` are
    those of `glasshouse.training.train` (cache, engine, device, callbacks) and `precision`. Trained once per
    setting, then taken from the cache. Completions get a leading space where the tokenizer needs one (with
    a warning). Raises InputError for a model, row or option that cannot be used.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model))
    records = data.for_tokenizer(tokenizer).records(loss=loss)
    return _train(
        model, records, loss == "text", lora, epochs, lr, batch_size, max_length, seed, options
    )  # fmt: skip


def finetune_instructions(
    model: Path | str,
    data: InstructionData,
    *,
    lora: LoraSpec | None = None,
    epochs: float = 10,
    lr: float = 2e-4,
    batch_size: int = 16,
    max_length: int = 512,
    seed: int = 0,
    **options: Any,
) -> Checkpoint:
    """The same for experiment 3: guidance documents and realised examples, loss on all tokens."""
    return _train(model, data.records(), True, lora, epochs, lr, batch_size, max_length, seed, options)


def _train(
    model: Path | str, records: Sequence[Record], whole: bool, lora: LoraSpec | None, epochs: float,
    lr: float, batch_size: int, max_length: int, seed: int, options: dict[str, Any],
) -> Checkpoint:  # fmt: skip
    from glasshouse.training import DataRef, TrainSpec, train

    if not epochs > 0:
        raise InputError(f"epochs is {epochs}", fix="give a positive number")
    if not records:
        raise InputError("the data holds no training rows", fix="give rows of split 'train'")
    precision = options.pop("precision", "auto")
    spec = TrainSpec(
        algo="sft", start=model, data=DataRef.of(list(records)), lr=lr, seed=seed, batch_size=batch_size,
        steps=max(1, math.ceil(len(records) * epochs / batch_size)), schedule="linear", final_lr_share=0.1,
        warmup_steps=0, max_length=max_length, loss_on="all" if whole else "reply", adapter=lora,
        precision=precision,
    )  # fmt: skip
    return train(spec, **options)
