"""A trajectory detector on disk: `detector.json` and `detector.safetensors`; scikit-learn's models are not
stored, because that would take a pickle.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, StaleError
from glasshouse.runtime.seeds import torch_generator

FORMAT = 1
KEYS = {"kind", "options", "top_k", "seed", "ids", "subject", "lens"}


def write(folder: Path, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> Path:
    """Arrays first, then the description: a folder without one holds no detector."""
    from safetensors.numpy import save

    files.write_bytes(folder / "detector.safetensors", save(arrays))
    files.write_json(folder / "detector.json", {"format": FORMAT, **about})
    return folder


def read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(description, arrays). Raises InputError for missing, damaged or foreign files."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        about = files.read_json(folder / "detector.json")
        arrays = load((folder / "detector.safetensors").read_bytes())
        if about.pop("format") != FORMAT or set(about) != KEYS or "rows" not in arrays:
            raise KeyError("format")
    except (OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError, SafetensorError) as error:
        raise InputError(
            f"cannot read a trajectory detector ({error})", where=str(folder), fix="save it again"
        ) from error
    return about, arrays


def fingerprint(lens: Any, subject: Any) -> np.ndarray:
    """What a lens makes of one fixed vector at every layer from 1 on: float64 [L - 1, V]."""
    h = torch.randn(subject.d_model, generator=torch_generator(0, "lens fingerprint"))
    with torch.no_grad():
        rows = [lens.logits(h.to(subject.device), layer) for layer in range(1, subject.n_layers)]
    return torch.stack([row.detach().cpu().double() for row in rows]).numpy()


def check_same(
    about: dict[str, Any], arrays: dict[str, np.ndarray], subject: Any, lens: Any, *, where: str
) -> None:
    """Raise StaleError for another subject, InputError for another lens than the detector was fitted with."""
    if subject is None:
        return
    if about["subject"] not in (None, subject.hash):
        raise StaleError(
            f"the detector was fitted on another model than {subject.name!r}", where=where, fix="fit it again"
        )
    if (about["lens"] is None) != (lens is None):
        needed = about["lens"] or "no lens"
        raise InputError(f"the detector reads through {needed}", where=where, fix="load it with that lens")
    if lens is not None and "lens" in arrays:
        ours = fingerprint(lens, subject)
        if ours.shape != arrays["lens"].shape or not np.allclose(ours, arrays["lens"], rtol=1e-3, atol=1e-3):
            raise InputError("this is another lens than the detector's", where=where, fix="load that lens")
