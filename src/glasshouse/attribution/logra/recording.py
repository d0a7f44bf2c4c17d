"""`GradientLog`: two lines in a training loop you already have, and its rows can be valued afterwards."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from glasshouse.attribution.base import as_mapper, at_least_one, versions
from glasshouse.attribution.logra.curvature import Curvature, Kind, measured
from glasshouse.attribution.logra.finished import FinishedLog
from glasshouse.attribution.logra.layout import Layout, lay_out
from glasshouse.attribution.logra.log import joined
from glasshouse.attribution.logra.number import Dtype, Scaling, check_overflow, pack
from glasshouse.attribution.logra.projection import Init, Projections, drawn, principal, warn_capped
from glasshouse.attribution.logra.reduction import Reduction
from glasshouse.attribution.logra.sketching import add_grams, write_shard
from glasshouse.attribution.logra.taps import Branch, Tap, hookable, masked, shaped
from glasshouse.attribution.stages import guards
from glasshouse.attribution.stages.curvature import Factor, check_damping, eigenbasis
from glasshouse.attribution.stages.passes import gram_, mirrored
from glasshouse.attribution.stages.scoring import check_choice
from glasshouse.attribution.store import Store, Tensors
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, NumericalError, UntrackedModuleError
from glasshouse.subjects.capture import Pair, _is_noisy

SHARD_BYTES = 1 << 25
"""Stored bytes gathered before a shard is written: what a kill loses."""

_ATTACHED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@dataclass
class _Step:
    """What one recorded step has gathered so far."""

    ids: list[str]
    mask: Tensor | None
    divided_by: float
    lines: Tensor | None = None
    seen: set[str] = field(default_factory=set)


class GradientLog(FinishedLog):
    """The gradients of an existing loop's rows, projected while the loop runs and kept on disk.

        log = GradientLog(rank=16, store="log").attach(model)
        ...
            with log.record(ids=batch["id"], mask=batch["attention_mask"]):
                loss.backward()

    The training step is not changed: losses are the same to the bit. The loss must be a **sum** over rows and
    tokens, or `divided_by` must say what it was divided by; the first recorded step is checked. `branch` adds
    the paper's bottleneck `C B A` (B zero) beside each module instead of bare hooks, with the same numbers.
    `noise` "refuse" stops at dropout and batch statistics, under which a row's gradient is not the model's;
    "allow" notes it in the tables. `init="pca"` first needs a pass with `measure`. Other options are
    `LoGra`'s.

    Rows are recorded once each (in the last epoch, or in one pass after it). Where weights changed while the
    log was attached, `about_["weights_moved"]` says so, and the log belongs to the last weights.
    """

    def __init__(
        self,
        rank: int = 64,
        *,
        init: Init = "random",
        curvature: Kind | None = "raw",
        damping: float | Literal["auto"] = "auto",
        dtype: Dtype = "float16",
        scaling: Scaling = "line",
        share: Sequence[str] | None = None,
        modules: str | Sequence[str] = "auto",
        seed: int = 0,
        branch: bool = False,
        noise: Literal["refuse", "allow"] = "refuse",
        store: Path | str | None = None,
    ) -> None:
        super().__init__()
        self.rank, self.init, self.curvature, self.damping = rank, init, curvature, damping
        self.dtype, self.scaling, self.share, self.modules, self.seed = dtype, scaling, share, modules, seed
        self.branch, self.noise, self.store = branch, noise, store
        self._taps: list[Tap] = []
        self._handles: list[Any] = []
        self._step: _Step | None = None
        self._measuring: Tensor | bool | None = False
        self._grams: Tensors = {}
        self.model_: nn.Module | None = None

    # ── recording ────────────────────────────────────────────────────────────

    def attach(self, subject: Any) -> Self:
        """Put the hooks on; usable as a line of its own or as `with log.attach(model):` (off at its end).

        Raises InputError where this log or another one is attached to the model already, and what
        `describe_modules` raises for modules that cannot be tracked.
        """
        self._check_options()
        model, _ = guards.unwrap(subject)
        if self._taps:
            raise InputError("this log is attached already", fix="call detach() or finalize() first")
        if model in _ATTACHED:
            raise InputError("another log is attached to this model", fix="finalize that one first")
        if hasattr(self, "log_"):
            raise InputError("this log is finished", fix="make a new GradientLog")
        self.model_, self._subject = model, subject
        self.tracked_ = hookable(model, self.modules)
        self.names_ = tuple(m.name for m in self.tracked_)
        warn_capped(self.tracked_, self.rank)
        self._start_hash = guards.model_hash(subject)
        if self.init != "pca":
            self._lay_out(drawn(self.tracked_, self.rank, self.init, self.seed))
        self._open_store()
        _ATTACHED.add(model)
        self._reduction: Reduction | None = Reduction()
        self._reduced = "unseen"
        self._tap(model)
        return self

    def detach(self) -> None:
        """Take the hooks off; the model is as before `attach`. The log belongs to its weights as of now."""
        if self._taps:
            self._last_hash = guards.model_hash(self._subject)
        for tap in self._taps:
            tap.remove()
        for handle in self._handles:
            handle.remove()
        self._taps, self._handles = [], []
        if self.model_ is not None:
            _ATTACHED.discard(self.model_)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.detach()

    @contextmanager
    def record(
        self, ids: Sequence[Any] | Tensor, mask: Tensor | None = None, *, divided_by: float = 1.0
    ) -> Iterator[None]:
        """Log the rows of the backward pass inside the block; the forward pass may lie before it.

        `ids` names the rows of the batch, `mask` [B, T] its tokens (1) and padding (0); `divided_by` is what
        the loss was divided by. Rows that a killed run had stored already are left out. Raises InputError for
        a row recorded twice, ReductionError for a mean, UntrackedModuleError (first step) naming modules that
        got no gradient, NumericalError for NaN and for sketches beyond float16.
        """
        self._check_ready(ids, divided_by)
        names = _names(ids)
        self._refuse_repeats(names)
        if not hasattr(self, "layout_"):
            self._lay_out(principal(self._eigenbases(), self.rank))
        self._step = _Step(names, mask, float(divided_by))
        try:
            with ExitStack() as stack:
                if self._reduction is not None:
                    stack.enter_context(self._reduction.watching())
                yield
            self._finish(self._step)
        finally:
            self._step = None

    @contextmanager
    def measure(self, mask: Tensor | None = None) -> Iterator[None]:
        """Add the backward pass inside the block to the covariances that `init="pca"` needs."""
        if self.init != "pca":
            raise InputError('measure() is for init="pca"', fix="record() is enough otherwise")
        if not self._taps:
            raise InputError("the log is not attached", fix="call attach(model) first")
        self._measuring = mask
        try:
            yield
        finally:
            self._measuring = False

    def finalize(self) -> Self:
        """Take the hooks off, write what is left, measure the curvature. The first question calls it too."""
        if hasattr(self, "log_"):
            return self
        if not hasattr(self, "_names"):
            raise InputError("nothing was recorded", where="GradientLog", fix="attach() and record() first")
        self.detach()
        self._flush()
        if not self._parts:
            raise InputError("nothing was recorded", where="GradientLog", fix="record() at least one batch")
        folder = None if self.store is None else Path(self.store) / "sketches"
        self.log_ = joined(self._parts, self.layout_, self.dtype, self._names, folder)
        grams: Tensors = {}
        for part in self._parts:
            for key in (key for key in part if "/" in key):
                grams[key] = grams[key] + part[key] if key in grams else part[key]
        self.factors_: dict[str, Curvature] = measured(
            self.log_, self.curvature, grams, as_mapper(None), None
        )
        self.about_ = self._about() | {
            "model_hash": self._last_hash, "weights_moved": self._last_hash != self._start_hash,
            "n_train": len(self.log_), "reduction": self._reduced, "noisy": self._noisy,
        }  # fmt: skip
        if self.store is not None:
            self.save(Path(self.store) / "finished")
        self.model_ = None
        self.__dict__.pop("_subject", None)
        return self

    def for_queries(self, *, store: Path | str | None = None) -> GradientLog:
        """An empty log with the options and the very projections of this one."""
        options = ("rank", "init", "dtype", "scaling", "share", "modules", "seed", "branch", "noise")
        made = GradientLog(curvature=None, store=store, **{name: getattr(self, name) for name in options})
        if self.init == "pca" and hasattr(self, "projections_"):
            made._lay_out(self.projections_)
        return made

    # ── inside: while the loop runs ──────────────────────────────────────────

    def _check_options(self) -> None:
        at_least_one("rank", self.rank)
        for name, value, allowed in (
            ("init", self.init, Init), ("dtype", self.dtype, Dtype), ("scaling", self.scaling, Scaling),
            ("noise", self.noise, Literal["refuse", "allow"]),
        ):  # fmt: skip
            check_choice(name, value, allowed)
        if self.curvature is not None:
            check_choice("curvature", self.curvature, Kind)
        if self.branch and self.init == "pca":
            raise InputError('branches are built before init="pca" is measured', fix="use branch=False")
        check_damping(self.damping)

    def _lay_out(self, projections: Projections) -> None:
        self.projections_ = projections
        self.layout_: Layout = lay_out(projections, self.share or ())
        self._block_of = {name: block for block in self.layout_.blocks for name in block.members}

    def _tap(self, model: nn.Module) -> None:
        self.branches_: dict[str, Branch] = {}
        for m in self.tracked_:
            module = model.get_submodule(m.name)
            if self.branch:
                like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0)).detach()
                self.branches_[m.name] = Branch(self.projections_[m.name], bias=m.bias, like=like)
            self._taps.append(Tap(m.name, module, self._seen, self.branches_.get(m.name)))
        assert self._reduction is not None
        self._handles = [model.register_forward_hook(self._reduction.look, with_kwargs=True)]

    def _seen(self, name: str, pair: Pair) -> None:
        """One call of one module has its gradient: called from inside the backward pass."""
        if self._measuring is not False:
            self._measure(name, pair)
        step = self._step
        if step is None:
            return
        step.seen.add(name)
        projection = self.projections_[name].to(pair.a.device)
        if self.branch:
            half = shaped(pair, len(step.ids), name)
        else:
            half = projection.halves(shaped(pair, len(step.ids), name))
        half, tokens = masked(half, step.mask)
        if step.divided_by != 1:
            half = Pair(half.a, half.g * step.divided_by)
        block = self._block_of[name]
        if self.curvature in ("kfac", "ekfac"):
            add_grams(self._grams, block, half, tokens)
        if step.lines is None:
            step.lines = torch.zeros(len(step.ids), self.layout_.width, device=half.a.device)
        into = step.lines[:, block.columns].view(-1, block.out, block.inn)
        into += torch.bmm(half.g.mT, half.a)

    def _measure(self, name: str, pair: Pair) -> None:
        mask = self._measuring
        pair, tokens = masked(pair, mask if isinstance(mask, Tensor) else None)
        a = torch.cat([pair.a, pair.a.new_ones(*pair.a.shape[:2], 1)], 2) if pair.ones else pair.a
        if pair.ones and isinstance(mask, Tensor) and not a.shape[1] % mask.shape[1]:
            a[..., -1] *= mask.to(a).repeat(1, a.shape[1] // mask.shape[1])
        for key, x in ((f"A/{name}", a), (f"S/{name}", pair.g)):
            total = self._covariances.setdefault(key, torch.zeros(x.shape[2], x.shape[2]))
            gram_(total, x.flatten(0, 1).cpu())
        self._counts[name] = self._counts.get(name, 0.0) + tokens

    def _eigenbases(self) -> dict[str, Factor]:
        if not self._counts:
            raise InputError(
                'init="pca" has measured no covariance yet', where="GradientLog",
                fix="run one pass with log.measure(mask=...) first",
            )  # fmt: skip
        found = {}
        for name in self.names_:
            parts = {}
            for side in ("A", "S"):
                matrix = mirrored(self._covariances[f"{side}/{name}"]) / self._counts[name]
                parts[side] = eigenbasis(matrix, f"module {name!r}")[1]
            found[name] = Factor(name, None, parts["A"], parts["S"])
        return found

    def _check_ready(self, ids: Any, divided_by: float) -> None:
        if not self._taps:
            raise InputError("the log is not attached", fix="call attach(model) first")
        if self._step is not None:
            raise InputError("a step is being recorded already", fix="leave the first `with record` block")
        if not np.isfinite(divided_by) or divided_by <= 0:
            raise InputError(f"divided_by is {divided_by!r}", fix="give the positive number of the mean")
        if len(ids) == 0:
            raise InputError("there are no ids to record", fix="give one id per row of the batch")
        assert self.model_ is not None
        noisy = [name or type(m).__name__ for name, m in self.model_.named_modules() if _is_noisy(m)]
        if noisy and self.noise == "refuse":
            raise InputError(
                "in training mode these make gradients random or dependent on the batch: "
                + ", ".join(noisy[:5]),
                fix='call model.eval() for the pass you record, or pass noise="allow"',
            )
        self._noisy = sorted({*self._noisy, *noisy})

    def _refuse_repeats(self, names: list[str]) -> None:
        counted: set[str] = set()
        for name in names:
            if name in counted or name in self._session:
                raise InputError(
                    f"the row id {name!r} was recorded before", where="GradientLog.record",
                    fix="give every row its own id, and record one epoch only",
                )  # fmt: skip
            counted.add(name)

    def _finish(self, step: _Step) -> None:
        missing = [name for name in self.names_ if name not in step.seen]
        if missing:
            listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise UntrackedModuleError(
                f"the backward pass gave no gradient to {listed}",
                where="GradientLog.record",
                fix="their weights are used without calling them, or nothing depends on them: leave them out",
            )
        if self._reduction is not None:
            self._reduced = self._reduction.check(step.divided_by)
            self._handles[0].remove()
            self._reduction = None
        assert step.lines is not None
        if not bool(torch.isfinite(step.lines).all()):
            bad = int((~torch.isfinite(step.lines)).any(1).nonzero()[0, 0])
            column = int((~torch.isfinite(step.lines[bad])).nonzero()[0, 0])
            block = next(b for b in self.layout_.blocks if b.start <= column < b.start + b.size)
            raise NumericalError(
                f"NaN or infinity at row {step.ids[bad]!r}", where=f"module {block.name!r}",
                fix="remove the row, or lower the learning rate",
            )  # fmt: skip
        self._session.update(step.ids)
        new = [k for k, name in enumerate(step.ids) if name not in self._stored]
        if not new:
            return
        lines, names = step.lines[torch.tensor(new)], [step.ids[k] for k in new]
        check_overflow(lines, names, self.layout_, self.dtype, self.scaling)
        stored, exponents = pack(lines, self.dtype, self.scaling)
        sizes = step.mask.sum(1).cpu()[torch.tensor(new)] if step.mask is not None else torch.ones(len(new))
        self._buffer.append((stored, exponents, names, sizes.long()))
        self._held += stored.numel() * stored.element_size()
        if self._held >= SHARD_BYTES:
            self._flush()

    # ── inside: disk ─────────────────────────────────────────────────────────

    def _about(self) -> dict[str, Any]:
        shapes = [[m.name, m.out_features, m.in_features] for m in self.tracked_]
        return {
            "method": "GradientLog", "rank": self.rank, "init": self.init, "seed": self.seed,
            "share": list(self.share or ()), "modules": list(self.names_), "shapes": shapes,
            "dtype": self.dtype, "scaling": self.scaling,
            "curvature": self.curvature, "damping": self.damping,
            "versions": versions("glasshouse.attribution.logra.recording"),
        }  # fmt: skip

    def _open_store(self) -> None:
        """Fresh buffers, and what a killed recording of the same job has left on disk."""
        self._session: set[str] = set()
        self._noisy: list[str] = []
        self._covariances: Tensors = {}
        self._counts: dict[str, float] = {}
        self._buffer: list[tuple[Tensor, Tensor, list[str], Tensor]] = []
        self._held = 0
        self._parts: list[Tensors] = []
        self._names: list[str] = []
        self._disk: Store | None = None
        if self.store is not None:
            self._disk = Store(self.store, {**self._about(), "start_hash": self._start_hash})
            while (found := self._disk.read(f"part-{len(self._parts):05d}")) is not None:
                self._parts.append(found[0])
                listed = files.read_json(self._disk.folder / f"part-{len(self._parts) - 1:05d}.json")
                self._names += listed["ids"]
        self._stored = frozenset(self._names)

    def _flush(self) -> None:
        """Write the buffered lines as one shard: sketches and names first, the part that counts them last."""
        if not self._buffer:
            return
        stored, exponents, names, sizes = zip(*self._buffer, strict=True)
        lines, ids = torch.cat(stored), [name for part in names for name in part]
        part = {
            "exponents": torch.cat(exponents), "loss": torch.full((len(ids),), torch.nan),
            "tokens": torch.cat(sizes), "lines": torch.ones(len(ids), dtype=torch.long), **self._grams,
        }  # fmt: skip
        number = len(self._parts)
        if self._disk is None:
            part["sketches"] = lines
        else:
            size = write_shard(self._disk.folder / "sketches", number, lines)
            part["bytes"] = torch.tensor([size])
            files.write_json(self._disk.folder / f"part-{number:05d}.json", {"ids": ids})
            self._disk.write(f"part-{number:05d}", part)
        self._parts.append(part)
        self._names += ids
        self._buffer, self._held, self._grams = [], 0, {}


def _names(ids: Sequence[Any] | Tensor) -> list[str]:
    return [str(i) for i in (ids.tolist() if isinstance(ids, Tensor) else ids)]
