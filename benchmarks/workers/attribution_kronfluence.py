"""Peer worker: EK-FAC by kronfluence."""

from __future__ import annotations

from attribution_case import (
    METHOD,
    OUT,
    SPEC,
    arrays,
    finish,
    folder_bytes,
    load_model,
    losses,
    measured,
    outputs,
    stage,
)
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch.utils.data import TensorDataset

assert METHOD == "ekfac"


class Summed(Task):
    def compute_train_loss(self, batch, model, sample=False):
        return losses(*outputs(model, batch)).sum()

    def compute_measurement(self, batch, model):
        return measured(model, batch).sum()

    def get_influence_tracked_modules(self):
        return SPEC["modules"]


def main():
    task = Summed()
    model = prepare_model(load_model(linear=True), task)
    train, query = TensorDataset(*arrays("train")), TensorDataset(*arrays("query"))
    analyzer = Analyzer("bench", model, task, cpu=True, disable_tqdm=True, output_dir=str(OUT / "influence"))
    factors = FactorArguments(strategy="ekfac", use_empirical_fisher=True)
    scores = ScoreArguments(damping_factor=None)
    common = dict(factor_args=factors, overwrite_output_dir=True)
    with stage("fit"):
        analyzer.fit_covariance_matrices("f", train, per_device_batch_size=SPEC["batch"], **common)
        analyzer.perform_eigendecomposition("f", **common)
        analyzer.fit_lambda_matrices("f", train, per_device_batch_size=SPEC["batch"], **common)
    kept = folder_bytes(OUT / "influence")
    with stage("score"):
        analyzer.compute_pairwise_scores(
            "s", "f", query, train, len(query), SPEC["batch"], score_args=scores, overwrite_output_dir=True
        )
        found = analyzer.load_pairwise_scores("s")["all_modules"].float()
    finish(found, kept=kept)


main()
