"""SOURCE on disk: a manifest, one file a segment and module, and the weights that lay only in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasshouse.attribution.checkpoints import Checkpoint, RateLog, TrainingRun
from glasshouse.attribution.manifests import read_manifest
from glasshouse.attribution.source import moments
from glasshouse.attribution.source.segments import of_stage, stages_of
from glasshouse.attribution.source.spectral import Spectrum, rebuilt
from glasshouse.attribution.store import read_tensors, write_tensors
from glasshouse.attribution.units import TokenUnits, Units
from glasshouse.corpora.rows import IGNORE
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, RunError, StaleError

if TYPE_CHECKING:
    from glasshouse.attribution.source.method import SOURCE


def save(
    folder: Path,
    checkpoints: Iterable[Checkpoint],
    spectra: Sequence[Mapping[str, Spectrum]],
    manifest: dict[str, Any],
) -> Path:
    """Tensors first, then the manifest: a folder without one is not a fit."""
    for k, point in enumerate(checkpoints):
        if point.path is None and point.weights is not None:
            state = {name: value.clone() for name, value in point.state().items()}  # tied ones apart
            write_tensors(_weights(folder, k), state, {"step": str(point.step)})
    for index, found in enumerate(spectra):
        for name, spectrum in found.items():
            write_tensors(_place(folder, index, name), spectrum.tensors(), {"module": name})
    files.write_json(folder / "manifest.json", manifest)
    return folder


def read(folder: Path) -> dict[str, Any]:
    """The manifest. Raises InputError for a folder without one, or with a damaged one."""
    manifest = read_manifest(folder)
    if not all(key in manifest for key in ("notes", "stages", "modules")):
        raise InputError("its manifest.json is not of SOURCE", where=str(folder), fix="fit and save again")
    return manifest


def options(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor options as they were given; checkpoints are checked against their content address."""
    found = dict(manifest["options"])
    rates = found.pop("run_rates")
    points = [_restored(folder, k, about) for k, about in enumerate(found["checkpoints"])]
    found["checkpoints"] = points
    if rates is not None:
        found["checkpoints"] = TrainingRun(tuple(points), RateLog(_by_step(rates)))
    found["lr_log"] = _log(found["lr_log"])
    return found


def spectra(folder: Path, method: SOURCE) -> tuple[dict[str, Spectrum], ...]:
    """The curvature of every segment of a bound method."""
    found = []
    for index, segment in enumerate(method.segments_):
        decay = of_stage(method.weight_decay, segment.stage, "weight_decay")
        how = segment.c, method.scales_[segment.stage], decay, method.damping
        places = {name: _place(folder, index, name) for name in method.names_}
        found.append({name: rebuilt(name, _tensors(place), *how) for name, place in places.items()})
    return tuple(found)


def described(point: Checkpoint) -> dict[str, Any]:
    """A checkpoint in a manifest."""
    state = point.optimizer_state
    return point.to_json() | {"optimizer_state": str(state) if isinstance(state, Path | str) else None}


def logged(log: Any) -> dict[str, Any] | None:
    """A rate log in a manifest, in the form in which it was given."""
    if log is None:
        return None
    if isinstance(log, RateLog):
        return {"log": {str(k): v for k, v in log.rates.items()}}
    if isinstance(log, Mapping):
        return {"by_step": {str(k): v for k, v in log.items()}}
    return {"list": [dict(e) if isinstance(e, Mapping) else float(e) for e in log]}


def run_rates(checkpoints: Any) -> dict[str, float] | None:
    """The rates of a TrainingRun, None for plain checkpoints."""
    if not isinstance(checkpoints, TrainingRun):
        return None
    return {str(k): v for k, v in checkpoints.rates.rates.items()}


# ── options that must fit together ───────────────────────────────────────────


