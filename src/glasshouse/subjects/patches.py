"""Edits of activations: which site, rows and positions, in which phase, and what is done to the values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from glasshouse.runtime.errors import InputError
from glasshouse.subjects.sites import Site

Op = Literal["set", "add", "scale", "project_out", "fn"]
When = Literal["prefill", "every", "new"]
Positions = Sequence[int] | Sequence[Sequence[int]] | Tensor

_OPS = ("set", "add", "scale", "project_out", "fn")
_WHEN = ("prefill", "every", "new")


@dataclass(frozen=True, eq=False)
class Patch:
    """One edit.

    `op` is `set`, `add`, `scale` (times `value`), `project_out` (remove the direction `value`) or `fn`
    (`value` is a function from the selected activations [m, ...] to new ones of the same shape).
    `value` is a number, [d], [n, d] (one per position; per token when `positions` is None), or [B, n, d];
    d stands for the site's own last axes. It may require gradients. `positions` are token indices into the
    unpadded row, the same for all rows or one list per row (lengths may differ); negative ones count from
    the end of the prompt; None means all. `rows` limits the edit to these rows (a per-row `value` or
    `positions` then has one entry for each of them). `when` says whether prompt tokens (`prefill`),
    generated ones (`new`) or both (`every`) are edited. Patches on one site apply in order, and reads see
    their result.
    """

    site: Site
    op: Op
    value: Tensor | float | Callable[[Tensor], Tensor]
    positions: Positions | None = None
    rows: Sequence[int] | None = None
    when: When = "prefill"
    _table: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "site", Site.parse(self.site))
        where = f"patch of {self.site}"
        if self.op not in _OPS:
            raise InputError(
                f"unknown operation {self.op!r}", where=where, fix=f"use one of {', '.join(_OPS)}"
            )
        if self.when not in _WHEN:
            raise InputError(
                f"unknown phase {self.when!r}", where=where, fix=f"use one of {', '.join(_WHEN)}"
            )
        if callable(self.value) != (self.op == "fn"):
            raise InputError("`fn` takes a function and the other operations take values", where=where)
        if self.positions is not None:
            object.__setattr__(self, "_table", position_table(self.positions))

    def apply(self, x: Tensor, place: Place) -> Tensor:
        """The edited activations [B, T, ...]; `x` itself is never changed."""
        columns = place.ending(x.shape[1])
        if self._covers_all(columns, x):
            return self._edited(x, self._cast(x))
        b, t, j = self._select(columns)
        if not len(b):
            return x
        cells = b.to(x.device), t.to(x.device)  # a split model has its rows described on its first device
        old = x[cells]  # [m, ...]
        new = self._edited(old, self._values(x, columns, b, j))
        return x.index_put(cells, new.to(x.dtype).expand_as(old))

    def _covers_all(self, place: Place, x: Tensor) -> bool:
        if self._table is not None or self.rows is not None:
            return False
        if isinstance(self.value, Tensor) and self.value.ndim > x.ndim - 2:
            return False
        return bool(self._phase(place.absolute, place).all())

    def _phase(self, absolute: Tensor, place: Place) -> Tensor:
        """Which absolute positions [B, k] this patch may edit, going by its phase."""
        inside = absolute >= 0
        if self.when == "prefill":
            return inside & (absolute < place.prompt_lengths[:, None])
        if self.when == "new":
            return inside & (absolute >= place.prompt_lengths[:, None])
        return inside

    def _select(self, place: Place) -> tuple[Tensor, Tensor, Tensor]:
        """Batch line, column and index into `positions` of every activation to edit."""
        mine = self._lines(place)
        if self._table is None:
            b, t = (self._phase(place.absolute, place) & mine[:, None]).nonzero(as_tuple=True)
            return b, t, place.absolute[b, t]  # entry j of a value is for token j
        wanted, given = self._wanted(place)
        self._check_inside(wanted, given & mine[:, None], place)
        columns = wanted - place.past + place.starts[:, None]
        here = given & mine[:, None] & (columns >= 0) & (columns < place.width) & self._phase(wanted, place)
        b, j = here.nonzero(as_tuple=True)
        return b, columns[b, j], j

    def _lines(self, place: Place) -> Tensor:
        if self.rows is None:
            return torch.ones_like(place.rows, dtype=torch.bool)
        return torch.isin(place.rows, torch.tensor(list(self.rows), device=place.rows.device))

    def _own_row(self, place: Place) -> Tensor:
        """For each line of the batch, its index into per-row values and positions."""
        if self.rows is None:
            return place.rows
        order = torch.tensor(list(self.rows), device=place.rows.device)
        return (place.rows[:, None] == order).int().argmax(1)

    def _wanted(self, place: Place) -> tuple[Tensor, Tensor]:
        """Absolute positions [B, n] and which of them exist."""
        assert self._table is not None
        wanted, given = (t.to(place.rows.device) for t in self._table)
        if len(wanted) == 1:
            wanted, given = (t.expand(len(place.rows), -1) for t in (wanted, given))
        else:
            own = self._own_row(place)
            if int(own.max()) >= len(wanted):
                raise InputError(
                    f"positions for {len(wanted)} rows, but the batch has row {int(own.max())}",
                    where=f"patch of {self.site}",
                    fix="give one list of positions per row",
                )
            wanted, given = wanted[own], given[own]
        return torch.where(wanted < 0, wanted + place.prompt_lengths[:, None], wanted), given

    def _check_inside(self, wanted: Tensor, chosen: Tensor, place: Place) -> None:
        limit = place.prompt_lengths[:, None] if self.when == "prefill" else torch.iinfo(torch.int64).max
        if bool((chosen & ((wanted < 0) | (wanted >= limit))).any()):
            line = int((chosen & ((wanted < 0) | (wanted >= limit))).any(1).int().argmax())
            raise InputError(
                f"a position lies outside row {int(place.rows[line])}",
                where=f"patch of {self.site}",
                fix="give indices into the unpadded row",
            )

    def _values(self, x: Tensor, place: Place, b: Tensor, j: Tensor) -> Any:
        value = self._cast(x)
        if not isinstance(value, Tensor):
            return value
        extra = value.ndim - (x.ndim - 2)
        if extra <= 0:
            return value
        try:
            own, j = self._own_row(place)[b].to(x.device), j.to(x.device)
            if extra == 1:
                return value[j]
            # An axis of length 1 stands for all rows, or for all positions.
            return value[own if len(value) > 1 else own * 0, j if value.shape[1] > 1 else j * 0]
        except IndexError:
            raise InputError(
                f"a value of shape {tuple(value.shape)} has no entry for every row and position",
                where=f"patch of {self.site}",
                fix="give [d], [n, d] or [B, n, d]",
            ) from None

    def _cast(self, x: Tensor) -> Any:
        if not isinstance(self.value, Tensor):
            return self.value
        value = self.value.to(device=x.device, dtype=x.dtype)
        if value.ndim and value.shape[-1] != x.shape[-1]:
            raise InputError(
                f"a value of shape {tuple(value.shape)} does not fit activations of width {x.shape[-1]}",
                where=f"patch of {self.site}",
            )
        return value

    def _edited(self, old: Tensor, value: Any) -> Tensor:
        if self.op == "set":
            new = (
                value
                if isinstance(value, Tensor)
                else torch.as_tensor(value, dtype=old.dtype, device=old.device)
            )
            return new.expand_as(old)
        if self.op == "add":
            return old + value
        if self.op == "scale":
            return old * value
        if self.op == "project_out":
            return _project_out(old, value)
        new = value(old)
        if not isinstance(new, Tensor) or new.shape != old.shape:
            raise InputError(
                f"the function turned shape {tuple(old.shape)} into {tuple(getattr(new, 'shape', ()))}",
                where=f"patch of {self.site}",
                fix="return a tensor of the same shape",
            )
        return new


@dataclass(frozen=True)
class Place:
    """Where the columns of a batch stand: line b is row `rows[b]`, its first token in column `starts[b]`.

    The batch holds columns past .. past + width - 1 of the sequences; `prompt_lengths` [B] separate prompt
    tokens from generated ones.
    """

    rows: Tensor
    starts: Tensor
    prompt_lengths: Tensor
    past: int
    width: int

    @property
    def absolute(self) -> Tensor:
        """The token index of every cell [B, width]; negative on left padding."""
        columns = torch.arange(self.past, self.past + self.width, device=self.rows.device)
        return columns - self.starts[:, None]

    def ending(self, width: int) -> Place:
        """The last `width` columns: what the output matrix sees when only the end is unembedded."""
        if width == self.width:
            return self
        return Place(self.rows, self.starts, self.prompt_lengths, self.past + self.width - width, width)


def position_table(positions: Positions) -> tuple[Tensor, Tensor]:
    """Positions as [1 or B, n], and which entries exist (rows may list different numbers of them)."""
    if isinstance(positions, Tensor):
        table = positions.long() if positions.ndim == 2 else positions.long()[None]
        return table, torch.ones_like(table, dtype=torch.bool)
    listed = list(positions)
    rows: list[list[int]]
    rows = [listed] if not listed or isinstance(listed[0], int) else [list(one) for one in listed]  # type: ignore
    width = max(len(row) for row in rows)
    table = torch.tensor([[*row, *([0] * (width - len(row)))] for row in rows], dtype=torch.long)
    given = torch.tensor([[i < len(row) for i in range(width)] for row in rows], dtype=torch.bool)
    return table.reshape(len(rows), width), given.reshape(len(rows), width)


def _project_out(old: Tensor, direction: Any) -> Tensor:
    if not isinstance(direction, Tensor) or not direction.ndim:
        raise InputError("project_out needs a direction", fix="give a vector of the site's width")
    x, u = old.float(), direction.float()
    share = (x * u).sum(-1, keepdim=True) / (u * u).sum(-1, keepdim=True).clamp_min(1e-30)
    return (x - share * u).to(old.dtype)
