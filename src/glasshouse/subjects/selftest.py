"""The self-test: identities that hold exactly when the access layer has found the right places in a model.

A wrong row of the architecture table, a changed transformers release or a checkpoint with surprises breaks at
least one of them. Errors are relative to the largest reference value; tolerances follow the number format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glasshouse.runtime import files
from glasshouse.runtime.cache import Cache
from glasshouse.runtime.codeversion import code_version
from glasshouse.runtime.errors import GlasshouseError
from glasshouse.runtime.seeds import rng
from glasshouse.subjects.patches import Patch
from glasshouse.subjects.sites import Site

if TYPE_CHECKING:
    from glasshouse.subjects.subject import Subject

# Sums over layers in another order than the model's: some tens of roundings of the format.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Identity:
    """One identity: its name, the relative error found and the largest one allowed."""

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance (NaN is not)."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class SelfTest:
    """All identities of one model."""

    checks: tuple[Identity, ...]

    @property
    def passed(self) -> bool:
        """Whether every identity holds."""
        return not self.failed

    @property
    def failed(self) -> tuple[Identity, ...]:
        """The identities that do not hold."""
        return tuple(check for check in self.checks if not check.passed)


def run_self_test(subject: Subject) -> SelfTest:
    """The stored result for this model, or a fresh one (a second for a small model)."""
    return SelfTest(tuple(Identity(**row) for row in _stored(subject)))


def _stored(subject: Subject) -> list[Mapping[str, Any]]:
    def build(folder: Path) -> None:
        rows = [
            {"name": c.name, "error": _number(c.error), "tolerance": c.tolerance}
            for c in _identities(subject)
        ]
        files.write_json(folder / "selftest.json", rows)

    # Whatever changes how sites are found or read makes the stored result stale.
    args = {"device": subject.device, "architecture": repr(subject.parts.architecture)}
    code = code_version("glasshouse.subjects.subject")
    entry = Cache().fetch("self-test", args, build, inputs=[subject.hash], code=code)
    rows: list[Mapping[str, Any]] = files.read_json(entry / "selftest.json")
    return rows


def _number(error: float) -> float:
    return error if error == error and error != float("inf") else 1e30  # JSON has no NaN; both mean failed


def _identities(subject: Subject) -> list[Identity]:
    tolerance = _TOLERANCE.get(subject.dtype, 1e-4)
    try:
        found = dict(_errors(subject))
    except GlasshouseError:
        raise
    except Exception as error:  # a hook in the wrong place can break anything
        return [
            Identity(f"a pass with hooks ({type(error).__name__}: {error})"[:200], float("inf"), tolerance)
        ]
    exact = {"generate is plain greedy decoding"}
    return [Identity(name, error, 0.0 if name in exact else tolerance) for name, error in found.items()]


def _errors(subject: Subject) -> Iterator[tuple[str, float]]:
    rows = _rows(subject)
    layers = range(subject.n_layers)
    kinds = [
        "resid_pre",
        "resid_post",
        "attn_out",
        "mlp_out",
        *(["resid_mid"] if subject.parts.has_mid else []),
    ]
    read = [Site("embed"), Site("final_norm_in"), *(Site(kind, layer) for layer in layers for kind in kinds)]
    run = subject.run(rows, read=read)
    pairs = [(run[f"resid_post.{l}"], run[f"resid_pre.{l + 1}"]) for l in layers[:-1]]
    yield "resid_post.l is resid_pre.l+1", max((_error(a, b) for a, b in pairs), default=0.0)
    if subject.parts.has_mid:
        mids = [(run[f"resid_mid.{l}"], run[f"resid_pre.{l}"] + run[f"attn_out.{l}"]) for l in layers]
        yield "resid_mid is resid_pre + attn_out", max(_error(a, b) for a, b in mids)
    total = run["embed"].float()
    for layer in layers:
        total = total + run[f"attn_out.{layer}"].float() + run[f"mlp_out.{layer}"].float()
    yield "embed + attn_out + mlp_out is final_norm_in", _error(total, run["final_norm_in"])
    with torch.no_grad():
        unembedded = subject.unembed(run["final_norm_in"])
        plain = _plain(subject, rows)
    yield "unembed(final_norm_in) is logits", _error(unembedded, plain)
    yield "run gives the model's own logits", _error(run.logits, plain)
    if not subject.parts.known:
        yield "pattern @ v is z", _attention_error(subject, rows)
    same = [
        Patch(Site(kind, l), "fn", torch.clone)
        for l in layers
        for kind in (*kinds, "z", "q", "k", "v", "mlp_act")
    ]
    yield "identity patches leave the logits", _error(subject.run(rows, patches=same).logits, plain)
    ours = subject.generate_ids(rows, max_new_tokens=4)
    theirs = _plain_greedy(subject, rows, 4)
    differ = any(list(one.ids) != plain[: len(one.ids)] for [one], plain in zip(ours, theirs, strict=True))
    yield "generate is plain greedy decoding", float(differ)


def _attention_error(subject: Subject, rows: list[list[int]]) -> float:
    """Whether q, k and v of a guessed row are cut out of the right places."""
    errors = []
    for layer in range(subject.n_layers):
        run = subject.run(rows, read=[f"pattern.{layer}", f"v.{layer}", f"z.{layer}"], logits=False)
        v = run[f"v.{layer}"].repeat_interleave(subject.n_heads // run[f"v.{layer}"].shape[2], dim=2)
        mixed = torch.einsum("bhts,bshd->bthd", run[f"pattern.{layer}"].float(), v.float())
        errors.append(_error(mixed, run[f"z.{layer}"]))
    return max(errors)


def _rows(subject: Subject) -> list[list[int]]:
    """Two rows of random tokens of equal length: plain transformers then needs no padding."""
    length = max(2, min(12, subject.context - 4))
    return rng(0, "self-test").integers(0, subject.vocab_size, (2, length)).tolist()


def _plain(subject: Subject, rows: list[list[int]]) -> Tensor:
    ids = torch.tensor(rows, device=subject.device)
    logits: Tensor = subject.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return logits


def _plain_greedy(subject: Subject, rows: list[list[int]], steps: int) -> list[list[int]]:
    from transformers import GenerationConfig

    ids = torch.tensor(rows, device=subject.device)
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=steps, pad_token_id=0, eos_token_id=list(subject.stop_ids) or None
    )
    out = subject.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    found: list[list[int]] = out[:, ids.shape[1] :].tolist()
    return found


def _error(a: Tensor | None, b: Tensor | None) -> float:
    """Largest difference, relative to the largest value of b."""
    if a is None or b is None:
        return float("inf")
    scale = b.float().abs().max().clamp_min(1e-12)
    return float(((a.float() - b.float()).abs().max() / scale).item())
