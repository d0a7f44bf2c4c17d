"""The TRL engine: TRL's trainers with our rows, our batches and our schedule, and every default written out.

TRL's own defaults would train in bf16 with gradient checkpointing, also on a CPU. Rows arrive tokenised, so
nothing is truncated, dropped or re-tokenised silently. Checkpoints are the trainer's own; one counts only
once its `complete.json` is there.
"""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from glasshouse.corpora.rows import Record, TokenRow
from glasshouse.runtime import files
from glasshouse.runtime.errors import NumericalError
from glasshouse.runtime.seeds import seeded
from glasshouse.training._encode import Pair
from glasshouse.training._fitted import Fitted
from glasshouse.training._order import BatchOrder
from glasshouse.training._reinforce import Diary, reinforcing
from glasshouse.training._schedule import lr_factor
from glasshouse.training.fast import Callback
from glasshouse.training.rewards import Reward
from glasshouse.training.spec import SAMPLED, TrainSpec

COMPLETE = "complete.json"


def fit_trl(
    spec: TrainSpec,
    model: Any,
    tokenizer: Any,
    rows: Sequence[TokenRow | Pair],
    *,
    records: Sequence[Record],
    work: Path,
    precision: str,
    device: str,
    reward: Reward | None = None,
    callbacks: Sequence[Callback] = (),
) -> Fitted:
    """Train with TRL; an adapter is merged into the model it returns.

    `work` keeps checkpoints between kills; `records` are the rows as text, which `reward` sees. Raises
    NumericalError for a loss that is not finite, InputError for a reward that is not one number each.
    """
    from transformers import PrinterCallback

    with seeded(spec.seed, "trl"):
        diary = Diary(spec, records, [row for row in rows if isinstance(row, TokenRow)], work)
        trainer = _trainer(spec, model, tokenizer, rows, work, precision, device, reward, diary)
        resume = _newest(work)
        told = {"losses": [], "numbers": []} if resume is None else files.read_json(resume / COMPLETE)
        trainer.step_losses = told["losses"]
        diary.resume(told["numbers"])
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_watcher(trainer, diary, callbacks))
        with warnings.catch_warnings():
            # TRL still asks by the old name at every generation; nobody here can change that.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    trained = trainer.model
    if spec.adapter is not None:
        trained = trained.merge_and_unload()
    return Fitted(trained, list(trainer.step_losses), diary.numbers, diary.close())


def _trainer(
    spec: TrainSpec,
    model: Any,
    tokenizer: Any,
    rows: Sequence[TokenRow | Pair],
    work: Path,
    precision: str,
    device: str,
    reward: Reward | None,
    diary: Diary,
) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    common = _arguments(spec, work, precision, device)
    data = Dataset.from_list([_columns(spec, number, row) for number, row in enumerate(rows)])
    adapter = {"peft_config": _lora(spec)} if spec.adapter is not None else {}
    given = {"model": model, "train_dataset": data, "processing_class": tokenizer, **adapter}
    ours = partial(_ours, spec=spec, rows=rows, diary=diary)
    if spec.algo == "sft":
        return ours(SFTTrainer)(args=SFTConfig(**common, **_sft_defaults()), **given)
    # With dropout, policy and reference would differ at the start, and a reward model would judge by chance.
    _without_dropout(model)
    if spec.algo == "reward":
        return ours(RewardTrainer)(args=RewardConfig(**common, **_reward_defaults(spec)), **given)
    if spec.algo in SAMPLED:
        assert reward is not None, "train() has refused this"
        plain = [row for row in rows if isinstance(row, TokenRow)]
        return reinforcing(spec, model, plain, reward, diary, common, given, ours)
    # The start itself, frozen: left to TRL, the reference would be looked up by the model's name. With an
    # adapter the disabled adapter is the start, and TRL refuses a second model.
    reference = {} if adapter else {"ref_model": copy.deepcopy(model)}
    return ours(DPOTrainer)(args=DPOConfig(**common, **_dpo_defaults(spec)), **reference, **given)


