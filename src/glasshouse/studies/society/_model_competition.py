"""What the study of model competition computes: plain rows, one function per piece, each cached by seed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

Rows = list[dict[str, Any]]
TEXT_POSITIVE = (0, 1, 2, 7, 8, 9)
"""Last digits with label 1: six of ten."""


def no_information(alphas: Sequence[float], m: int, n: int, search: str, init_std: float, seed: int) -> Rows:
    """Setting 1 at each alpha: one equilibrium from one random initialisation."""
    from glasshouse.society.model_competition.dynamics import equilibrium
    from glasshouse.society.model_competition.market import CompetitionMarket
    from glasshouse.society.model_competition.settings import no_information as users

    rows = []
    for alpha in alphas:
        data = users(alpha, n=n)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the row says `converged`
            found = equilibrium(
                data.X, data.y, CompetitionMarket(m=m, c=0.3, T=0.1), seed=seed, search=search,
                init_std=init_std,
            )  # fmt: skip
        rows.append({"alpha": alpha, "m": m, "seed": seed, **_cells(found)})
    return rows


def gaussians(sigmas: Sequence[float], m: int, n: int, seed: int) -> Rows:
    """Setting 2 at each sigma: the same labels and noise, scaled."""
    from glasshouse.society.model_competition.dynamics import equilibrium
    from glasshouse.society.model_competition.market import CompetitionMarket
    from glasshouse.society.model_competition.settings import gaussians as users

    rows = []
    for sigma in sigmas:
        data = users(sigma, n=n, seed=seed)
        found = equilibrium(data.X, data.y, CompetitionMarket(m=m, c=0.3, T=0.1), seed=seed)
        rows.append({"sigma": sigma, "m": m, "seed": seed, **_cells(found)})
    return rows


def digits(rungs: Sequence[str], m: int, draw: int) -> Rows:
    """scikit-learn's digits on each rung: everybody (draw 0) or a bootstrap sample of users."""
    from glasshouse.society.model_competition.ladder import representation_ladder, solve_rungs
    from glasshouse.society.model_competition.market import CompetitionMarket
    from glasshouse.society.model_competition.settings import digits as users

    X, y = users()
    market = CompetitionMarket(m=m, c=0.3, T=0.2)
    return solve_rungs((representation_ladder(X, rungs), y, market, 0, draw, {}))


def text(checkpoints: Sequence[int], m: int, seed: int) -> Rows:
    """A small transformer learns to add; its last residual stream at each checkpoint is a representation."""
    from glasshouse.society.model_competition.ladder import representation_ladder, solve_rungs
    from glasshouse.society.model_competition.market import CompetitionMarket

    features, y = _checkpoint_features(checkpoints, seed)
    ladder = representation_ladder(features, list(features))
    market = CompetitionMarket(m=m, c=0.3, T=0.2)
    return [{**row, "seed": seed} for row in solve_rungs((ladder, y, market, seed, 0, {}))]


def _checkpoint_features(checkpoints: Sequence[int], seed: int) -> tuple[dict[str, Any], Any]:
    """Name -> activations [361, 32] at '=' of 'a + b =', and whether the sum's last digit is positive."""
    import numpy as np
    import torch

    from glasshouse.corpora.rows import IGNORE, TokenRow
    from glasshouse.runtime.seeds import derive, seeded
    from glasshouse.society.model_competition.encoders import encode
    from glasshouse.subjects import as_subject
    from glasshouse.training.fast import fit_rows

    torch.set_num_threads(1)
    pairs = [(a, b) for a in range(19) for b in range(19)]
    plus, equals = 37, 38  # the numbers 0 .. 36 are their own ids
    rows = [TokenRow((a, plus, b, equals, a + b), (IGNORE,) * 4 + (a + b,)) for a, b in pairs]
    with seeded(seed, "adder"):
        model = _adder()
    found: dict[str, Any] = {}

    def note(step: int, loss: float | None, trained: Any) -> None:
        if step in checkpoints:
            was = trained.training
            trained.eval()
            subject = as_subject(trained, self_test=False)
            prompts = [list(row.ids[:4]) for row in rows]
            found[f"checkpoint:{step}"] = encode(subject, prompts)["final_norm_in"]
            trained.train(was)

    fit_rows(
        model, rows, steps=max(checkpoints), batch_size=64, lr=3e-3, weight_decay=0.01,
        seed=derive(seed, "adder"), callbacks=[note],
    )  # fmt: skip
    labels = np.isin([(a + b) % 10 for a, b in pairs], TEXT_POSITIVE).astype(np.int64)
    return found, labels


def _adder() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=39, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=8, tie_word_embeddings=False,
        )
    )  # fmt: skip


def _cells(found: Any) -> dict[str, Any]:
    return {
        "SL": found.SL, "bayes": found.bayes, "k": found.k_hetero, "eps_nash": found.eps_nash,
        "converged": found.converged, "rounds": len(found.trajectory),
    }  # fmt: skip
