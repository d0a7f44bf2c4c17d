"""What attribution over a large corpus costs, on paper: operations, bytes, hours and machines, from shapes.

Nothing runs and no model is loaded. FLOPs are those of the code here (multiply-adds counted as two), checked
against counted ones on small models; hours follow from a machine's rate and the share of it that is reached,
which you give.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

from glasshouse.attribution.ekfac.cost import cost as ekfac_cost
from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

MethodName = Literal["ekfac", "logra", "source"]
METHODS: tuple[MethodName, ...] = ("ekfac", "logra", "source")


@dataclass(frozen=True)
class ModelShape:
    """A decoder: `layers` blocks of `width`, `ffn` inside them, `vocab` tokens; keys and values `kv` wide.

    `gated` blocks have three matrices in the feed-forward part (Llama), others two (GPT-2); `fused` ones
    keep query, key and value in one matrix; `bias` adds a column of ones to every input.

    >>> LLAMA_8B.parameters // 10**8
    80
    """

    layers: int
    width: int
    ffn: int
    vocab: int
    kv: int
    gated: bool = True
    fused: bool = False
    bias: bool = False

    @classmethod
    def of(cls, config: Any) -> ModelShape:
        """The shape in a `transformers` configuration of the Llama or GPT-2 kind.

        Raises InputError for a configuration without these fields.
        """
        try:
            width, layers = int(config.hidden_size), int(config.num_hidden_layers)
            heads, vocab = int(config.num_attention_heads), int(config.vocab_size)
        except AttributeError as error:
            raise InputError(
                f"the configuration has no {error.name}", fix="build a ModelShape by hand"
            ) from None
        if hasattr(config, "n_inner"):
            return cls(layers, width, config.n_inner or 4 * width, vocab, width, False, True, True)
        head = getattr(config, "head_dim", None) or width // heads
        kv = head * (getattr(config, "num_key_value_heads", None) or heads)
        return cls(layers, width, int(config.intermediate_size), vocab, kv)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(out, in) of all tracked matrices, in with its ones."""
        d, f, one = self.width, self.ffn, int(self.bias)
        attention = [(d + 2 * self.kv, d)] if self.fused else [(d, d), (self.kv, d), (self.kv, d)]
        feed = [(f, d)] * (2 if self.gated else 1) + [(d, f)]
        return [(o, i + one) for o, i in [*attention, (d, d), *feed]] * self.layers

    @property
    def tracked(self) -> int:
        """Parameters in tracked matrices."""
        return sum(o * i for o, i in self.shapes)

    @property
    def parameters(self) -> int:
        """Tracked parameters and both vocabulary matrices; norms are left out."""
        return self.tracked + 2 * self.vocab * self.width

    def untracked(self, length: int) -> float:
        """FLOPs per token outside tracked matrices, forward and backward: output matrix, attention.

        Attention has two products forwards (over all `length` positions, as eager code forms them) and four
        backwards; the output matrix passes its gradient on but gets none.
        """
        return 4.0 * self.vocab * self.width + 12.0 * self.layers * length * self.width


LLAMA_8B = ModelShape(layers=32, width=4096, ffn=14336, vocab=128_256, kv=1024)
"""The shape of Llama 3 with eight billion parameters."""


@dataclass(frozen=True)
class Machine:
    """One worker: FLOP/s of its matrix products, memory in bytes, disk and network in bytes per second.

    `rate` is for passes through the model in its own type; `rate32` for products of activations and
    gradients, which are float32 here; `rate64` for eigenproblems. Whole stages reach `share` of the rates.
    """

    name: str
    rate: float
    rate32: float
    rate64: float
    memory: float
    disk: float = 2e9
    network: float = 1.25e9
    share: float = 0.4


H100 = Machine("H100 80 GB", rate=989e12, rate32=67e12, rate64=67e12, memory=80e9)
"""Rates of the maker's data sheet: dense bfloat16, plain float32, float64 on tensor cores."""

H100_TF32 = replace(H100, name="H100 80 GB (TF32)", rate32=495e12)
"""After `torch.set_float32_matmul_precision("high")`: products keep ten bits of mantissa."""


