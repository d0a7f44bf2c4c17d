"""D1 and D2: causal directions that were planted, and whether such directions matter to a real model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.runtime.seeds import derive, torch_generator
from glasshouse.statistics import Estimate, bootstrap, spearman

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

WIDTH, VOCABULARY = 32, 200
STRENGTHS = (1.0, 0.3)
LEAST_SCALE = 0.1


def planted_numbers(seed: int) -> dict[str, float]:
    """|cos| of the first causal direction with the planted one at the worse strength: white, stretched."""
    found = {
        (strength, stretched): planted_cosine(seed, strength, stretched=stretched)
        for strength in STRENGTHS
        for stretched in (False, True)
    }
    return {
        "cos": min(found[s, False] for s in STRENGTHS),
        "cos_stretched": min(found[s, True] for s in STRENGTHS),
        **{f"cos_{s:g}": found[s, False] for s in STRENGTHS},
    }  # fmt: skip


def planted_cosine(seed: int, strength: float, *, stretched: bool) -> float:
    """One planted model, its logit lens, and the first direction found from the states of all its tokens."""
    from glasshouse.internals.tuned_lens import LogitLens
    from glasshouse.internals.tuned_lens.causal import causal_basis
    from glasshouse.subjects import as_subject

    model, w = planted_model(seed, strength, stretched=stretched)
    lens = LogitLens().fit(as_subject(model, self_test=False))
    h = model.get_input_embeddings().weight.detach()
    first = causal_basis(lens, h, 0, 1, seed=seed).vectors[:, 0]
    return float((first @ w).abs())


def planted_model(
    seed: int, strength: float, *, stretched: bool = False
) -> tuple[LlamaForCausalLM, torch.Tensor]:
    """(a Llama whose block is the identity, the unit direction w that its output reads with `strength`).

    Its token embeddings are white (covariance I); `stretched` scales them, along random axes, by 1 to 0.1.
    The output matrix is .1 N(0, 1) orthogonal to w, plus strength * u w' with u ~ N(0, 1).
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    generator = torch_generator(seed, "planted direction")

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    x = normal(VOCABULARY, WIDTH).double()
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / VOCABULARY)).T
    w = torch.nn.functional.normalize(normal(WIDTH), dim=0)
    if stretched:
        axes = torch.linalg.qr(normal(WIDTH, WIDTH).double()).Q
        white = white @ axes * torch.linspace(1, LEAST_SCALE, WIDTH).double() @ axes.T
    rest = 0.1 * normal(VOCABULARY, WIDTH)
    read = rest - (rest @ w)[:, None] * w + strength * normal(VOCABULARY)[:, None] * w
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=8, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        block = model.model.layers[0]
        for matrix in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
            matrix.zero_()
        model.get_input_embeddings().weight.copy_(white)
        model.get_output_embeddings().weight.copy_(read)
    return model, w


def fidelity_numbers(folder: Path, model: str, directions: int, rows: int, seed: int) -> dict[str, Any]:
    """Rank correlation of influence on lens and model in the last third of layers: claim -> JSON pairs."""
    from glasshouse.internals.tuned_lens import TunedLens
    from glasshouse.internals.tuned_lens.fidelity import fidelity
    from glasshouse.runtime import files
    from glasshouse.subjects import as_subject

    subject = as_subject(model)
    lens = TunedLens.load(folder / "lens", subject)
    held_out = files.read_json(folder / "held_out.json")[:rows]
    depth = subject.n_layers
    late = range(depth - -(-depth // 3), depth)
    found = fidelity(lens, subject, held_out, layers=late, k=directions, seed=seed)
    again = fidelity(
        lens, subject, held_out, layers=late, k=directions, seed=derive(seed, "again"), max_iter=1
    )
    energy = [
        np.stack([f.at_lens.numpy(), f.at_model.numpy()], -1) for f in (found, again)
    ]  # [l, kind, k, 2]
    basis, drawn, others = energy[0][:, 0], energy[0][:, 1], energy[1][:, 1]
    at = min(range(len(late)), key=lambda i: rho(basis[i]))
    control = min(range(len(late)), key=lambda i: rho(drawn[i]))
    gaps, nothing = (
        [gap(a[i], b[i]) for i in range(len(late))] for a, b in ((basis, drawn), (drawn, others))
    )
    least = [min(some, key=lambda e: e.value) for some in (gaps, nothing)]
    return {
        "D2": [found.rho(late[at]).to_json(), found.rho(late[control], "random").to_json()],
        "D2-gap": [e.to_json() for e in least],
        "by_layer": {str(layer): [rho(basis[i]), rho(drawn[i])] for i, layer in enumerate(late)},
    }


def rho(pairs: np.ndarray) -> float:
    """Spearman's rho of (influence on the lens, influence on the model) over directions [k, 2]."""
    return spearman(pairs[:, 0], pairs[:, 1]).value


def gap(a: np.ndarray, b: np.ndarray) -> Estimate:
    """Rho of one set of directions [k, 2] less rho of another: both are resampled together."""
    both = np.concatenate([a, b], 1)
    return bootstrap(both, lambda x: _rho(x[:, :2]) - _rho(x[:, 2:]))


def _rho(pairs: np.ndarray) -> float:
    from scipy.stats import rankdata

    return float(np.corrcoef(rankdata(pairs[:, 0]), rankdata(pairs[:, 1]))[0, 1])
