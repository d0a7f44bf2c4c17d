"""A row of the architecture table for a model that has none, from its structure and one plain pass.

The pass decides what names cannot: the two terms are those modules of block 0 whose outputs, added to its
input, give its output. What is found is trusted only after the self-test.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from glasshouse.runtime.errors import UnknownArchitecture
from glasshouse.subjects.architectures import Architecture, architectures
from glasshouse.subjects.modes import evaluating
from glasshouse.subjects.modules import kind_of

# Relative error of a sum of three terms: rounding of bf16 stays under it, a missing scale or norm does not.
_CLOSE = 2e-2


class _Call(NamedTuple):
    """One module that block 0 ran: path in the block, module, first tensor in, first tensor out."""

    path: str
    module: nn.Module
    given: Tensor
    made: Tensor


class _Unclear(Exception):
    """What the structure does not show."""


def probe(model: nn.Module, model_type: str) -> Architecture:
    """The row this model would have. Raises UnknownArchitecture saying which part was not found."""
    try:
        return _probe(model, model_type)
    except _Unclear as unclear:
        listed = ", ".join(row.name for row in architectures())
        raise UnknownArchitecture(
            f"{model_type!r} is in no row of the table ({listed}), and its structure does not show {unclear}",
            fix="describe its modules with register_arch",
        ) from unclear


def _probe(model: nn.Module, model_type: str) -> Architecture:
    names = {module: name for name, module in model.named_modules()}
    unembed = _output_matrix(model)
    blocks = _blocks(model)
    body = names[blocks].rpartition(".")[0]
    final_norm = _final_norm(model.get_submodule(body), blocks)
    calls, block = _one_pass(model, blocks[0])
    first, second = _terms(calls, block)
    attention = _attention(calls)
    mlp = _mlp(calls, attention)
    if _is(second, attention) or _is(first, mlp):
        first, second = second, first  # a parallel block that runs its MLP first
    qkv, layout = _projections(calls, attention)
    return Architecture(
        name=model_type,
        model_types=(model_type,),
        blocks=names[blocks],
        final_norm=names[final_norm],
        attention=attention.path,
        out_proj=_last_matrix(calls, attention, "attention").path,
        qkv=qkv,
        qkv_layout="separate" if len(qkv) == 3 else layout,
        mlp=mlp.path,
        down_proj=_last_matrix(calls, mlp, "MLP").path,
        mid_norm=_reads_between(calls, block, first),
        unembed=names[unembed],
        attn_out=None if _is(first, attention) else first.path,
        mlp_out=None if _is(second, mlp) else second.path,
    )


def _output_matrix(model: Any) -> nn.Module:
    get = getattr(model, "get_output_embeddings", None)
    found = get() if get is not None else None
    if not isinstance(found, nn.Module):
        raise _Unclear("an output matrix")
    return found


def _blocks(model: nn.Module) -> nn.ModuleList:
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len({type(b) for b in m}) == 1]
    if not lists:
        raise _Unclear("a list of equal blocks")
    return max(lists, key=len)


def _final_norm(body: nn.Module, blocks: nn.ModuleList) -> nn.Module:
    inside = set(blocks.modules())
    norms = [m for m in body.modules() if "norm" in type(m).__name__.lower() and m not in inside]
    if not norms:
        raise _Unclear("a norm before the output matrix")
    return norms[-1]


def _one_pass(model: nn.Module, block: nn.Module) -> tuple[list[_Call], _Call]:
    """What the modules of `block` were given and made, in the order in which they finished."""
    calls: list[_Call] = []

    def record(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given, made = _tensor([*args, *kwargs.values()]), _tensor([output])
            if given is not None and made is not None:
                calls.append(_Call(path, module, given.detach().clone(), made.detach().clone()))

        return hook

    handles = [
        module.register_forward_hook(record(path), with_kwargs=True) for path, module in block.named_modules()
    ]
    ids = torch.arange(1, 7, device=next(model.parameters()).device)[None]
    try:
        with torch.no_grad(), evaluating(model):
            model(input_ids=ids, use_cache=False)
    except Exception as error:  # any model at all may come here
        raise _Unclear(f"how to run it ({type(error).__name__}: {error})"[:200]) from error
    finally:
        for handle in handles:
            handle.remove()
    whole = [call for call in calls if not call.path]
    if len(whole) != 1:
        raise _Unclear("blocks that run once each")
    return [call for call in calls if call.path], whole[0]


def _tensor(values: Any) -> Tensor | None:
    """The first floating tensor, looking into tuples."""
    for value in values:
        found = _tensor(value) if isinstance(value, tuple | list) else value
        if isinstance(found, Tensor) and found.is_floating_point():
            return found
    return None


def _terms(calls: list[_Call], block: _Call) -> tuple[_Call, _Call]:
    """The two direct children whose outputs make up what the block adds to its input."""
    children = [c for c in calls if "." not in c.path and c.made.numel() == block.made.numel()]
    added = block.made.float() - block.given.float()
    errors = [
        (_distance(added, _sum(one, two).reshape_as(added)), index, one, two)
        for index, (one, two) in enumerate(combinations(children, 2))
    ]
    error, _, one, two = min(errors, default=(float("inf"), 0, block, block))
    if not error <= _CLOSE:
        raise _Unclear("two terms that a block adds to its input")
    return one, two


def _sum(one: _Call, two: _Call) -> Tensor:
    return one.made.float().flatten() + two.made.float().flatten()


def _distance(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs().max() / b.abs().max().clamp_min(1e-12)).item())


def _is(one: _Call, other: _Call) -> bool:
    return one.path == other.path


def _attention(calls: list[_Call]) -> _Call:
    for call in calls:
        if "." not in call.path and "att" in type(call.module).__name__.lower() and _matrices(calls, call):
            return call
    raise _Unclear("an attention module in its blocks")


def _mlp(calls: list[_Call], attention: _Call) -> _Call:
    found = [c for c in calls if "." not in c.path and not _is(c, attention) and _matrices(calls, c)]
    if not found:
        raise _Unclear("an MLP in its blocks")
    return found[-1]


def _matrices(calls: list[_Call], parent: _Call) -> list[_Call]:
    """The linear maps that ran in a module (or are it), in order."""
    inside = [c for c in calls if _is(c, parent) or c.path.startswith(f"{parent.path}.")]
    return [c for c in inside if kind_of(c.module) in ("linear", "conv1d")]


def _last_matrix(calls: list[_Call], parent: _Call, what: str) -> _Call:
    last = _matrices(calls, parent)[-1]
    if last.made.numel() != parent.made.numel():
        raise _Unclear(f"an output projection of its {what}")
    return last


def _projections(calls: list[_Call], attention: _Call) -> tuple[tuple[str, ...], Any]:
    """The paths of q, k, v or of the one fused projection, and how the fused one is likely laid out."""
    paths = [call.path for call in _matrices(calls, attention)[:-1]]
    named = [next(_starting(paths, letter), "") for letter in "qkv"]
    if all(named) and len(set(named)) == 3:
        return tuple(named), "separate"
    if len(paths) == 1:
        return (paths[0],), "per_head" if paths[0].endswith("query_key_value") else "blocks"
    raise _Unclear("its query, key and value projections")


def _starting(paths: list[str], letter: str) -> Iterator[str]:
    return (path for path in paths if path.rpartition(".")[2].startswith((letter, f"w{letter}")))


def _reads_between(calls: list[_Call], block: _Call, first: _Call) -> str | None:
    """The direct child that is given the residual between the two terms."""
    between = (block.given.float().flatten() + first.made.float().flatten()).reshape_as(block.given)
    for call in calls:
        if "." in call.path or call.given.numel() != between.numel():
            continue
        if _distance(call.given.float().reshape_as(between), between) <= _CLOSE:
            return call.path
    return None
