"""`train(spec)`: the checkpoint of a spec, trained once, resumed after a kill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from glasshouse.corpora.rows import TokenRow
from glasshouse.runtime import files
from glasshouse.runtime.cache import Cache
from glasshouse.runtime.codeversion import code_version
from glasshouse.runtime.devices import pick_device
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.progress import Progress
from glasshouse.runtime.quiet import quiet_transformers
from glasshouse.training._encode import Encoded, Pair, encode, flat
from glasshouse.training._fitted import Fitted
from glasshouse.training._schedule import lr_factor
from glasshouse.training._start import count_parameters, load_model, load_tokenizer, start_hash
from glasshouse.training.fast import Callback, fit_rows
from glasshouse.training.mix import provenance
from glasshouse.training.rewards import Reward, reward_identity
from glasshouse.training.spec import SAMPLED, TrainSpec

Engine = Literal["auto", "torch", "trl"]

_DECIDES = {"torch": ("_encode", "fast"), "trl": ("_trl",)}  # modules whose code decides the weights

FAST_PATH_LIMIT = 5_000_000
"""Parameters up to which `engine="auto"` takes the bare loop (on a CPU, for sft without adapter)."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained model on disk, loadable by its path.

    The folder holds weights, config and tokenizer, `spec.json`, `data.parquet` (the rows as trained on, with
    provenance) and `metrics.parquet` (step, lr, loss). `metrics` sums up: rows, truncated_rows,
    labelled_tokens, first_loss, last_loss (nats).

    For a reward model `metrics.parquet` has accuracy and margin as well. For grpo and rloo it has reward,
    reward_std, kl (nats per token, from the start), entropy, completion_tokens, cut_share (completions
    without an end) and flat_share (prompts whose completions all got one reward), and `rollouts.parquet`
    holds every completion with its step, row and reward.
    """

    path: Path
    spec: TrainSpec
    metrics: Mapping[str, Any]

    def losses(self) -> list[float]:
        """Training loss of every step."""
        return self.curve("loss")

    def curve(self, column: str) -> list[float]:
        """A column of `metrics.parquet` by step. Raises InputError when the algorithm tells no such thing."""
        import pyarrow.parquet as pq

        table = pq.read_table(self.path / "metrics.parquet")
        if column not in table.column_names:
            raise InputError(
                f"{self.spec.algo} tells no {column!r}",
                where=str(self.path),
                fix=f"choose from {table.column_names}",
            )
        return table[column].to_pylist()

    def rollouts(self) -> list[dict[str, Any]]:
        """Every completion (grpo, rloo): step, row, row_id, completion, completion_ids, reward."""
        import pyarrow.parquet as pq

        if self.spec.algo not in SAMPLED:
            raise InputError(f"{self.spec.algo} samples no completions", where=str(self.path))
        return pq.read_table(self.path / "rollouts.parquet").to_pylist()


def train(
    spec: TrainSpec,
    *,
    cache: Cache | None = None,
    engine: Engine = "auto",
    device: str = "auto",
    callbacks: Sequence[Callback] = (),
    reward: Reward | None = None,
) -> Checkpoint:
    """Train `spec`, or return the checkpoint of the same training from the cache.

    `engine` is the bare loop ("torch": sft without adapter), TRL ("trl"), or chosen by size and algorithm.
    A killed training resumes from its last complete save (`spec.save_every`), bit-exactly on one CPU.
    `callbacks` watch a training that runs; they do not run for a cached result and must not change the model.
    grpo and rloo maximise `reward`, and the entry is known by it, too (see `glasshouse.training.rewards`).
    Raises InputError before training starts for a start, row or option that cannot be used.

    >>> train(TrainSpec(algo="sft", start="model", data=DataRef.of("rows.jsonl"), ...)).path  # doctest: +SKIP
    """
    cache = Cache() if cache is None else cache
    device = pick_device(device)
    spec.data.check()
    begin = start_hash(spec)
    if (reward is not None) != (spec.algo in SAMPLED):
        raise InputError(
            f"{spec.algo} {'needs a' if reward is None else 'takes no'} reward", where="train(reward=...)",
            fix="give a function of rollouts" if reward is None else "drop it",
        )  # fmt: skip
    chosen = _engine(spec, engine, device)
    precision = spec.precision if spec.precision != "auto" else ("fp32" if device == "cpu" else "bf16")
    args = {**spec.to_json(), "start": begin, "engine": chosen, "precision": precision, "device": device}
    args.pop("save_every")
    if reward is not None:
        args["reward"] = reward_identity(reward)
    code = "-".join(code_version(f"glasshouse.training.{module}") for module in _DECIDES[chosen])

    def build(folder: Path) -> None:
        work = cache.work(cache.key("checkpoint", args, code=code))
        _train_into(folder, _Job(spec, chosen, precision, device, work, callbacks, reward))

    path = cache.fetch("checkpoint", args, build, code=code)
    return Checkpoint(path, spec, files.read_json(path / "spec.json")["metrics"])


@dataclass(frozen=True)
class _Job:
    spec: TrainSpec
    engine: str
    precision: str
    device: str
    work: Path
    callbacks: Sequence[Callback]
    reward: Reward | None


def _engine(spec: TrainSpec, engine: Engine, device: str) -> str:
    fits = spec.algo == "sft" and spec.adapter is None
    if engine == "auto":
        small = fits and device == "cpu" and count_parameters(spec) <= FAST_PATH_LIMIT
        return "torch" if small else "trl"
    if engine not in ("torch", "trl"):
        raise InputError(f"engine {engine!r} is unknown", fix="choose auto, torch or trl")
    if engine == "torch" and not fits:
        raise InputError("engine 'torch' trains sft without an adapter only", fix="use engine='trl'")
    return engine


def _train_into(folder: Path, job: _Job) -> None:
    with quiet_transformers():
        _train_quietly(folder, job)


def _train_quietly(folder: Path, job: _Job) -> None:
    tokenizer = load_tokenizer(job.spec)
    encoded = encode(job.spec, tokenizer)
    model = load_model(job.spec).to(job.device)
    with Progress() as progress, progress.task(f"training ({job.spec.algo})", job.spec.steps) as task:
        callbacks = [*job.callbacks, lambda step, loss, _: task.advance(1 if step else 0)]
        run = _run_trl if job.engine == "trl" else _run_torch
        fitted = run(job, model, tokenizer, encoded, callbacks)
    losses = fitted.losses
    fitted.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _write_tables(folder, job.spec, encoded, fitted)
    metrics: dict[str, Any] = {
        "rows": len(encoded.rows),
        "truncated_rows": encoded.truncated,
        "labelled_tokens": encoded.labelled,
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }
    told = {"spec": job.spec.to_json(), "engine": job.engine, "precision": job.precision, "metrics": metrics}
    files.write_json(folder / "spec.json", told)


def _run_torch(
    job: _Job, model: Any, tokenizer: Any, encoded: Encoded, callbacks: Sequence[Callback]
) -> Fitted:
    import torch

    spec = job.spec
    losses = fit_rows(
        model,
        flat(encoded.rows),
        steps=spec.steps,
        batch_size=spec.batch_size,
        lr=spec.lr,
        betas=spec.betas,
        weight_decay=spec.weight_decay,
        warmup_steps=spec.warmup_steps,
        schedule=spec.schedule,
        final_lr_share=spec.final_lr_share,
        clip=spec.clip,
        seed=spec.seed,
        length_buckets=spec.length_buckets,
        callbacks=callbacks,
        checkpoint_dir=job.work if spec.save_every else None,
        save_every=spec.save_every,
        autocast=torch.bfloat16 if job.precision == "bf16" else None,
    )
    return Fitted(model, losses)


def _run_trl(
    job: _Job, model: Any, tokenizer: Any, encoded: Encoded, callbacks: Sequence[Callback]
) -> Fitted:
    from glasshouse.training._trl import fit_trl

    return fit_trl(
        job.spec,
        model,
        tokenizer,
        encoded.rows,
        records=[row.record for row in job.spec.data.rows],
        work=job.work,
        precision=job.precision,
        device=job.device,
        reward=job.reward,
        callbacks=callbacks,
    )


def _write_tables(folder: Path, spec: TrainSpec, encoded: Encoded, fitted: Fitted) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = [
        {**about, **_tokens(row)} for about, row in zip(provenance(spec.data.rows), encoded.rows, strict=True)
    ]
    rates = [
        spec.lr
        * lr_factor(
            step,
            schedule=spec.schedule,
            steps=spec.steps,
            warmup_steps=spec.warmup_steps,
            final_share=spec.final_lr_share,
        )
        for step in range(len(fitted.losses))
    ]
    curve = {"step": list(range(1, len(rates) + 1)), "lr": rates, "loss": fitted.losses}
    for name in fitted.numbers[0] if fitted.numbers else ():
        curve[name] = [told[name] for told in fitted.numbers]
    tables = {"data": pa.Table.from_pylist(data), "metrics": pa.table(curve)}
    if fitted.rollouts:
        tables["rollouts"] = pa.Table.from_pylist(fitted.rollouts)
    for name, table in tables.items():
        with files.atomic_path(folder / f"{name}.parquet") as path:
            pq.write_table(table, path)


def _tokens(row: TokenRow | Pair) -> dict[str, list[int]]:
    if isinstance(row, Pair):
        return {"chosen_ids": list(row.chosen.ids), "rejected_ids": list(row.rejected.ids)}
    return {"ids": list(row.ids), "labels": list(row.labels)}
