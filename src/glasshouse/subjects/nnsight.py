"""A bridge to nnsight, an optional extra: our site names as its envoys.

    model = to_nnsight(subject)
    with model.trace(input_ids=ids):
        value = read_site(model, subject, "mlp_out.3").save()

nnsight compiles the source of the `with` block, so a trace must stand in a file or a notebook.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from torch import Tensor

from glasshouse.runtime.errors import AccessError, MissingDependency
from glasshouse.subjects.opened import Opened
from glasshouse.subjects.sites import Site
from glasshouse.subjects.views import Location, find


@dataclass(frozen=True)
class Envoy:
    """Where a site is in nnsight's terms.

    `module` is the module's path in the model, `side` the attribute of its envoy, `element` the place in it
    when the output is a tuple. `str()` is what one writes after the model: `model.layers[3].mlp.output`.
    """

    module: str
    side: Literal["input", "output"]
    element: int = 0

    def __str__(self) -> str:
        parts = [f"[{part}]" if part.isdigit() else f".{part}" for part in self.module.split(".")]
        return f"{''.join(parts)}.{self.side}".lstrip(".")


def to_nnsight(subject: Opened) -> Any:
    """The subject's own model wrapped by nnsight; no weight is copied, ours and theirs see the same model.

    Raises MissingDependency when nnsight is not installed.
    """
    if find_spec("nnsight") is None:
        raise MissingDependency(
            "nnsight is not installed", where="to_nnsight", fix="pip install 'glasshouse[nnsight]'"
        )
    from nnsight import NNsight

    return NNsight(subject.model)


def envoy(subject: Opened, site: str | Site) -> Envoy:
    """Where nnsight finds a site of this model; needs no nnsight.

    Heads and the three parts of a fused projection are views of one envoy: `read_site` takes them out.
    Raises InputError for a site that does not exist, AccessError for one this model does not have.
    """
    place = _located(subject, site)
    for name, module in subject.model.named_modules():
        if module is place.module:
            return Envoy(name, "input" if place.side == "in" else "output", place.element)
    raise AccessError("its module is not part of the model", where=f"site {site}", fix="open the whole model")


def read_site(model: Any, subject: Opened, site: str | Site) -> Tensor:
    """The value of a site inside a trace of `model = to_nnsight(subject)`, in the shape `subject` gives it.

    A copy, because some models change a projection in place. OPT flattens rows and positions around its
    MLP, so what lies there comes as [B * T, d].
    """
    where, place = envoy(subject, site), _located(subject, site)
    return place.view.get(_element(_held(model, where), where.element)).clone()


def edit_site(model: Any, subject: Opened, site: str | Site, value: Tensor) -> None:
    """Replace a site inside a trace of `model = to_nnsight(subject)`.

    Raises AccessError for attention patterns, which are used by then, and for `resid_mid`, which the block
    adds to as well as reads: use the patches of `subject` there.
    """
    where, place = envoy(subject, site), _located(subject, site)
    if Site.parse(site).kind in ("pattern", "resid_mid"):
        raise AccessError(
            "it can be read, not edited, through nnsight", where=f"site {site}", fix="edit z, or attn_out"
        )
    whole = _held(model, where)
    made: Any = place.view.put(_element(whole, where.element), value)
    if isinstance(whole, tuple):
        made = (*whole[: where.element], made, *whole[where.element + 1 :])
    setattr(_envoy(model, where.module), where.side, made)


def _located(subject: Opened, site: str | Site) -> Location:
    return find(subject.parts, Site.parse(site))


def _envoy(model: Any, path: str) -> Any:
    found = model
    for part in path.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    return found


def _held(model: Any, where: Envoy) -> Any:
    return getattr(_envoy(model, where.module), where.side)


def _element(whole: Any, element: int) -> Tensor:
    return whole[element] if isinstance(whole, tuple) else whole
