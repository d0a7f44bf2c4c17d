"""The cost model on paper is the cost that a counter finds on a model small enough to run."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from attribution_models import VOCAB, tiny_gpt2, tiny_llama
from torch.utils.flop_counter import FlopCounterMode

from glasshouse.attribution import EKFAC
from glasshouse.attribution.logra import LoGra
from glasshouse.attribution.scale import H100, H100_TF32, LLAMA_8B, Machine, ModelShape, plan
from glasshouse.attribution.stages.guards import select_modules
from glasshouse.corpora.rows import IGNORE, TokenRow
from glasshouse.runtime.errors import InputError

N, T, Q = 16, 32, 4
SLOW = Machine("slow", rate=1e9, rate32=1e9, rate64=1e9, memory=1e12, share=1.0)


def rows(count: int, seed: int) -> list[TokenRow]:
    g = torch.Generator().manual_seed(seed)
    drawn = torch.randint(1, VOCAB, (count, T), generator=g).tolist()
    return [TokenRow(tuple(row), (IGNORE, *row[1:]), str(k)) for k, row in enumerate(drawn)]


def model() -> Any:
    return tiny_gpt2(n_embd=64, n_head=2, n_positions=T, attn_implementation="eager")


def counted(act: Any) -> float:
    """FLOPs of all matrix products, those made in place included."""

    def in_place(total: Any, a: Any, b: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return 2 * a[0] * a[1] * b[1]

    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place}) as counter:
        act()
    return float(counter.get_total_flops())


def stages(found: Any) -> dict[str, float]:
    return {stage.name: stage.flops for stage in found.stages}


def test_shapes_are_those_of_the_tracked_modules() -> None:
    for small in (model(), tiny_llama()):
        # The plan leaves an untied output matrix out: its factor would have vocab^2 numbers.
        tracked = [m for m in select_modules(small, "auto") if m.name != "lm_head"]
        shape = ModelShape.of(small.config)
        assert sorted(shape.shapes) == sorted((m.out_features, m.in_features) for m in tracked)
    assert LLAMA_8B.parameters == pytest.approx(8.03e9, rel=1e-3)  # as its card says, norms left out


def test_ekfac_is_what_the_counter_finds() -> None:
    """Within a tenth: columns of ones are planned but not multiplied; tiny products are not planned."""
    small, train, asked = model(), rows(N, 0), rows(Q, 1)
    method = EKFAC(label_mode="empirical", pair_cache=0)
    fit = counted(lambda: method.fit(small, train))
    score = counted(lambda: method.score(asked, "loss"))
    planned = stages(plan("ekfac", ModelShape.of(small.config), N * T, length=T, queries=Q, machine=SLOW))
    assert fit == pytest.approx(planned["covariance"] + planned["lambda"], rel=0.1)
    assert score == pytest.approx(planned["scores"], rel=0.1)


def test_logra_is_what_the_counter_finds() -> None:
    small, train, asked = model(), rows(N, 0), rows(Q, 1)
    method = LoGra(8)
    log = counted(lambda: method.fit(small, train))
    score = counted(lambda: method.score(asked, "loss"))
    planned = stages(
        plan("logra", ModelShape.of(small.config), N * T, length=T, queries=Q, rank=8, machine=SLOW)
    )
    assert log == pytest.approx(planned["log"] + planned["curvature"], rel=0.1)
    assert score == pytest.approx(planned["scores"], rel=0.1)


def test_source_visits_every_checkpoint() -> None:
    shape = ModelShape.of(model().config)
    one = stages(plan("ekfac", shape, N * T, length=T, machine=SLOW))
    six = plan("source", shape, N * T, length=T, machine=SLOW, checkpoints=6, segments=3)
    assert stages(six)["covariance"] == 6 * one["covariance"] and stages(six)["eigen"] == 3 * one["eigen"]
    assert six.bytes["factors"] == 3 * plan("ekfac", shape, N * T, length=T, machine=SLOW).bytes["factors"]


def test_hours_follow_rates_machines_and_serial_work() -> None:
    alone = plan("ekfac", LLAMA_8B, 1e9)
    many = plan("ekfac", LLAMA_8B, 1e9, machines=16, shards=4)
    for a, b in zip(alone.stages, many.stages, strict=True):
        if a.name != "moving factors":  # every machine needs the factors
            assert b.hours == pytest.approx(a.hours / (1 if a.serial else 16))
    assert plan("ekfac", LLAMA_8B, 1e9, machine=H100_TF32).hours < alone.hours
    count = alone.machines_within(48)
    serial = sum(stage.hours for stage in alone.stages if stage.serial)
    assert serial + (alone.hours - serial) / count <= 48 < serial + (alone.hours - serial) / (count - 1)
    with pytest.raises(InputError, match="run on one machine"):
        alone.machines_within(serial / 2)


def test_factors_that_do_not_fit_are_made_in_groups() -> None:
    """Half of what the model leaves free: 126 GB of factors in (80 - 16) / 2 = 32 GB are four groups."""
    found = plan("ekfac", LLAMA_8B, 1e9)
    by_hand = 4 * sum(o * o + i * i + o * i for o, i in LLAMA_8B.shapes)
    assert found.bytes["factors"] == by_hand
    assert found.groups == math.ceil(by_hand / (0.5 * (80e9 - 2 * LLAMA_8B.parameters)))
    roomy = plan("ekfac", LLAMA_8B, 1e9, machine=replace(H100, memory=1e12))
    assert roomy.groups == 1 and roomy.flops < found.flops
    with pytest.raises(InputError, match="does not fit"):
        plan("ekfac", LLAMA_8B, 1e9, machine=replace(H100, memory=16e9))


def test_low_rank_queries_and_ranks_change_bytes() -> None:
    full, thin = plan("ekfac", LLAMA_8B, 1e9), plan("ekfac", LLAMA_8B, 1e9, query_rank=32)
    assert thin.bytes["queries"] < 0.05 * full.bytes["queries"]
    ranks = [plan("logra", LLAMA_8B, 1e9, rank=rank).bytes["sketches"] for rank in (32, 64)]
    assert ranks[1] == 4 * ranks[0] == 2 * 64 * 64 * len(LLAMA_8B.shapes) * round(1e9 / 2048)


def test_frames_and_sentences() -> None:
    found = plan("logra", LLAMA_8B, 1e9, machines=8)
    assert list(found.to_frame().columns) == ["name", "flops", "hours", "serial"]
    assert "8 x H100 80 GB" in str(found) and "B of sketches" in str(found)


@pytest.mark.parametrize(
    "bad", ["tokens", "machines", "length", "queries", "rank", "factor_rows", "segments"]
)
def test_counts_below_one_are_refused(bad: str) -> None:
    arguments: dict[str, Any] = {"tokens": 1e9, bad: 0}
    with pytest.raises(InputError, match=bad):
        plan("ekfac", LLAMA_8B, **arguments)


def test_unknown_methods_and_configurations_are_refused() -> None:
    with pytest.raises(InputError, match="ekfac, logra, source"):
        plan("trak", LLAMA_8B, 1e9)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="hidden_size"):
        ModelShape.of(object())
