"""The exact first and second moments of (a, d) = (activation of the reference, its change), step by step.

`s = W0 a + b0`, `ds = (W1 - W0) a + W1 d + (b1 - b0)`, then a shared gate z per unit: `a <- z s`, `d <- z ds`
(Dhawan, Huang, Bae, Grosse 2023, arXiv:2302.03519, section 3). With mu the probability of an open gate,
`E[z_i z_j] = mu_i mu_j` for different units and `mu_i` for the same one, across a and d too. All is kept
centred: covariances of (a, d) beside their means.

Before the first gate every value is a linear form of the input's noise (`Form`), so only factors enter, and
the change is zero at the input; behind it, covariances are dense (`Block`). What belongs to the reference
alone is computed once per sketch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glasshouse.attribution.function_space_distance.covariances import (
    Block,
    Columns,
    Form,
    added,
    columns,
    dense,
    mapped,
    on_diagonal,
    plus,
    product,
    times,
    trace_through,
)
from glasshouse.attribution.function_space_distance.forward import Gates, Shapes, gains
from glasshouse.attribution.function_space_distance.moments import InputMoments
from glasshouse.attribution.function_space_distance.program import (
    AFFINE,
    ALIAS,
    FIXED,
    Affine,
    Node,
    apply,
    bias_of,
    windows,
)

Still = dict[tuple[str, ...], Tensor]


@dataclass
class Joint:
    """The moments of the values that are still needed, and the rules of every step."""

    nodes: Sequence[Node]
    base: Mapping[str, Affine]
    moved: Mapping[str, Affine]
    gates: Gates
    shapes: Shapes
    still: Still
    tangent: bool = False
    """Linearise at the reference: products of two changes are left out."""
    ma: dict[str, Tensor] = field(default_factory=dict)
    md: dict[str, Tensor | None] = field(default_factory=dict)
    forms: dict[str, Form] = field(default_factory=dict)
    blocks: dict[tuple[str, str], Block] = field(default_factory=dict)
    live: set[str] = field(default_factory=set)
    """Values that a later step still reads."""

    def run(self, moments: InputMoments) -> tuple[Tensor, Tensor]:
        """Per class the mean change [K, k] and the traces [K] of its covariance at the output."""
        last = {p: i for i, node in enumerate(self.nodes) for p in node.parents}
        end = self._end()
        for i, node in enumerate(self.nodes):
            if node.name == end:
                break
            dying = {name for name in self.live if last.get(name, -1) <= i}
            self.live -= dying
            self._step(node, moments)
            self.live.add(node.name)
            self._forget(dying)
        return self._output(end)

    # -- steps -----------------------------------------------------------------------------------------------

    def _step(self, node: Node, moments: InputMoments) -> None:
        if node.kind == "input":
            noise = moments.diagonal.sqrt() if bool(moments.diagonal.any()) else None
            self.ma[node.name], self.md[node.name] = moments.mean, None
            self.forms[node.name] = Form(moments.factor, None, noise, None)
        elif node.kind in AFFINE or node.kind in FIXED:
            self._affine(node)
        elif node.kind in ALIAS:
            self._alias(node)
        elif node.kind == "add":
            self._add(node)
        elif node.kind == "maxpool":
            self._route(node)
        else:
            self._gate(node)

    def _affine(self, node: Node) -> None:
        (p,) = node.parents
        A0, A1, dA = self._maps(node)
        v, after = node.name, self.shapes[node.name]
        (_, b0), (_, b1) = self.base.get(v, (None, None)), self.moved.get(v, (None, None))
        bias = bias_of(node, b0, after)
        self.ma[v] = self._once(("ma", v), lambda: A0(self.ma[p]) + bias)
        shift = bias_of(node, b1, after) - bias if node.kind in AFFINE else None
        change = added(dA and dA(self.ma[p]), mapped(A1, self.md[p]), shift)
        self.md[v] = None if change is None else change.expand_as(self.ma[v])
        if p in self.forms:
            self.forms[v] = self._moved_form(node, self.forms[p])
            others = [w for w in self.live if w not in self.forms]
        else:
            self.blocks[v, v] = self._left(node, self._left(node, self.block(p, p), (p, p)).mT, (v, p))
            others = list(self.live)
        for w in others:
            self.blocks[v, w] = self._left(node, self.block(p, w), (p, w))

    def _moved_form(self, node: Node, f: Form) -> Form:
        A0, A1, dA = self._maps(node)
        if node.kind in ("gain", "batchnorm") and f.Sa is not None:
            Fa = self._once(("Fa", node.name), lambda: columns(A0, f.Fa))
            Fd = added(dA and columns(dA, f.Fa), f.Fd is not None and columns(A1, f.Fd))
            Sd = added(dA and dA(f.Sa), f.Sd is not None and A1(f.Sd))
            return Form(Fa, Fd, A0(f.Sa), Sd)

        def mixed(A: Columns, F: Tensor, S: Tensor | None) -> Tensor:
            found = columns(A, F)
            return found if S is None else torch.cat([found, self._diagonal(node, A, S)], -1)

        Fa = self._once(("Fa", node.name), lambda: mixed(A0, f.Fa, f.Sa))
        Fd = mixed(dA, f.Fa, f.Sa) if dA is not None else None
        if f.Fd is not None:
            Sd = f.Sd if f.Sd is not None else None if f.Sa is None else torch.zeros_like(f.Sa)
            Fd = added(Fd, mixed(A1, f.Fd, Sd))
        return Form(Fa, Fd, None, None)

    def _diagonal(self, node: Node, A: Columns, S: Tensor) -> Tensor:
        """`A diag(S)` [K, k_out, d]: for a matrix its columns are scaled, else columns are pushed through."""
        eye = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device)
        return A(eye).mT * S.unsqueeze(-2)

    def _alias(self, node: Node) -> None:
        (p,) = node.parents
        v = node.name
        self.ma[v], self.md[v] = self.ma[p], self.md[p]
        if p in self.forms:
            self.forms[v] = self.forms[p]
        else:
            self.blocks[v, v] = self.block(p, p)
        for w in self.live:
            if p not in self.forms or w not in self.forms:
                self.blocks[v, w] = self.block(p, w)

    def _add(self, node: Node) -> None:
        p, q = node.parents
        v = node.name
        self.ma[v] = self.ma[p] + self.ma[q]
        self.md[v] = added(self.md[p], self.md[q])
        for w in self.live:
            self.blocks[v, w] = plus(self.block(p, w), self.block(q, w))
        pq = self.block(p, q)
        own = plus(plus(self.block(p, p), self.block(q, q)), plus(pq, pq.mT))
        self.blocks[v, v] = own

    def _gate(self, node: Node) -> None:
        v, parents = node.name, node.parents
        stats = {name: value.to(self.ma[parents[0]]) for name, value in self.gates[v].items()}
        means, seconds = gains(node, stats)
        centred = node.kind != "relu"  # a smooth gain turns around the mean, a ReLU's gate around zero
        self.ma[v] = stats["mean"] if centred else means[0] * self.ma[parents[0]]
        self.md[v] = added(*(times(m, self.md[p]) for m, p in zip(means, parents, strict=True)))
        for w in self.live:
            self.blocks[v, w] = self._gained(means, [self.block(p, w) for p in parents], ("g", v, w))
        rows = [self._gained(means, [self.block(p, q) for p in parents], ("g", v, q)).mT for q in parents]
        own = self._gained(means, rows, ("gg", v))
        for i, p in enumerate(parents):
            for j, q in enumerate(parents):
                extra = seconds[i][j] - means[i] * means[j]
                own = self._same_unit(own, extra, self.block(p, q), p, q, centred, ("d", v, str(i), str(j)))
        self.blocks[v, v] = own

    def _same_unit(
        self, own: Block, extra: Tensor, of: Block, p: str, q: str, centred: bool, key: tuple[str, ...]
    ) -> Block:
        """Add to the diagonals what one shared gate has beyond two independent ones."""

        def moment(c: Tensor | None, x: Tensor | None, y: Tensor | None, *, means: bool) -> Tensor | None:
            second = None if c is None else c.diagonal(dim1=-2, dim2=-1)
            both = x * y if means and x is not None and y is not None else None
            return times(extra, added(second, both))

        a, b, da, db = self.ma[p], self.ma[q], self.md[p], self.md[q]
        raw = not centred
        aa = self._once((*key, "aa"), lambda: on_diagonal(own.aa, moment(of.aa, a, b, means=raw)))
        return Block(
            aa,
            on_diagonal(own.ad, moment(of.ad, a, db, means=raw)),
            on_diagonal(own.da, moment(of.da, da, b, means=raw)),
            on_diagonal(own.dd, moment(of.dd, da, db, means=True)),
        )

    def _gained(self, means: list[Tensor], rows: list[Block], key: tuple[str, ...]) -> Block:
        """Rows times their mean gains, added over the inputs of the gate."""

        def part(name: str) -> Tensor | None:
            return added(
                *(times(m.unsqueeze(-1), getattr(r, name)) for m, r in zip(means, rows, strict=True))
            )

        aa = self._once((*key, "aa"), lambda: part("aa"))
        return Block(aa, part("ad"), part("da"), part("dd"))

    def _route(self, node: Node) -> None:
        (p,), v = node.parents, node.name
        at, _ = windows(node, self.shapes[p], self.ma[p].device)
        route = self.gates[v]["route"].to(self.ma[p])  # (K, k_out, places)

        def rows(x: Tensor) -> Tensor:  # [K, k, m] -> [K, k_out, m]
            return (x[:, at] * route.unsqueeze(-1)).sum(2)

        def vector(x: Tensor | None) -> Tensor | None:
            return None if x is None else (x[:, at] * route).sum(-1)

        def block(b: Block, key: tuple[str, ...]) -> Block:
            aa = self._once((*key, "aa"), lambda: rows(b.aa))
            return Block(aa, mapped(rows, b.ad), mapped(rows, b.da), mapped(rows, b.dd))

        self.ma[v], self.md[v] = vector(self.ma[p]), vector(self.md[p])  # type: ignore[assignment]
        for w in self.live:
            self.blocks[v, w] = block(self.block(p, w), ("r", v, w))
        of = self.block(p, p)
        own = block(block(of, ("r1", v)).mT, ("r2", v))

        def extra(mine: Tensor | None, c: Tensor | None, x: Tensor | None, y: Tensor | None) -> Tensor | None:
            """One window takes one place: `sum p M_jj` on the diagonal instead of `p^T M p`."""
            if mine is None or c is None:
                return mine
            second = c.diagonal(dim1=-2, dim2=-1)
            if x is not None and y is not None:
                second = second + x * y
            whole = vector(second)
            xv, yv = vector(x), vector(y)
            less = mine.diagonal(dim1=-2, dim2=-1)
            if xv is not None and yv is not None:
                less = less + xv * yv
            return on_diagonal(mine, whole - less)

        a, d = self.ma[p], self.md[p]
        aa = self._once(("r3", v, "aa"), lambda: extra(own.aa, of.aa, a, a))
        self.blocks[v, v] = Block(
            aa, extra(own.ad, of.ad, a, d), extra(own.da, of.da, d, a), extra(own.dd, of.dd, d, d)
        )

    # -- blocks ----------------------------------------------------------------------------------------------

    def block(self, v: str, w: str) -> Block:
        """The covariances of two live values."""
        if (v, w) in self.blocks:
            return self.blocks[v, w]
        if (w, v) in self.blocks:
            return self.blocks[w, v].mT
        f, g = self.forms[v], self.forms[w]
        aa = self._once(("form", v, w), lambda: product(f.Fa, f.Sa, g.Fa, g.Sa))
        ad = None if g.Fd is None else product(f.Fa, f.Sa, g.Fd, g.Sd)
        da = None if f.Fd is None else product(f.Fd, f.Sd, g.Fa, g.Sa)
        dd = None if f.Fd is None or g.Fd is None else product(f.Fd, f.Sd, g.Fd, g.Sd)
        found = self.blocks[v, w] = Block(aa, ad, da, dd)
        return found

    def _left(self, node: Node, b: Block, key: tuple[str, str]) -> Block:
        A0, A1, dA = self._maps(node)
        aa = self._once(("left", node.name, *key), lambda: columns(A0, b.aa))
        ad = None if b.ad is None else columns(A0, b.ad)
        da = added(dA and columns(dA, b.aa), b.da is not None and columns(A1, b.da))
        dd = added(dA and b.ad is not None and columns(dA, b.ad), b.dd is not None and columns(A1, b.dd))
        return Block(aa, ad, da, dd)

    def _maps(self, node: Node) -> tuple[Columns, Columns, Columns | None]:
        """The linear parts of the reference, of what acts on the change, and of their difference."""
        shape = self.shapes[node.parents[0]]

        def by(A: Tensor | None) -> Columns:
            return lambda x: apply(node, A, x, shape)

        if node.kind in FIXED:
            return by(None), by(None), None
        A0, A1 = self.base[node.name][0], self.moved[node.name][0]
        if A1 is A0:
            return by(A0), by(A0), None
        return by(A0), by(A0 if self.tangent else A1), by(A1 - A0)

    def _once(self, key: tuple[str, ...], make: Callable[[], Tensor | None]) -> Tensor:
        """What depends on the reference alone: computed once per sketch, without gradients."""
        if key not in self.still:
            with torch.no_grad():
                self.still[key] = make()  # type: ignore[assignment]
        return self.still[key]

    def _forget(self, names: set[str]) -> None:
        for key in [key for key in self.blocks if names & set(key)]:
            del self.blocks[key]

    # -- output ----------------------------------------------------------------------------------------------

    def _end(self) -> str:
        """The last step that has to be done whole: an affine map before the output is traced only."""
        tail = self.nodes[-1]
        while tail.kind in ALIAS:
            tail = next(node for node in self.nodes if node.name == tail.parents[0])
        self._tail = tail
        return tail.name if tail.kind in AFFINE else ""

    def _output(self, end: str) -> tuple[Tensor, Tensor]:
        """Mean change and trace of its covariance; of a last affine map without its k_out^2 covariances."""
        tail = self._tail
        if not end:
            v = self.nodes[-1].name
            md, b = self.md[v], self.block(v, v)
            trace = None if b.dd is None else b.dd.diagonal(dim1=-2, dim2=-1).sum(-1)
            return dense(md, self.ma[v]), dense(trace, self.ma[v][:, 0])
        (p,) = tail.parents
        A0, A1, dA = self._maps(tail)
        after = self.shapes[end]
        bias = bias_of(tail, self.base[end][1], after)
        shift = bias_of(tail, self.moved[end][1], after) - bias
        zero = A0(self.ma[p]).detach() * 0
        md = dense(added(dA and dA(self.ma[p]), mapped(A1, self.md[p]), shift), zero)
        if p in self.forms:
            f = self._moved_form(tail, self.forms[p])
            trace = None if f.Fd is None else f.Fd.square().sum((-2, -1))
            if f.Sd is not None and trace is not None:
                trace = trace + f.Sd.square().sum(-1)
            return md + zero, dense(trace, zero[:, 0])
        b = self.block(p, p)
        # tr [dA A1] [[aa ad] [da dd]] [dA A1]^T, as the sum over outputs of row . (block row).
        first = added(dA and columns(dA, b.aa), b.da is not None and columns(A1, b.da))
        second = added(dA and b.ad is not None and columns(dA, b.ad), b.dd is not None and columns(A1, b.dd))
        trace = added(
            dA and first is not None and trace_through(dA, first),
            second is not None and trace_through(A1, second),
        )
        return md + zero, dense(trace, zero[:, 0])
