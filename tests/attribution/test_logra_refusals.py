"""`LoGra`: everything that would cost a pass for nothing, or turn scores into noise, is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from attribution_models import tiny_gpt2, token_rows
from torch import nn

from glasshouse.attribution import LoGra
from glasshouse.attribution.logra.projection import principal
from glasshouse.attribution.stages.curvature import Factor
from glasshouse.corpora.rows import TokenRow
from glasshouse.runtime.errors import InputError, NumericalError, ReductionError, RunError, StaleError


def test_mean_losses_and_dropout_are_refused(mlp, classes) -> None:
    with pytest.raises(ReductionError, match="repeating the batch"):
        LoGra(2).fit(mlp, classes, objective=lambda m, b: nn.functional.cross_entropy(m(b.inputs), b.targets))
    with pytest.raises(InputError, match=r"h\.0"):
        LoGra(2).fit(tiny_gpt2(resid_pdrop=0.1).train(), token_rows())


def test_duplicated_ids_are_refused() -> None:
    twice = [TokenRow((1, 2, 3), (1, 2, 3), "one")] * 2
    with pytest.raises(InputError, match="'one' appears twice"):
        LoGra(2).fit(tiny_gpt2(), twice)


def test_another_checkpoint_or_data_set_is_refused(tmp_path: Path) -> None:
    rows = token_rows()
    LoGra(3).fit(tiny_gpt2(), rows).save(tmp_path)
    with pytest.raises(StaleError, match="model"):
        LoGra.load(tmp_path, tiny_gpt2(seed=1), rows)
    with pytest.raises(StaleError, match="data"):
        LoGra.load(tmp_path, tiny_gpt2(), rows[1:])


@pytest.mark.parametrize("options", [{"seed": 1}, {"rank": 2}, {"modules": ["*mlp*"]}])
def test_a_store_of_another_log_is_refused(tmp_path: Path, options) -> None:
    rows = token_rows()
    LoGra(3).fit(tiny_gpt2(), rows, store=tmp_path)
    with pytest.raises(StaleError, match="another job"):
        LoGra(**{"rank": 3, **options}).fit(tiny_gpt2(), rows, store=tmp_path)


def test_missing_and_cut_shards_are_named_and_made_again(tmp_path: Path) -> None:
    rows, model = token_rows(8), tiny_gpt2(n_layer=1)
    method = LoGra(3, shards=3).fit(model, rows, store=tmp_path)
    scores = method.score(rows[:2]).scores
    shards = sorted((tmp_path / "log" / "sketches").glob("*.npy"))
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"shard-00001\.npy.*log again"):
        method.score(rows[:2])
    shards[1].unlink()
    with pytest.raises(RunError, match=r"shard-00001\.npy.*is missing"):
        method.search(rows[:2], 2)
    again = LoGra(3, shards=3).fit(model, rows, store=tmp_path)
    assert shards[1].read_bytes() == whole and np.array_equal(again.score(rows[:2]).scores, scores)


def test_float16_overflow_names_row_and_module(classes) -> None:
    X, y = classes[0].clone(), classes[1]
    X[5] *= 1e7
    mlp = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    with torch.no_grad():
        mlp[0].weight.mul_(1e-7)  # as far from certain as the other rows
    with pytest.raises(NumericalError, match=r"row '5' reaches .* beyond float16") as error:
        LoGra(3, scaling="none").fit(mlp, (X, y))
    assert "module '0'" in str(error.value) and 'dtype="bfloat16"' in str(error.value)
    for options in ({"scaling": "line"}, {"dtype": "bfloat16", "scaling": "none"}):
        LoGra(3, **options).fit(mlp, (X, y))


def test_a_full_disk_is_refused_before_the_first_pass(tmp_path: Path, monkeypatch) -> None:
    rows = token_rows()
    need = LoGra(3).bind(tiny_gpt2(), rows).cost(1)["sketch_bytes"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=need - 1))
    with pytest.raises(InputError, match=r"GiB and .* are free"):
        LoGra(3).fit(tiny_gpt2(), rows, store=tmp_path)
    assert not list(tmp_path.rglob("*.npy"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=need))
    LoGra(3).fit(tiny_gpt2(), rows, store=tmp_path)


def test_principal_directions_without_a_covariance_are_refused() -> None:
    with pytest.raises(InputError, match="no covariance"):
        principal({"fc": Factor("fc")}, 4)


def test_a_singular_fisher_without_damping_is_refused(mlp, classes) -> None:
    few = (classes[0][:3], classes[1][:3])
    with pytest.raises(NumericalError, match="positive definite"):
        LoGra(3, damping=0.0).fit(mlp, few).score(few)


def test_nan_names_module_row_and_token() -> None:
    class Poison(nn.Module):
        """Turns the input of the second layer into NaN at one token, where the loss does not see it."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.first, self.second = nn.Embedding(23, 6), nn.Linear(6, 6), nn.Linear(6, 23)

        def forward(self, input_ids):
            h = self.first(self.embed(input_ids))
            bad = (input_ids == 22).unsqueeze(-1)
            return torch.nan_to_num(self.second(torch.where(bad, torch.full_like(h, float("nan")), h)))

    rows = [TokenRow((1, 2, 3, 4), (1, 2, 3, 4), "fine"), TokenRow((1, 2, 22, 4), (1, 2, 22, 4), "bad")]
    with pytest.raises(NumericalError, match=r"row 'bad', token 2") as error:
        LoGra(3).fit(Poison(), rows)
    assert "'second'" in str(error.value)


def test_shared_sketches_of_several_shapes_are_refused() -> None:
    with pytest.warns(UserWarning, match="rank 9"), pytest.raises(InputError, match="shapes"):
        LoGra(9, share=["*"]).fit(tiny_gpt2(), token_rows())


@pytest.mark.parametrize(
    ("options", "says"),
    [({"init": "svd"}, "init"), ({"curvature": "full"}, "curvature"), ({"dtype": "int8"}, "dtype"),
     ({"mode": "manhattan"}, "mode"), ({"scaling": "rows"}, "scaling"), ({"unit": "word"}, "unit"),
     ({"rank": 0}, "rank"), ({"damping": -1.0}, "damping"), 
     ({"damping_share": 0.0}, "damping_share"), ({"share": ["nothing*"]}, "matches no"),
     ({"share": ["*"], "unit": "token"}, "adds sketches")],
)  # fmt: skip
def test_wrong_options(options, says) -> None:
    model = tiny_gpt2()
    with pytest.raises(InputError, match=says):
        LoGra(**{"rank": 3, "modules": ["*mlp*", "*attn*"], **options}).fit(model, token_rows())


def test_wrong_questions(mlp, classes) -> None:
    with pytest.raises(InputError, match="fit"):
        LoGra(2).search(classes)
    method = LoGra(3).fit(mlp, classes)
    for ask, says in (
        (lambda: method.score(classes, mode="l1"), "mode"),
        (lambda: method.score(classes, mode="l2", per_module=True), "no parts"),
        (lambda: method.score(classes, query_agg="median"), "query_agg"),
        (lambda: method.search(classes, 0), "at least 1"),
        (lambda: method.score(classes, unwanted=classes), "belong together"),
    ):
        with pytest.raises(InputError, match=says):
            ask()