@dataclass(frozen=True)
class Stage:
    """One stage of a plan: FLOPs, and hours on all machines. A `serial` stage runs on one machine."""

    name: str
    flops: float
    hours: float
    serial: bool = False


@dataclass(frozen=True)
class Plan:
    """What a method needs: stages in order, named bytes, and how often rows are gone over per module group.

    `groups`: the tracked modules must be fitted in that many groups, one after the other, for their factors
    to fit beside the model; scores of groups add up.
    """

    method: str
    machine: Machine
    machines: int
    groups: int
    stages: tuple[Stage, ...]
    bytes: Mapping[str, float] = field(default_factory=dict)

    @property
    def flops(self) -> float:
        """Of all stages."""
        return sum(stage.flops for stage in self.stages)

    @property
    def hours(self) -> float:
        """From start to end on `machines` machines, moving of bytes between them included."""
        return sum(stage.hours for stage in self.stages)

    def machines_within(self, hours: float) -> int:
        """The fewest machines that finish within `hours`; InputError where serial work alone takes longer."""
        serial = sum(stage.hours for stage in self.stages if stage.serial)
        if serial >= hours:
            raise InputError(
                f"{serial:.1f} h of it run on one machine",
                where=self.method,
                fix=f"allow more than {hours:g} h",
            )
        return max(1, ceil((self.hours - serial) * self.machines / (hours - serial)))

    def to_frame(self) -> pd.DataFrame:
        """One row a stage: stage, flops, hours, serial."""
        import pandas as pd

        return pd.DataFrame([vars(stage) for stage in self.stages])

    def __str__(self) -> str:
        parts = ", ".join(f"{stage.name} {stage.hours:.2f} h" for stage in self.stages)
        sizes = ", ".join(f"{_scaled(size)}B of {name}" for name, size in self.bytes.items())
        times = f" in {self.groups} groups of modules" if self.groups > 1 else ""
        return (
            f"{self.method}: {_scaled(self.flops)}FLOP, {self.hours:.1f} h on {self.machines} x "
            f"{self.machine.name}{times} ({parts}); {sizes}"
        )


def plan(
    method: MethodName,
    model: ModelShape,
    tokens: float,
    *,
    machine: Machine = H100,
    machines: int = 1,
    length: int = 2048,
    queries: int = 100,
    rank: int = 64,
    query_rank: int | None = None,
    factor_rows: int = 100_000,
    checkpoints: int = 6,
    segments: int = 3,
    shards: int | None = None,
) -> Plan:
    """The plan of a method over `tokens` training tokens in rows of `length`.

    `rank` is LoGra's; `query_rank` keeps EK-FAC's queries at that rank; curvature of EK-FAC and SOURCE is
    fitted on `factor_rows` rows; `shards` pieces of the fitting passes (default: four a machine), each of
    which sends its factors once. Raises InputError for counts below one or an unknown method.
    """
    given = {"tokens": tokens, "machines": machines, "length": length, "queries": queries, "rank": rank,
             "factor_rows": factor_rows, "checkpoints": checkpoints, "segments": segments}  # fmt: skip
    for name, value in given.items():
        if value < 1:
            raise InputError(f"{name} is {value}", fix="use at least 1")
    if method not in METHODS:
        raise InputError(f"there is no plan for {method!r}", fix=f"use one of {', '.join(METHODS)}")
    work = _Work(model, tokens, length, queries, machine, machines, shards or 4 * machines)
    if method == "logra":
        return work.logra(rank)
    visits, fits = (1, 1) if method == "ekfac" else (checkpoints, segments)
    return work.factored(method, visits, fits, min(factor_rows, work.rows), query_rank)


