"""TRL's GRPO and RLOO with our prompts, our batches and an injected reward; what happened is kept by step.

Every step samples afresh and makes one update (no completion is used twice), so a resumed training needs
nothing but the trainer's own state. Sources: GRPO, Shao et al. 2024, arXiv 2402.03300, equation 3 with one
update per batch; RLOO, Ahmadian et al. 2024, arXiv 2402.14740, equation 9.
"""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glasshouse.corpora.rows import Record, TokenRow
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.training.rewards import FlatRewardWarning, Reward, Rollout, judge
from glasshouse.training.spec import SAMPLED, TrainSpec

TOLD = {
    "reward": "reward", "reward_std": "reward_std", "kl": "kl", "entropy": "entropy",
    "completions/mean_length": "completion_tokens",
    "completions/clipped_ratio": "cut_share", "accuracy": "accuracy", "margin": "margin",
}  # fmt: skip
"""TRL's numbers of a step -> our columns of `metrics.parquet`."""

FLAT_SHARE, FLAT_STEPS = 0.9, 20
"""Above this share of prompts whose completions all got one reward, for so many steps, a warning is due."""


class Diary:
    """What the steps of a training told: numbers by step, and every completion with its reward.

    Completions are written to `work` at every save, the rest when done; a resumed training reads them back.
    """

    def __init__(
        self, spec: TrainSpec, records: Sequence[Record], rows: Sequence[TokenRow], work: Path
    ) -> None:
        self.spec, self.records, self.rows, self.work = spec, records, rows, work / "rollouts"
        self.numbers: list[dict[str, float]] = []
        self.rollouts: list[dict[str, Any]] = []

    def reward(self, reward: Reward) -> Any:
        """The reward in TRL's form."""

        def reward_of_completion(
            prompts: Sequence[str],
            completions: Sequence[str],
            completion_ids: Sequence[Sequence[int]],
            **_: Any,
        ) -> list[float]:
            at = [int(prompt) for prompt in prompts]
            rollouts = [
                Rollout(self.records[row], text, tuple(self.rows[row].ids), tuple(ids))
                for row, text, ids in zip(at, completions, completion_ids, strict=True)
            ]
            values = judge(reward, rollouts)
            self.rollouts += [
                {
                    "step": len(self.numbers) + 1,
                    "row": row,
                    "row_id": self.rows[row].row_id,
                    "completion": rollout.completion,
                    "completion_ids": list(rollout.completion_ids),
                    "reward": value,
                }
                for row, rollout, value in zip(at, rollouts, values, strict=True)
            ]
            return values

        return reward_of_completion

    def note(self, metrics: Mapping[str, Sequence[float]]) -> None:
        """Keep the numbers of the step that has just ended."""
        told = {ours: metrics[name][-1] for name, ours in TOLD.items() if metrics.get(name)}
        if self.spec.algo in SAMPLED:
            told["flat_share"] = self._flat_share()
        self.numbers.append(told)
        last = [told.get("flat_share", 0.0) for told in self.numbers[-FLAT_STEPS:]]
        if len(self.numbers) % FLAT_STEPS == 0 and min(last) > FLAT_SHARE:
            warnings.warn(
                FlatRewardWarning(
                    f"steps {len(self.numbers) - FLAT_STEPS + 1} to {len(self.numbers)}: all completions of "
                    "nearly every prompt got the same reward, so nothing is learnt; train it with sft first, "
                    "raise the temperature or give a finer reward"
                ),
                stacklevel=2,
            )

    def _flat_share(self) -> float:
        """Share of the step's prompts with one reward for all completions (TRL counts the KL in)."""
        step = [row["reward"] for row in self.rollouts if row["step"] == len(self.numbers) + 1]
        size = self.spec.options["num_generations"]
        groups = [step[at : at + size] for at in range(0, len(step), size)]
        return sum(min(group) == max(group) for group in groups) / len(groups)

    def save(self) -> None:
        """Write the completions since the last save."""
        if self.rollouts:
            files.write_json(self.work / f"{len(self.numbers):08d}.json", self.rollouts)
            self.rollouts = []

    def resume(self, numbers: Sequence[Mapping[str, float]]) -> None:
        """Go on after a save; what was written later is dropped."""
        self.numbers, self.rollouts = [dict(told) for told in numbers], []
        for path in self.work.glob("*.json"):
            if int(path.stem) > len(self.numbers):
                path.unlink()

    def close(self) -> list[dict[str, Any]]:
        """All completions of the training, by step."""
        self.save()
        return [row for path in sorted(self.work.glob("*.json")) for row in files.read_json(path)]


