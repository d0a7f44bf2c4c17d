"""Peer worker: the same posterior by numpyro's NUTS. Runs in the peer's environment only."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

CASE, OUT = Path(sys.argv[1]), Path(sys.argv[2])
SPEC = json.loads((CASE / "case.json").read_text())

import jax  # noqa: E402
import numpyro  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
from numpyro.diagnostics import effective_sample_size  # noqa: E402
from numpyro.infer import MCMC, NUTS  # noqa: E402


def model(x, y):
    k = x.shape[1]
    alpha = numpyro.sample("alpha", dist.Laplace(0.0, SPEC["b"]).expand([k]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=x @ alpha), obs=y)


data = np.load(CASE / "data.npz")
jax.config.update("jax_enable_x64", True)
started = time.process_time()
mcmc = MCMC(
    NUTS(model), num_warmup=SPEC["peer_warmup"], num_samples=SPEC["draws"], num_chains=4,
    chain_method="sequential", progress_bar=False,
)  # fmt: skip
mcmc.run(jax.random.PRNGKey(0), data["x"], data["y"])
draws = np.asarray(mcmc.get_samples(group_by_chain=True)["alpha"])
seconds = time.process_time() - started
flat = draws.reshape(-1, draws.shape[-1])
np.savez(OUT / "posterior.npz", mean=flat.mean(0), sd=flat.std(0), ess=effective_sample_size(draws))
(OUT / "stages.json").write_text(json.dumps({"fit": seconds}))