def check_numbers(method: SOURCE) -> None:
    """Raise InputError for rates, decays and scales that cannot be."""
    names = stages_of(method.checkpoints)
    for stage in names:
        beta = of_stage(method.momentum, stage, "momentum")
        decay = of_stage(method.weight_decay, stage, "weight_decay")
        if not 0 <= beta < 1:
            raise InputError(f"momentum is {beta}", where=f"stage {stage!r}", fix="use 0 <= momentum < 1")
        if not 0 <= decay < float("inf"):
            raise InputError(f"weight_decay is {decay}", where=f"stage {stage!r}", fix="use a number >= 0")
        if beta and method.optimizer == "adam" and not method.assume_sgd:
            raise InputError(
                "momentum is for heavy-ball steps; Adam's first moment is an average and lengthens no step",
                where="momentum", fix="leave it at 0",
            )  # fmt: skip
        if beta and method.c is not None:
            raise InputError("c holds the momentum already", where="c", fix="give c, or momentum and rates")
    scale, clip = method.loss_scale, method.max_grad_norm
    if scale != "auto" and not (isinstance(scale, int | float) and 0 < scale < float("inf")):
        raise InputError(f"loss_scale is {scale!r}", fix='use "auto" or a positive number')
    if clip is not None and not clip > 0:
        raise InputError(f"max_grad_norm is {clip}", fix="use a positive number, or None for no clipping")


def check_optimizer(method: SOURCE) -> None:
    """Refuse Adam without its state, and Adam's state under plain SGD; `assume_sgd` allows both."""
    if method.assume_sgd:
        return
    points = list(method.checkpoints)
    if method.optimizer == "adam":
        bare = [p.name for p in points if p.optimizer_state is None]
        if bare:
            raise InputError(
                f"{len(bare)} checkpoints have no optimiser state: {', '.join(bare[:6])}",
                where='optimizer="adam"',
                fix="keep optimizer.pt (or train with SourceCheckpoints), or say assume_sgd=True",
            )  # fmt: skip
        return
    kept = next((p for p in points if p.optimizer_state is not None), None)
    if kept is not None and moments.holds_second_moments(kept):
        raise InputError(
            "its optimiser state is Adam's", where=f"checkpoint {kept.name}",
            fix='use optimizer="adam", or say assume_sgd=True',
        )  # fmt: skip


def loss_scale(choice: float | str, rows: Units) -> float:
    """What the training loop's loss was times a sum over tokens, averaged over rows."""
    if choice != "auto":
        return float(choice)
    if not isinstance(rows, TokenUnits):
        return 1.0
    labelled = sum(label != IGNORE for row in rows.rows for label in row.labels[1:])
    return len(rows) / labelled


# ── inside ───────────────────────────────────────────────────────────────────


def _place(folder: Path, index: int, name: str) -> Path:
    return folder / f"segment-{index:02d}" / f"{name or 'model'}.safetensors"


def _weights(folder: Path, k: int) -> Path:
    return folder / "checkpoints" / f"{k:03d}.safetensors"


def _tensors(place: Path) -> Mapping[str, Any]:
    if not place.exists():
        raise InputError("a factor is gone", where=str(place), fix="fit and save again")
    found = read_tensors(place)[0]
    if "Lambda" not in found:
        raise RunError("it holds no factor", where=str(place), fix="fit and save again")
    return found


def _restored(folder: Path, k: int, about: Mapping[str, Any]) -> Checkpoint:
    weights: Any = about["path"]
    if about["weights"] == "subject":
        weights = None
    elif weights is None:
        if not _weights(folder, k).exists():
            raise InputError("a checkpoint is gone", where=str(_weights(folder, k)), fix="save again")
        weights = read_tensors(_weights(folder, k))[0]
    point = Checkpoint(
        weights, about["step"], about["lr"], about["stage"], about["lr_sum"], about["optimizer_state"]
    )
    if point.hash != about["weights"]:
        raise StaleError("its weights have changed since", where=f"checkpoint {point.name}", fix="fit again")
    return point


def _by_step(rates: Mapping[str, float]) -> dict[int, float]:
    return {int(step): float(rate) for step, rate in rates.items()}


def _log(stored: Mapping[str, Any] | None) -> Any:
    if stored is None:
        return None
    if "list" in stored:
        return stored["list"]
    return RateLog(_by_step(stored["log"])) if "log" in stored else _by_step(stored["by_step"])