def reinforcing(
    spec: TrainSpec,
    model: Any,
    rows: Sequence[TokenRow],
    reward: Reward,
    diary: Diary,
    common: Mapping[str, Any],
    given: Mapping[str, Any],
    ours: Any,
) -> Any:
    """The GRPO or RLOO trainer; `ours` gives a trainer class our batches, schedule and losses."""
    import trl

    _check_room(spec, model, rows)
    given = {**given, "processing_class": _ending(spec, given["processing_class"], model)}
    options = spec.options
    algo = spec.algo.upper()

    base: Any = getattr(trl, f"{algo}Trainer")

    class Sampled(base):
        def _tokenize_prompts(self, prompts: list[str]) -> Any:
            return [list(rows[int(prompt)].ids) for prompt in prompts], None, {}

    settings = {
        **{name: value for name, value in common.items() if name != "activation_offloading"},
        **_sampling(options),
        "per_device_train_batch_size": spec.batch_size * options["num_generations"],
        "beta": options["beta"],
        **_defaults(spec.algo, options),
    }
    reference = _named_reference(spec, model, diary.work.parent)
    trainer = ours(Sampled)(
        args=getattr(trl, f"{algo}Config")(**settings),
        reward_funcs=[diary.reward(reward)],
        **given,
    )
    if reference is not None:
        shutil.rmtree(reference)
        model.config._name_or_path = ""
    return trainer


def _sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_generations": options["num_generations"],
        "max_completion_length": options["max_new_tokens"],
        "temperature": options["temperature"],
        # The loss weighs completions by the untruncated policy, so they are drawn from it.
        "top_p": 1.0,
        "top_k": 0,
        "min_p": None,
        "repetition_penalty": 1.0,
        "num_iterations": 1,
        "steps_per_generation": 1,
        "epsilon": 0.2,
        "disable_dropout": True,
        "shuffle_dataset": False,
        "use_vllm": False,
        "sync_ref_model": False,
        "mask_truncated_completions": False,
        "log_completions": False,
    }


def _defaults(algo: str, options: Mapping[str, Any]) -> dict[str, Any]:
    if algo == "rloo":
        return {"normalize_advantages": options["normalize_advantages"], "reward_clip_range": None}
    return {"loss_type": options["loss_type"], "scale_rewards": options["scale_rewards"]}


def _named_reference(spec: TrainSpec, model: Any, work: Path) -> Path | None:
    """TRL loads the reference by the model's name: a fresh model is saved under one; returns the folder."""
    if spec.options["beta"] == 0 or spec.adapter is not None:
        return None
    if spec.init_seed is None:
        model.config._name_or_path = str(spec.start)
        return None
    folder = work / "reference"
    model.save_pretrained(folder)
    model.config._name_or_path = str(folder)
    return folder


def _ending(spec: TrainSpec, tokenizer: Any, model: Any) -> Any:
    """A tokenizer that knows what ends a completion; where it does not say, the model's config may."""
    if tokenizer.eos_token_id is not None:
        return tokenizer
    end = model.config.eos_token_id
    if end is None:
        raise InputError(
            "neither tokenizer nor model has an end token, so no completion could end",
            where=str(spec.start),
            fix="set tokenizer.eos_token and save it there",
        )
    told = copy.deepcopy(tokenizer)
    told.eos_token = told.convert_ids_to_tokens(end if isinstance(end, int) else end[0])
    return told


def _check_room(spec: TrainSpec, model: Any, rows: Sequence[TokenRow]) -> None:
    limit = getattr(model.config, "max_position_embeddings", None)
    longest = max(rows, key=len)
    needed = len(longest) + spec.options["max_new_tokens"]
    if limit is not None and needed > limit:
        raise InputError(
            f"the prompt and its completion may take {needed} tokens, and the model has {limit} positions",
            where=f"row {longest.row_id!r} column 'prompt'",
            fix="lower max_new_tokens or shorten the prompt",
        )
