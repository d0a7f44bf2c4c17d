"""Sites: named places in a model where activations are read or edited, the same on every architecture."""

from __future__ import annotations

import re
from dataclasses import dataclass

from glasshouse.runtime.errors import InputError

LAYERED = (
    "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_act", "z", "q", "k", "v", "pattern",
)  # fmt: skip
GLOBAL = ("embed", "final_norm_in", "final_norm_out", "logits")
WITH_HEADS = ("z", "q", "k", "v", "pattern")

_TEXT = re.compile(r"(?P<kind>[a-z_]+)(?:\.(?P<layer>\d+))?(?:\.(?P<head>\d+))?")


@dataclass(frozen=True, order=True)
class Site:
    """`Site("z", 3, 5)` or `Site.parse("z.3.5")`; shapes are [B, T, d] unless said.

    `embed`; `resid_pre.l` (input of block l); `resid_mid.l` (sequential-residual models only);
    `resid_post.l` (= resid_pre.l+1); `attn_out.l`, `mlp_out.l` (the term added to the residual);
    `z.l[.h]` (input of the attention output projection, [B, T, H, dh]); `q.l`, `k.l`, `v.l` (after the
    projection, before rotary, [B, T, H or Hkv, dh]); `pattern.l` ([B, H, T, T]); `mlp_act.l` (input of
    the MLP down projection); `final_norm_in`, `final_norm_out`, `logits` (of the output matrix: Gemma-2 caps
    them softly after this site).
    """

    kind: str
    layer: int = -1
    head: int = -1

    def __post_init__(self) -> None:
        if self.kind in LAYERED:
            if self.layer < 0:
                raise InputError(f"site {self.kind!r} needs a layer", fix=f"write {self.kind}.0")
        elif self.kind in GLOBAL:
            if self.layer >= 0:
                raise InputError(f"site {self.kind!r} has no layers", fix=f"write {self.kind}")
        else:
            raise InputError(f"unknown site {self.kind!r}", fix=f"choose from {', '.join(LAYERED + GLOBAL)}")
        if self.head >= 0 and self.kind not in WITH_HEADS:
            raise InputError(f"site {self.kind!r} has no heads", fix=f"write {self.kind}.{self.layer}")

    @classmethod
    def parse(cls, text: str | Site) -> Site:
        """Read `kind[.layer[.head]]`. Raises InputError for anything else."""
        if isinstance(text, Site):
            return text
        match = _TEXT.fullmatch(text)
        if match is None:
            raise InputError(
                f"cannot read the site {text!r}", fix="write kind.layer or kind.layer.head, as in z.3.5"
            )
        layer, head = match["layer"], match["head"]
        return cls(match["kind"], -1 if layer is None else int(layer), -1 if head is None else int(head))

    def __str__(self) -> str:
        return ".".join([self.kind, *(str(i) for i in (self.layer, self.head) if i >= 0)])