@dataclass(frozen=True)
class _Work:
    model: ModelShape
    tokens: float
    length: int
    queries: int
    machine: Machine
    machines: int
    shards: int

    @property
    def rows(self) -> int:
        return max(1, round(self.tokens / self.length))

    def factored(self, method: str, visits: int, fits: int, fitted: int, query_rank: int | None) -> Plan:
        """EK-FAC: one visit, one fit. SOURCE: passes at every checkpoint, factors and scores by segment."""
        small, large = self._cost(fitted, query_rank), self._cost(self.rows, query_rank)["scores"]
        # A further group of modules goes through the model once more; its own products are not repeated.
        groups = self._groups(small["factor_bytes"])
        fitting, scoring = groups * self.passes(fitted), groups * self.passes(self.rows)
        asking = self.passes(self.queries)
        products = {
            "covariance": small["covariance"] - self.tracked(fitted),
            "lambda": small["lambda"] - self.tracked(fitted),
            "scores": large - self.tracked(self.rows + self.queries),
        }
        # Eigenvectors go to every machine, and each shard's sums to the one that adds them up.
        moved = small["factor_bytes"] * (self.shards + self.machines) * visits
        stages = (
            self.parallel("covariance", visits * fitting, visits * products["covariance"]),
            self.serial("eigen", fits * small["eigen"]),
            self.parallel("lambda", visits * fitting, visits * products["lambda"]),
            Stage("moving factors", 0.0, moved / self.machine.network / 3600, serial=True),
            self.parallel("scores", visits * scoring + asking, visits * products["scores"]),
        )
        sizes = {
            "factors": fits * small["factor_bytes"],
            "queries": fits * small["query_bytes"],
            "factors moved": moved,
            "scores": 4.0 * self.queries * self.rows,
        }
        return Plan(method, self.machine, self.machines, groups, stages, sizes)

    def logra(self, rank: int) -> Plan:
        """One pass that writes sketches, a Cholesky factor a module, and reading for each query batch."""
        blocks = [(min(rank, o), min(rank, i)) for o, i in self.model.shapes]
        widths = [o * i for o, i in blocks]
        width, squares = float(sum(widths)), float(sum(w * w for w in widths))
        projected = 2.0 * sum(
            ro * o + ri * i for (o, i), (ro, ri) in zip(self.model.shapes, blocks, strict=True)
        )
        sketches = 2.0 * width * self.rows
        reading = sketches / self.machines / self.machine.disk / 3600
        stages = (
            self.parallel("log", self.passes(self.rows), (projected + 2.0 * width) * self.tokens),
            self.parallel("curvature", 0.0, self.rows * squares),
            self.serial("factorise", sum(w**3 for w in widths) / 3),
            self.parallel(
                "scores", self.passes(self.queries), 2.0 * self.queries * (squares + width * self.rows)
            ),
            Stage("reading sketches", 0.0, reading),
        )
        sizes = {
            "sketches": sketches,
            "curvature": 4.0 * squares,
            "queries": 4.0 * self.queries * width,
            "scores": 4.0 * self.queries * self.rows,
        }
        return Plan("logra", self.machine, self.machines, 1, stages, sizes)

    def parallel(self, name: str, passes: float, products: float) -> Stage:
        """A stage on all machines: FLOPs through the model, and of products outside it."""
        seconds = passes / self.machine.rate + products / self.machine.rate32
        return Stage(name, passes + products, seconds / self.machine.share / self.machines / 3600)

    def serial(self, name: str, flops: float) -> Stage:
        """A float64 stage on one machine."""
        return Stage(name, flops, flops / (self.machine.rate64 * self.machine.share) / 3600, serial=True)

    def tracked(self, rows: float) -> float:
        """FLOPs of a pass in the tracked matrices, forward and backward."""
        return 4.0 * self.model.tracked * rows * self.length

    def passes(self, rows: float) -> float:
        """FLOPs of a whole pass over rows, forward and backward; no gradients of weights."""
        return self.tracked(rows) + self.model.untracked(self.length) * rows * self.length

    def _cost(self, rows: int, query_rank: int | None) -> dict[str, float]:
        return ekfac_cost(self.model.shapes, [self.length] * rows, self.queries, rank=query_rank)

    def _groups(self, factor_bytes: float) -> int:
        """Module groups: half of what the bfloat16 model leaves is for running sums and factors."""
        free = 0.5 * (self.machine.memory - 2.0 * self.model.parameters)
        if free <= 0:
            raise InputError(
                f"a model of {2 * self.model.parameters / 1e9:.0f} GB does not fit",
                where=self.machine.name,
                fix="plan for machines with more memory",
            )
        return ceil(factor_bytes / free)


def _scaled(x: float) -> str:
    for unit in ("", "k", "M", "G", "T", "P", "E"):
        if x < 1000:
            return f"{x:.3g} {unit}"
        x /= 1000
    return f"{x:.3g} Z"
