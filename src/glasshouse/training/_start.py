"""Where a training begins: a saved model, a Hugging Face id, or a recipe folder with a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import seeded
from glasshouse.training.spec import TrainSpec

_WEIGHTS = ("*.safetensors",)
_CONFIGS = ("config.json", "generation_config.json", "*.index.json")
_TOKENIZER = (
    "tokenizer*", "vocab*", "merges.txt", "*.model",
    "special_tokens_map.json", "added_tokens.json", "chat_template*",
)  # fmt: skip
_MODEL_FILES = (*_WEIGHTS, *_CONFIGS, *_TOKENIZER)


def start_hash(spec: TrainSpec) -> str:
    """What identifies the start of a spec. Raises InputError when nothing can start there."""
    if Path(spec.start).is_dir():
        _check_weights(spec, Path(spec.start))
    return model_identity(spec.start)


def model_identity(start: str | Path) -> str:
    """Hash of a folder's weights, config and tokenizer files, or id and commit of a Hugging Face model."""
    folder = Path(start)
    if not folder.is_dir():
        return f"{start}@{_commit(str(start))}"
    found = sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern) if path.is_file()})
    return files.sha256_json([[path.name, files.sha256_file(path)] for path in found])


def load_tokenizer(spec: TrainSpec) -> Any:
    """The tokenizer saved with the start."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(spec.start)
    except (OSError, ValueError) as error:
        raise InputError(
            "no tokenizer can be loaded", where=str(spec.start), fix="save the tokenizer beside the model"
        ) from error


def load_model(spec: TrainSpec) -> Any:
    """The start model in fp32, fresh from `init_seed` for a recipe folder; a reward model has one output.

    The output of a reward model that starts from a language model is drawn from the seed of the training.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    scored = spec.algo == "reward"
    kind, head = (
        (AutoModelForSequenceClassification, {"num_labels": 1}) if scored else (AutoModelForCausalLM, {})
    )
    if spec.init_seed is None:
        with seeded(spec.seed, "head"):
            return kind.from_pretrained(spec.start, dtype=torch.float32, use_safetensors=True, **head)
    with seeded(spec.init_seed, "init"):
        return kind.from_config(AutoConfig.from_pretrained(spec.start, **head), dtype=torch.float32)


def count_parameters(spec: TrainSpec) -> int:
    """Parameters of the start model, counted without loading it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(spec.start))
    return sum(parameter.numel() for parameter in model.parameters())


def _check_weights(spec: TrainSpec, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise InputError("there is no config.json", where=str(folder), fix="give a saved model's folder")
    has_weights = any(True for pattern in _WEIGHTS for _ in folder.glob(pattern))
    if has_weights and spec.init_seed is not None:
        raise InputError(
            "the folder has weights but init_seed is set", where=str(folder), fix="drop one of them"
        )
    if not has_weights and spec.init_seed is None:
        raise InputError(
            "the folder has no weights", where=str(folder), fix="save the model there, or set init_seed"
        )


def _commit(name: str) -> str:
    from transformers.utils import cached_file

    try:
        path = cached_file(name, "config.json")
    except (OSError, ValueError) as error:
        raise InputError(
            "it is neither a folder nor a model that can be loaded",
            where=name,
            fix="give a saved model's folder",
        ) from error
    return Path(str(path)).parent.name
