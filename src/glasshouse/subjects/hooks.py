"""One session of reads and edits: hooks on plain modules, one per module side, removed whatever happens.

Rules that keep results right: edits come before reads; nothing is changed in place; hooks run before those
that transformers installs for itself (`prepend`); positions are those of the unpadded row, in every phase.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from glasshouse.runtime.errors import AccessError, InputError
from glasshouse.subjects.architectures import Parts
from glasshouse.subjects.patches import Patch, Place, Positions, position_table
from glasshouse.subjects.sites import Site
from glasshouse.subjects.views import View, find

Reduce = Callable[[Site, Tensor], Any]

_ACTIVE: weakref.WeakKeyDictionary[nn.Module, Session] = weakref.WeakKeyDictionary()


class Stop(Exception):
    """Raised inside the forward pass once the last site wanted has been read."""


@dataclass
class _Slot:
    """One site on a module side: its edits, and whether it is read."""

    site: Site
    element: int
    view: View
    patches: list[Patch] = field(default_factory=list)
    read: bool = False
    stop: bool = False


class Session:
    """Hooks for `patches` and `reads`, active inside a `with` block; `acts` fills as the model runs.

    `reduce(site, tensor)` replaces what is kept of each read. Raises InputError when another session is
    active on the model, in this thread or another.
    """

    def __init__(
        self,
        parts: Parts,
        patches: Sequence[Patch] = (),
        reads: Sequence[Site] = (),
        *,
        grad: bool = False,
        positions: Positions | None = None,
        stop_after: Site | None = None,
        reduce: Reduce | None = None,
    ) -> None:
        self.parts, self.patches, self.grad, self.reduce = parts, tuple(patches), grad, reduce
        self.positions = None if positions is None else position_table(positions)
        self.acts: dict[Site, Any] = {}
        self.running = False
        self.thread = threading.get_ident()
        self._slots: dict[tuple[int, str], list[_Slot]] = {}
        self._modules: dict[int, nn.Module] = {}
        self._deltas: dict[int, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self._given: tuple[Tensor, Tensor, Tensor] | None = None
        self._prompt_lengths: Tensor | None = None
        self._place: Place | None = None
        self._plan(reads, stop_after)

    def place(self, rows: Tensor, starts: Tensor, prompt_lengths: Tensor) -> None:
        """Say where the lines of the next forward pass stand (see `Place`)."""
        self._given = rows, starts, prompt_lengths

    def __enter__(self) -> Session:
        other = _ACTIVE.get(self.parts.base)
        if other is not None:
            raise InputError(
                "this model already runs under other patches",
                fix="give all patches in one list, and use one thread per model",
            )
        _ACTIVE[self.parts.base] = self
        try:
            self._install()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.running = False
        if _ACTIVE.get(self.parts.base) is self:
            del _ACTIVE[self.parts.base]

    # -- plan ------------------------------------------------------------------------------------------------

    def _plan(self, reads: Sequence[Site], stop_after: Site | None) -> None:
        sites = dict.fromkeys(
            [*(patch.site for patch in self.patches), *reads, *([stop_after] if stop_after else [])]
        )
        for site in sites:
            slot = self._slot(site)
            slot.patches = [patch for patch in self.patches if patch.site == site]
            slot.read = site in reads
            slot.stop = site == stop_after
            if slot.patches and site.kind == "pattern":
                raise AccessError(
                    "attention patterns can be read, not edited", where=f"site {site}", fix="edit z"
                )
            if slot.patches and site.kind == "resid_mid":
                self._side(self.parts.blocks[site.layer], "out")  # where the edit joins the residual
        for slots in self._slots.values():
            # The stream enters block 0 as `embed` and is then `resid_pre.0`; whole sites before their heads.
            slots.sort(key=lambda slot: (slot.site.kind != "embed", slot.site.head))

    def _slot(self, site: Site) -> _Slot:
        location = find(self.parts, site)
        slot = _Slot(site, location.element, location.view)
        self._side(location.module, location.side).append(slot)
        return slot

    def _side(self, module: nn.Module, side: str) -> list[_Slot]:
        self._modules[id(module)] = module
        return self._slots.setdefault((id(module), side), [])

    def _install(self) -> None:
        base = self.parts.base
        self._handles.append(base.register_forward_pre_hook(self._before, prepend=True, with_kwargs=True))
        self._handles.append(base.register_forward_hook(self._after, prepend=True, always_call=True))
        for (key, side), slots in self._slots.items():
            module = self._modules[key]
            if side == "in":
                hook = self._input_hook(slots)
                self._handles.append(module.register_forward_pre_hook(hook, prepend=True, with_kwargs=True))
            else:
                self._handles.append(
                    module.register_forward_hook(self._output_hook(slots, module), prepend=True)
                )

    # -- where we are ----------------------------------------------------------------------------------------

    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.running = True
        self._deltas = {}
        ids = args[0] if args else kwargs.get("input_ids")
        ids = kwargs["inputs_embeds"] if ids is None else ids
        cache = kwargs.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        rows, starts, lengths = self._given or self._derive(ids, kwargs.get("attention_mask"), past)
        self._given = None
        self._place = Place(rows, starts, lengths, past, int(ids.shape[1]))

    def _after(self, *_: object) -> None:
        self.running = False

    def _derive(self, ids: Tensor, mask: Tensor | None, past: int) -> tuple[Tensor, Tensor, Tensor]:
        """The place of a batch that someone else's code runs: prompts are what the first pass held."""
        lines, width = int(ids.shape[0]), int(ids.shape[1])
        rows = torch.arange(lines, device=ids.device)
        if mask is not None and mask.ndim == 2:
            starts, lengths = mask.int().argmax(1), mask.sum(1)
        else:
            starts, lengths = torch.zeros_like(rows), torch.full_like(rows, past + width)
        if not past:
            self._prompt_lengths = lengths
        if self._prompt_lengths is None or len(self._prompt_lengths) != lines:
            raise InputError(
                "cannot tell prompt from generated tokens in this pass",
                fix="start under the patches, with no cache",
            )
        return rows, starts, self._prompt_lengths

    # -- hooks -----------------------------------------------------------------------------------------------

    def _input_hook(self, slots: list[_Slot]) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            name = None if args else next(iter(kwargs))
            x = args[0] if name is None else kwargs[name]
            for slot in slots:
                x = self._visit(slot, x)
            return ((x, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: x})

        return hook

    def _output_hook(self, slots: list[_Slot], module: nn.Module) -> Callable[..., Any]:
        layer = next((i for i, block in enumerate(self.parts.blocks) if block is module), -1)

        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            outputs = list(output) if isinstance(output, tuple) else [output]
            if layer in self._deltas:
                outputs[0] = outputs[0] + self._deltas.pop(layer)
            for slot in slots:
                outputs[slot.element] = self._visit(slot, outputs[slot.element])
            return tuple(outputs) if isinstance(output, tuple) else outputs[0]

        return hook

    def _visit(self, slot: _Slot, x: Tensor) -> Tensor:
        """Edit, then record; the module's tensor with the edits."""
        assert self._place is not None
        if x.ndim == 2 and len(x) == len(self._place.rows) * self._place.width:
            # OPT flattens rows and positions around its MLP.
            return self._visit(slot, x.unflatten(0, (-1, self._place.width))).flatten(0, 1)
        part = slot.view.get(x)
        if slot.patches:
            old = part
            for patch in slot.patches:
                part = patch.apply(part, self._place)
            x = slot.view.put(x, part)
            if slot.site.kind == "resid_mid":
                # The norm reads the residual, but the block adds the MLP to it: give both the same edit.
                self._deltas[slot.site.layer] = part - old
        elif slot.read and self.grad:
            x = slot.view.put(x, part)  # so that what is kept lies on the path to the logits
        if slot.read:
            self._keep(slot.site, part)
            if slot.site.kind in ("q", "k", "v"):
                x = x.clone()  # OLMo clips its projections in place
        if slot.stop:
            raise Stop
        return x

    def _keep(self, site: Site, part: Tensor) -> None:
        if self.positions is not None and site.kind != "pattern":
            part = self._gathered(part)
        kept = part if self.grad else part.detach()
        self.acts[site] = kept if self.reduce is None else self.reduce(site, kept)

    def _gathered(self, part: Tensor) -> Tensor:
        """[B, T, ...] at the wanted positions: [B, n, ...]."""
        assert self.positions is not None and self._place is not None
        place = self._place.ending(part.shape[1])
        # In a model split over devices the rows are described on the first one.
        wanted, given = (t.to(place.rows.device).expand(len(part), -1) for t in self.positions)
        if not bool(given.all()):
            raise InputError(
                "rows ask for different numbers of positions", fix="give the same number for each"
            )
        wanted = torch.where(wanted < 0, wanted + place.prompt_lengths[:, None], wanted)
        if bool(((wanted < 0) | (wanted >= place.prompt_lengths[:, None])).any()):
            raise InputError("a position lies outside its row", fix="give indices into the unpadded row")
        columns = (wanted - place.past + place.starts[:, None]).to(part.device)
        return part[torch.arange(len(part), device=part.device)[:, None], columns]


def active(parts: Parts) -> Session | None:
    """The model's active session; InputError for one of another thread, or inside a forward pass."""
    session = _ACTIVE.get(parts.base)
    if session is None:
        return None
    if session.thread != threading.get_ident():
        raise InputError("another thread has patches on this model", fix="use one model per thread")
    if session.running:
        raise InputError(
            "the model is called from inside its own forward pass", fix="compute values beforehand"
        )
    return session


@contextmanager
def suspended(session: Session | None) -> Iterator[None]:
    """Take a session's hooks off inside the block, for a pass that brings them along itself."""
    if session is None:
        yield
        return
    session.__exit__()
    try:
        yield
    finally:
        session.__enter__()
