"""Which module holds a site, and how the site's own axes lie in that module's tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from glasshouse.runtime.errors import AccessError, InputError
from glasshouse.subjects.architectures import Parts
from glasshouse.subjects.sites import GLOBAL, LAYERED, Site


class View(NamedTuple):
    """`get(x)` is the site's part of a module tensor, `put(x, new)` the tensor with that part replaced."""

    get: Callable[[Tensor], Tensor]
    put: Callable[[Tensor, Tensor], Tensor]


class Location(NamedTuple):
    """A site's module, whether it is its input or output, and which element when the output is a tuple."""

    module: nn.Module
    side: Literal["in", "out"]
    element: int
    view: View


WHOLE = View(lambda x: x, lambda _, new: new)


def all_sites(parts: Parts) -> list[Site]:
    """Every site of the model, without single heads."""
    kinds = [kind for kind in LAYERED if kind != "resid_mid" or parts.has_mid]
    layered = [Site(kind, layer) for layer in range(len(parts.blocks)) for kind in kinds]
    return [*(Site(kind) for kind in GLOBAL), *layered]


def find(parts: Parts, site: Site) -> Location:
    """Where a site is. Raises InputError for a missing layer or head, AccessError for a missing kind."""
    _check(parts, site)
    row, layer = parts.architecture, site.layer
    if site.kind in ("final_norm_in", "final_norm_out"):
        return Location(parts.final_norm, "in" if site.kind == "final_norm_in" else "out", 0, WHOLE)
    if site.kind == "logits":
        return Location(parts.unembed, "out", 0, WHOLE)
    if site.kind == "embed":
        return Location(parts.blocks[0], "in", 0, WHOLE)
    if site.kind in ("resid_pre", "resid_post"):
        return Location(parts.blocks[layer], "in" if site.kind == "resid_pre" else "out", 0, WHOLE)
    if site.kind == "resid_mid":
        return Location(parts.in_block(layer, str(row.mid_norm)), "in", 0, WHOLE)
    if site.kind == "pattern":
        view = WHOLE if site.head < 0 else View(lambda x: x[:, site.head], _read_only)
        return Location(parts.in_block(layer, row.attention), "out", 1, view)
    if site.kind == "attn_out":
        return Location(parts.in_block(layer, row.attn_out or row.attention), "out", 0, WHOLE)
    if site.kind == "mlp_out":
        return Location(parts.in_block(layer, row.mlp_out or row.mlp), "out", 0, WHOLE)
    if site.kind == "mlp_act":
        return Location(parts.in_block(layer, row.down_proj), "in", 0, WHOLE)
    if site.kind == "z":
        view = _one_head(_heads(parts.n_heads), site.head)
        return Location(parts.in_block(layer, row.out_proj), "in", 0, view)
    which = "qkv".index(site.kind)
    module = parts.in_block(layer, row.qkv[which if row.qkv_layout == "separate" else 0])
    return Location(module, "out", 0, _one_head(_projection(parts, which), site.head))


def _check(parts: Parts, site: Site) -> None:
    if site.layer >= len(parts.blocks):
        raise InputError(
            f"the model has {len(parts.blocks)} layers", where=f"site {site}", fix="count from 0"
        )
    heads = parts.n_kv_heads if site.kind in ("k", "v") else parts.n_heads
    if site.head >= heads:
        raise InputError(f"the site has {heads} heads", where=f"site {site}", fix="count from 0")
    if site.kind == "resid_mid" and not parts.has_mid:
        raise AccessError(
            "attention and MLP of this model read the same residual, so there is none between them",
            where=f"site {site}",
            fix="use resid_pre and resid_post",
        )


def _heads(count: int) -> View:
    return View(lambda x: x.unflatten(-1, (count, -1)), lambda _, new: new.flatten(-2))


def _projection(parts: Parts, which: int) -> View:
    """The view of q, k or v (0, 1, 2) in the output of its projection."""
    layout, d_head = parts.architecture.qkv_layout, parts.d_head
    counts = (parts.n_heads, parts.n_kv_heads, parts.n_kv_heads)
    if layout == "separate":
        return _heads(counts[which])
    if layout == "blocks":  # [Q K V]
        sizes = [count * d_head for count in counts]

        def get(x: Tensor) -> Tensor:
            return x.split(sizes, -1)[which].unflatten(-1, (counts[which], d_head))

        def put(x: Tensor, new: Tensor) -> Tensor:
            three = list(x.split(sizes, -1))
            three[which] = new.flatten(-2)
            return torch.cat(three, -1)

        return View(get, put)

    def get_per_head(x: Tensor) -> Tensor:  # [.., H, 3 dh] holds [q k v] of each head
        return x.unflatten(-1, (parts.n_heads, 3, d_head))[..., which, :]

    def put_per_head(x: Tensor, new: Tensor) -> Tensor:
        three = list(x.unflatten(-1, (parts.n_heads, 3, d_head)).unbind(-2))
        three[which] = new
        return torch.stack(three, -2).flatten(-3)

    return View(get_per_head, put_per_head)


def _one_head(view: View, head: int) -> View:
    """The same view narrowed to one head: [B, T, dh]."""
    if head < 0:
        return view

    def put(x: Tensor, new: Tensor) -> Tensor:
        heads = view.get(x)
        return view.put(
            x, torch.cat([heads[..., :head, :], new.unsqueeze(-2), heads[..., head + 1 :, :]], -2)
        )

    return View(lambda x: view.get(x)[..., head, :], put)


def _read_only(_: Tensor, new: Tensor) -> Tensor:
    return new
