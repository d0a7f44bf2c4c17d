"""Every input that would turn scores into noise is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from attribution_models import tiny_gpt2, token_rows
from torch import nn

from glasshouse.attribution import EKFAC, TensorUnits
from glasshouse.corpora.rows import IGNORE, TokenRow
from glasshouse.runtime.errors import (
    InputError,
    NumericalError,
    ReductionError,
    StaleError,
    UntrackedModuleError,
)


def test_a_mean_loss_is_refused(mlp, classes) -> None:
    def mean(model, batch):
        return nn.functional.cross_entropy(model(batch.inputs), batch.targets)

    with pytest.raises(ReductionError, match="repeating the batch"):
        EKFAC(label_mode="empirical").fit(mlp, classes, objective=mean)
    method = EKFAC().fit(mlp, classes)
    with pytest.raises(ReductionError, match="measurement"):
        method.score(classes, mean)
    with pytest.raises(InputError, match="draw labels"):
        EKFAC().fit(mlp, classes, objective=lambda m, b: m(b.inputs).square().sum(1))


def test_dropout_in_train_mode_is_refused() -> None:
    model = tiny_gpt2(resid_pdrop=0.1).train()
    with pytest.raises(InputError, match=r"h\.0"):
        EKFAC().fit(model, token_rows())


def test_tied_frozen_and_functional_modules_are_refused(classes) -> None:
    with pytest.raises(UntrackedModuleError, match="shared"):
        EKFAC(modules=["lm_head"]).fit(tiny_gpt2(), token_rows())
    model = tiny_gpt2()
    model.transformer.h[0].mlp.c_fc.requires_grad_(False)
    with pytest.raises(UntrackedModuleError, match="frozen"):
        EKFAC(modules=["transformer.h.0.mlp.c_fc"]).fit(model, token_rows())
    assert "transformer.h.0.mlp.c_fc" not in EKFAC().fit(model, token_rows()).names_

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.read = nn.Linear(6, 3), nn.Linear(3, 3)

        def forward(self, x):
            return nn.functional.linear(self.used(x), self.read.weight)

    with pytest.raises(UntrackedModuleError, match="read"):
        EKFAC().fit(Functional().eval(), classes)


def test_nan_names_module_batch_and_token() -> None:
    class Poison(nn.Module):
        """Turns the input of the second layer into NaN at one token, where the loss does not see it."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.first, self.second = nn.Embedding(23, 6), nn.Linear(6, 6), nn.Linear(6, 23)

        def forward(self, input_ids):
            h = self.first(self.embed(input_ids))
            bad = (input_ids == 22).unsqueeze(-1)
            return torch.nan_to_num(self.second(torch.where(bad, torch.full_like(h, float("nan")), h)))

    rows = [
        TokenRow((1, 2, 3, 4), (IGNORE, 2, 3, 4), "fine"),
        TokenRow((1, 2, 22, 4), (IGNORE, 2, 22, 4), "bad"),
    ]
    with pytest.raises(NumericalError, match=r"row 'bad', token 2") as error:
        EKFAC(label_mode="empirical", batch_rows=1).fit(Poison(), rows)
    assert "'second'" in str(error.value) and "batch 1" in str(error.value)


def test_another_checkpoint_or_data_set_is_refused(tmp_path: Path) -> None:
    rows = token_rows()
    method = EKFAC().fit(tiny_gpt2(), rows)
    method.save(tmp_path)
    with pytest.raises(StaleError, match="model"):
        EKFAC.load(tmp_path, tiny_gpt2(seed=1), rows)
    with pytest.raises(StaleError, match="data"):
        EKFAC.load(tmp_path, tiny_gpt2(), rows[1:])
    with pytest.raises(StaleError, match="belong to model"):
        method.score(rows[:1]).check_model("0" * 64)


def test_half_precision_guards() -> None:
    with pytest.raises(InputError, match="float16"):
        EKFAC().fit(tiny_gpt2().half(), token_rows())
    X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    y = (X[:, 0] > 0).long()
    coarse = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2))
    with torch.no_grad():  # an offset that bfloat16 cannot carry, taken away again by the next layer
        coarse[0].bias.fill_(1000)
        coarse[1].weight.mul_(20)
        coarse[1].bias.copy_(-1000 * coarse[1].weight.sum(1))
    half = (X.bfloat16(), y)
    with pytest.raises(NumericalError, match="bfloat16"):
        EKFAC(label_mode="empirical").fit(coarse.bfloat16(), half)
    EKFAC("identity", force_bf16=True).fit(coarse, half)


def test_rows_without_loss_are_named() -> None:
    silent = TokenRow((1, 2, 3), (IGNORE,) * 3, "quiet")
    with pytest.raises(InputError, match="quiet"):
        EKFAC().fit(tiny_gpt2(), [*token_rows(2), silent])
    with pytest.raises(InputError, match="twice"):
        EKFAC().fit(tiny_gpt2(), [token_rows(1)[0], token_rows(1)[0]])
    with pytest.raises(InputError, match="no rows"):
        EKFAC().fit(tiny_gpt2(), [])
    X = torch.randn(3, 6)
    X[1, 2] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        TensorUnits(X, torch.zeros(3, dtype=torch.long))


def test_zero_damping_with_zero_eigenvalues_is_refused(mlp, classes) -> None:
    few = (classes[0][:3], classes[1][:3])  # 3 rows cannot fill the eigenvalues
    with pytest.raises(NumericalError, match="not positive"):
        EKFAC(damping=0.0).fit(mlp, few).score(few)
    with pytest.raises(InputError, match="damping"):
        EKFAC(damping=-1.0).fit(mlp, few)


def test_wrong_options_and_order_of_calls(mlp, classes) -> None:
    with pytest.raises(InputError, match="strategy"):
        EKFAC("shampoo").fit(mlp, classes)
    with pytest.raises(InputError, match="fit"):
        EKFAC().score(classes)
    method = EKFAC("identity").fit(mlp, classes)
    with pytest.raises(InputError, match="row_norm"):
        method.score(classes, row_norm="l2")
    with pytest.raises(InputError, match="measurement"):
        method.score(classes, "accuracy")
    with pytest.raises(InputError, match="unwanted"):
        method.score(classes, query_agg="contrast")


def test_quantised_weights_are_refused(mlp, classes) -> None:
    mlp[0].weight = nn.Parameter(mlp[0].weight.to(torch.int8), requires_grad=False)
    with pytest.raises(UntrackedModuleError, match="quantised"):
        EKFAC(modules=["0"]).fit(mlp, classes)


def test_a_store_of_another_job_is_refused(tmp_path: Path, mlp, classes) -> None:
    EKFAC().fit(mlp, classes, store=tmp_path)
    with pytest.raises(StaleError, match="options"):
        EKFAC(damping=0.5).fit(mlp, classes, store=tmp_path)