def _without_dropout(model: Any) -> None:
    """Switch dropout off, also where a module keeps its rate as a number, which TRL does not look for."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("drop" in name or (name == "p" and _is_dropout(module))):
                setattr(module, name, 0.0)


def _is_dropout(module: Any) -> bool:
    return "dropout" in type(module).__name__.lower()


def _ours(trainer_class: Any, *, spec: TrainSpec, rows: Sequence[TokenRow | Pair], diary: Diary) -> Any:
    """`trainer_class` with our batches, our schedule, untouched rows, and the exact loss of every step."""
    import torch

    lengths = tuple(len(row) for row in rows) if spec.length_buckets else None
    order = BatchOrder(len(rows), spec.batch_size, spec.seed, lengths)

    class Ours(trainer_class):
        step_losses: list[float]

        def __init__(self, **options: Any) -> None:
            self.step_losses = []
            super().__init__(**options)

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def get_train_dataloader(self) -> Any:
            loader = torch.utils.data.DataLoader(
                self.train_dataset,
                batch_sampler=_Walk(order, spec.steps, spec.options.get("num_generations", 1)),
                collate_fn=self.data_collator,
            )
            return self.accelerator.prepare(loader)

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            factor = partial(
                lr_factor,
                schedule=spec.schedule,
                steps=spec.steps,
                warmup_steps=spec.warmup_steps,
                final_share=spec.final_lr_share,
            )
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
            return self.lr_scheduler

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            if not bool(torch.isfinite(loss)):
                raise NumericalError(
                    f"the loss is {float(loss)}",
                    where=f"training step {len(self.step_losses)}",
                    fix="lower the learning rate or check the rows",
                )
            self.step_losses.append(float(loss))
            if spec.algo not in ("sft", "dpo"):
                diary.note(self._metrics["train"])
                self._metrics["train"].clear()
            return loss

    return Ours


class _Walk:
    """All batches of a training as one epoch, so that a resumed trainer skips to its place by counting.

    Each row comes `times` times in a row.
    """

    def __init__(self, order: BatchOrder, steps: int, times: int = 1) -> None:
        self.order, self.steps, self.times = order, steps, times
        self.batch_size, self.drop_last = order.batch_size * times, False

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        return (rows.repeat(self.times).tolist() for rows in self.order.walk(0, self.steps))


def _watcher(trainer: Any, diary: Diary, callbacks: Sequence[Callback]) -> Any:
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 0:
                self._tell(0, None)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._tell(state.global_step, trainer.step_losses[-1])

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            diary.save()
            files.write_json(folder / COMPLETE, {"losses": trainer.step_losses, "numbers": diary.numbers})

        def _tell(self, step: int, loss: float | None) -> None:
            for callback in callbacks:
                callback(step, loss, trainer.model)
            trainer.model.train()

    return Watcher()


def _newest(work: Path) -> Path | None:
    """The newest complete checkpoint; half-written ones are removed."""
    found = sorted((work / "trainer").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in found:
        if not (path / COMPLETE).is_file():
            shutil.rmtree(path)
    return next((path for path in reversed(found) if path.is_dir()), None)


def _columns(spec: TrainSpec, number: int, row: TokenRow | Pair) -> dict[str, Any]:
    if spec.algo in SAMPLED:
        return {"prompt": str(number)}  # looked up again when it is tokenised and judged
    if isinstance(row, Pair) and spec.algo == "reward":
        return {"chosen_ids": list(row.chosen.ids), "rejected_ids": list(row.rejected.ids)}
    if isinstance(row, Pair):
        return {
            "prompt_ids": list(row.chosen.ids[: row.prompt]),
            "chosen_ids": list(row.chosen.ids[row.prompt :]),
            "rejected_ids": list(row.rejected.ids[row.prompt :]),
        }
    return {"input_ids": list(row.ids), "labels": list(row.labels)}


def _lora(spec: TrainSpec) -> Any:
    from peft import LoraConfig

    if spec.adapter is None:
        return None
    options = asdict(spec.adapter)
    targets = options["targets"]
    return LoraConfig(
        r=options["r"],
        lora_alpha=options["alpha"],
        lora_dropout=options["dropout"],
        target_modules=targets if isinstance(targets, str) else list(targets),
        bias="none",
        task_type="SEQ_CLS" if spec.algo == "reward" else "CAUSAL_LM",
        modules_to_save=["score"] if spec.algo == "reward" else None,
    )


def _arguments(spec: TrainSpec, work: Path, precision: str, device: str) -> dict[str, Any]:
    saves: dict[str, Any] = {"save_strategy": "no"}
    if spec.save_every is not None:
        saves = {"save_strategy": "steps", "save_steps": spec.save_every, "save_total_limit": 2}
    return {
        "output_dir": str(work / "trainer"),
        "per_device_train_batch_size": spec.batch_size,
        "gradient_accumulation_steps": 1,
        "max_steps": spec.steps,
        "learning_rate": spec.lr,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "optim": "adamw_torch_fused",
        "weight_decay": spec.weight_decay,
        "adam_beta1": spec.betas[0],
        "adam_beta2": spec.betas[1],
        "adam_epsilon": 1e-8,
        "max_grad_norm": spec.clip,
        "seed": spec.seed % 2**32,
        "data_seed": spec.seed % 2**32,
        "bf16": precision == "bf16",
        "fp16": False,
        "use_cpu": device == "cpu",
        **_no_checkpointing(),
        "activation_offloading": False,
        "torch_compile": False,
        "use_liger_kernel": False,
        "label_smoothing_factor": 0.0,
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "eval_strategy": "no",
        "push_to_hub": False,
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "dataloader_drop_last": False,
        "pad_to_multiple_of": None,
        **saves,
    }


def _no_checkpointing() -> dict[str, bool]:
    """Recomputing activations is off, under whichever of its two names this transformers knows."""
    from transformers import TrainingArguments

    known = "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    return {"activation_checkpointing" if known else "gradient_checkpointing": False}


def _sft_defaults() -> dict[str, Any]:
    return {
        "max_length": None,
        "packing": False,
        "padding_free": False,
        "shuffle_dataset": False,
        "completion_only_loss": False,
        "assistant_only_loss": False,
        "loss_type": "nll",
    }


def _dpo_defaults(spec: TrainSpec) -> dict[str, Any]:
    options = spec.options
    return {
        "max_length": None,
        "padding_free": False,
        "disable_dropout": True,
        "precompute_ref_log_probs": False,
        "sync_ref_model": False,
        "use_weighting": False,
        "f_divergence_type": "reverse_kl",
        "loss_type": [options["loss_type"]],
        "label_smoothing": options["label_smoothing"],
        "beta": options["beta"],
    }


def _reward_defaults(spec: TrainSpec) -> dict[str, Any]:
    return {
        "max_length": None,
        "disable_dropout": True,
        "center_rewards_coefficient": spec.options["center"] or None,
    }
