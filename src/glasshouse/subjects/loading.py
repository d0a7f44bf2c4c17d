"""Opening a model: from a folder, the hub, memory, or a name that another layer resolves."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from glasshouse.runtime.devices import pick_device, pick_dtype
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.quiet import quiet_transformers
from glasshouse.subjects.adapters import attach, base_of, is_adapter
from glasshouse.subjects.api import PREFIX, ApiSubject

if TYPE_CHECKING:
    from glasshouse.subjects.subject import Subject

Resolver = Callable[[str], tuple[Path, Mapping[str, Any]]]

_RESOLVERS: dict[str, Resolver] = {}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def register_resolver(scheme: str, resolve: Resolver) -> None:
    """Let `as_subject("scheme://name")` open what `resolve(name)` returns: a folder and facts about it."""
    _RESOLVERS[scheme] = resolve


def as_subject(
    source: str | Path | nn.Module | Subject | ApiSubject,
    *,
    tokenizer: Any = None,
    device: str = "auto",
    dtype: str = "auto",
    self_test: bool = True,
) -> Subject:
    """The model under study, with everything its access allows.

    `source` is a checkpoint folder, the folder of a PEFT adapter (its config names the base model), a hub id,
    `scheme://name` of a registered resolver, `inspect:PROVIDER/MODEL` for a model behind an API (see
    `subjects.api`), a transformers model, adapted or not (used in place; `auto` keeps its device and dtype)
    or a Subject (returned as it is). Code from a checkpoint is never run and pickled weights are never read.

    Raises InputError for a source that cannot be opened, UnknownArchitecture when the access layer cannot
    find its way in the model or its self-test fails, NumericalError for NaN weights, DeviceError for a device
    that is not there.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    >>> as_subject(model, self_test=False).n_layers
    1
    """
    from glasshouse.subjects.subject import Subject

    if isinstance(source, Subject):
        return source
    if isinstance(source, ApiSubject) or (isinstance(source, str) and source.startswith(PREFIX)):
        return _api_subject(source, device)  # type: ignore[return-value]
    if isinstance(source, nn.Module):
        model = _place(source, device, dtype)
        name = str(getattr(getattr(source, "config", None), "_name_or_path", "") or type(source).__name__)
        subject = Subject(model, tokenizer, name=name)
    else:
        subject = _open(str(source), tokenizer, device, dtype)
    if self_test or not subject.parts.known:
        subject.require_self_test()
    return subject


def _api_subject(source: str | ApiSubject, device: str) -> ApiSubject:
    """A model behind an API: it has the text part of `Subject`, and refuses the rest."""
    if device != "auto":
        raise InputError(f"a model behind an API does not run on {device!r}", fix="leave device at auto")
    return source if isinstance(source, ApiSubject) else ApiSubject(source)


def _open(source: str, tokenizer: Any, device: str, dtype: str) -> Subject:
    from glasshouse.subjects.subject import Subject

    folder, meta, name = _resolved(source)
    adapter = folder if is_adapter(folder) else None
    base = Path(base_of(adapter)) if adapter else folder
    # The folder of an adapter may bring a tokenizer of its own.
    words = adapter if adapter and _has_tokenizer(adapter) else base
    if base.is_dir():
        _check_folder(base, with_tokenizer=tokenizer is None and words is base)
    elif adapter and base.is_absolute():
        raise InputError(
            f"the adapter belongs to the model at {str(base)!r}, which is not there",
            where=str(adapter),
            fix="correct base_model_name_or_path in its adapter_config.json",
        )
    else:
        _check_hub_id(str(base))
    device = pick_device(device)
    model = _load_model(str(base), device, pick_dtype(dtype, device))
    if adapter:
        model, meta = attach(model, adapter), {**meta, "base": str(base)}
    loaded = tokenizer if tokenizer is not None else _load_tokenizer(str(words))
    return Subject(model, loaded, name=name, meta=meta)


def _resolved(source: str) -> tuple[Path, Mapping[str, Any], str]:
    """The folder (or hub id) a name stands for, what is known about it, and what to call the subject."""
    scheme, separator, name = source.partition("://")
    if not separator:
        return Path(source).expanduser(), {}, Path(source).name
    if scheme not in _RESOLVERS:
        known = ", ".join(f"{one}://" for one in sorted(_RESOLVERS)) or "none"
        raise InputError(f"cannot open {source!r}", fix=f"give a folder or a name of a known kind ({known})")
    folder, meta = _RESOLVERS[scheme](name)
    return Path(folder), meta, source


def _has_tokenizer(folder: Path) -> bool:
    named = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
    return any((folder / name).is_file() for name in named)


def _check_folder(folder: Path, *, with_tokenizer: bool) -> None:
    where = str(folder)
    if not (folder / "config.json").is_file():
        raise InputError("the folder has no config.json", where=where, fix="give the folder of a saved model")
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        what = (
            "the weights are pickled, which can run code when read"
            if pickled
            else "the folder has no weights"
        )
        raise InputError(
            what, where=where, fix="save the model with save_pretrained, which writes model.safetensors"
        )
    if with_tokenizer and not _has_tokenizer(folder):
        raise InputError(
            "the folder has no tokenizer", where=where, fix="save its tokenizer there, or give tokenizer=..."
        )


def _check_hub_id(source: str) -> None:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    if _HUB_ID.fullmatch(source) is None:
        raise InputError(f"there is no folder {source!r}", fix="give the folder of a saved model")
    if offline:
        raise InputError(
            f"there is no folder {source!r}, and HF_HUB_OFFLINE forbids asking the hub",
            fix="give a folder, or unset HF_HUB_OFFLINE",
        )


def _load_model(source: str, device: str, dtype: torch.dtype) -> nn.Module:
    from transformers import AutoModelForCausalLM

    try:
        with quiet_transformers():
            model, report = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
    except Exception as error:  # transformers raises a dozen types here; the user needs one sentence
        raise InputError(
            f"cannot open the model: {_first_line(error)}",
            where=source,
            fix="check config.json and the weights",
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would fill them with random numbers
        raise InputError(
            f"the checkpoint lacks {len(missing)} weights, {missing[0]} first",
            where=source,
            fix="save it whole",
        )
    return model.to(device).eval()


def _load_tokenizer(source: str) -> Any:
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # as above
        raise InputError(
            f"cannot open the tokenizer: {_first_line(error)}",
            where=source,
            fix="give tokenizer=... or repair it",
        ) from error


def _place(model: nn.Module, device: str, dtype: str) -> nn.Module:
    spread = sorted({str(one) for one in (getattr(model, "hf_device_map", None) or {}).values()})
    if device != "auto" and len(spread) > 1:
        raise InputError(
            f"the model is split over {', '.join(spread)} and stays there", fix="leave device at auto"
        )
    if device != "auto":
        model = model.to(pick_device(device))
    return model if dtype == "auto" else model.to(pick_dtype(dtype))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {lines[0][:200]}"
