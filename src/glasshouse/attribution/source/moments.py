"""Adam's step sizes: `1 / (sqrt(v) + eps)` of every tracked weight, from the optimiser's own state.

Read from SourceCheckpoints' files, from a torch optimiser's state dict, or from a Trainer's `optimizer.pt`
(with `weights_only`, so nothing but tensors is built).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glasshouse.attribution.checkpoints import Checkpoint
from glasshouse.runtime.errors import InputError
from glasshouse.subjects.capture import as_matrix

MOMENT = "exp_avg_sq"
EPS = 1e-8


def holds_second_moments(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint's optimiser state is Adam's."""
    state = checkpoint.optimizer_state
    if state is None:
        return False
    if isinstance(state, Path | str) and Path(state).suffix == ".safetensors":
        return True
    stored = _stored(state)
    if "state" not in stored:
        return True
    return any(MOMENT in entry for entry in stored["state"].values())


def step_sizes(checkpoint: Checkpoint, model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """P [out, in(+1)] of each module in `names` at one checkpoint; 0 for weights that do not learn.

    Those are weights whose gradients stay below Adam's eps (the bias of attention keys, dead inputs): their
    1 / eps would make rounding noise the largest curvature of the model.

    Raises InputError where the state is missing, is not Adam's, or cannot be matched with the parameters.
    """
    sizes = _by_parameter(checkpoint, model)
    found = {}
    for name in names:
        module = model.get_submodule(name)
        parts = [sizes.get(f"{name}.{key}" if name else key) for key in ("weight", "bias")]
        if parts[0] is None or (parts[1] is None and getattr(module, "bias", None) is not None):
            raise InputError(
                f"it holds no second moments of module {name!r}",
                where=f"optimiser state of {checkpoint.name}",
                fix="leave the module out (modules=...), or train with SourceCheckpoints",
            )  # fmt: skip
        found[name] = as_matrix(module, parts[0].float(), None if parts[1] is None else parts[1].float())
    return found


def second_moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Bias-corrected `v` by parameter name from a live optimiser; empty where it keeps none."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            entry = optimizer.state.get(p, {})
            if MOMENT in entry and id(p) in names:
                found[names[id(p)]] = _corrected(entry, group)
    return found


# ── inside ───────────────────────────────────────────────────────────────────


def _by_parameter(checkpoint: Checkpoint, model: nn.Module) -> dict[str, Tensor]:
    """`1 / (sqrt(v) + eps)` by parameter name, 0 where `sqrt(v) <= eps`."""
    state, where = checkpoint.optimizer_state, f"optimiser state of {checkpoint.name}"
    if state is None:
        raise InputError(
            "it is missing", where=where,
            fix="keep optimizer.pt (or train with SourceCheckpoints), or say assume_sgd=True",
        )  # fmt: skip
    if isinstance(state, Path | str) and Path(state).suffix == ".safetensors":
        from glasshouse.attribution.store import read_tensors

        tensors, about = read_tensors(Path(state))
        return _inverted(tensors, dict.fromkeys(tensors, float(about.get("eps", EPS))), where)
    stored = _stored(state)
    if "state" not in stored:  # second moments by name
        return _inverted(dict(stored), dict.fromkeys(stored, EPS), where)
    moments, eps = {}, {}
    for name, index, group in _matched(stored, model, where):
        entry = stored["state"].get(index, {})
        if MOMENT in entry:
            moments[name], eps[name] = _corrected(entry, group), float(group.get("eps", EPS))
    if not moments:
        raise InputError(
            "it holds no second moments, so it is not Adam's", where=where, fix='use optimizer="sgd"'
        )
    return _inverted(moments, eps, where)


def _stored(state: Path | str | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(state, Mapping):
        return state
    try:
        # A Trainer's own file; with weights_only nothing but tensors and plain values is built.
        found = torch.load(state, map_location="cpu", weights_only=True)  # noqa: TID251
    except Exception as error:  # unpickling raises anything
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"it cannot be read ({first})", where=str(state)) from error
    if not isinstance(found, Mapping):
        raise InputError("it is no optimiser's state dict", where=str(state))
    return found


def _corrected(entry: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    """V over `1 - beta2^t`."""
    t, (_, beta2) = float(entry["step"]), group["betas"]
    return entry[MOMENT].detach().float().cpu() / (1 - beta2**t)


def _matched(stored: Mapping[str, Any], model: nn.Module, where: str) -> list[tuple[str, int, Any]]:
    """(parameter name, index, group). A state dict numbers parameters; the order is the optimiser's.

    Names stored beside them win. Else one group is the model's own order, and two groups are those of a
    Trainer (decayed first); shapes must agree throughout.
    """
    groups = stored["param_groups"]
    numbered = [(index, group) for group in groups for index in group["params"]]
    if all("param_names" in group for group in groups):
        names = [name for group in groups for name in group["param_names"]]
        return [(n, i, g) for n, (i, g) in zip(names, numbered, strict=True)]
    own = {n: p for n, p in model.named_parameters() if p.requires_grad} or dict(model.named_parameters())
    for names in _orders(own, model, len(groups)):
        if len(names) == len(numbered) and all(
            _fits(own[n], stored["state"].get(i, {})) for n, (i, _) in zip(names, numbered, strict=True)
        ):
            return [(n, i, g) for n, (i, g) in zip(names, numbered, strict=True)]
    raise InputError(
        f"its {len(numbered)} numbered entries do not match the model's {len(own)} parameters", where=where,
        fix="train with SourceCheckpoints, or give second moments by parameter name",
    )  # fmt: skip


def _orders(own: Mapping[str, Tensor], model: nn.Module, groups: int) -> list[list[str]]:
    """Orders in which a training script may have listed the parameters."""
    if groups == 1:
        return [list(own)]
    found = [[n for n in own if own[n].ndim >= 2] + [n for n in own if own[n].ndim < 2]]
    if hasattr(model, "config"):
        from transformers.trainer_pt_utils import get_parameter_names

        patterns = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
        decayed = set(get_parameter_names(model, [nn.LayerNorm], patterns))
        found.insert(0, [n for n in own if n in decayed] + [n for n in own if n not in decayed])
    return found


def _fits(parameter: Tensor, entry: Mapping[str, Any]) -> bool:
    return MOMENT not in entry or entry[MOMENT].shape == parameter.shape


def _inverted(moments: Mapping[str, Tensor], eps: Mapping[str, float], where: str) -> dict[str, Tensor]:
    for name, v in moments.items():
        if not bool((v >= 0).all()):
            raise InputError(f"second moments of {name!r} are negative or NaN", where=where)
    roots = {name: v.float().sqrt() for name, v in moments.items()}
    return {name: torch.where(r > eps[name], 1 / (r + eps[name]), 0.0) for name, r in roots.items()}
