"""Peer worker: EK-FAC, SOURCE and plain gradient sketches by bergson (causal language models only).

Its pipelines run in this process, on one CPU; losses are summed, labels are the data's own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from attribution_case import CASE, METHOD, OUT, SPEC, clocked, finish, folder_bytes, stage
from bergson.build import build
from bergson.config import ApproxUnrollingConfig, HessianConfig, PreprocessConfig
from bergson.config.config import (
    DataConfig,
    DistributedConfig,
    HessianPipelineConfig,
    IndexConfig,
    InversionConfig,
    QuerySetConfig,
    ScoreConfig,
)
from bergson.data import load_data_string, load_gradients, load_scores

MODULES = SPEC["modules"]
RUN = OUT / "bergson"


def rows(part: str) -> str:
    """A file of token ids; read once here, so that converting it is part of no stage."""
    path = OUT / f"{part}.jsonl"
    ids = np.load(CASE / "data.npz")[f"{part}_ids"].tolist()
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in ids))
    load_data_string(str(path))
    return str(path)


def index(folder: Path, data: str, **more) -> IndexConfig:
    return IndexConfig(
        run_path=str(folder), model=str(CASE / "model"), data=DataConfig(dataset=data), precision="fp32",
        loss_reduction="sum", include_bias=METHOD != "source", overwrite=True,
        token_batch_size=SPEC["batch"] * SPEC["t"],
        projection_seed=0, distributed=DistributedConfig(nproc_per_node=1), filter_modules="lm_head", **more,
    )  # fmt: skip


def matrix(folder: Path) -> np.ndarray:
    """Scores [Q, N] of a finished run."""
    found = np.asarray(load_scores(folder)[:], dtype=np.float32)
    return found.reshape(SPEC["n"], -1).T


def ekfac(train: str, query: str) -> tuple[np.ndarray, int]:
    from bergson.hessians import pipeline

    original = pipeline._timed

    def measured(label, durations):
        return stage("fit" if label == "step2_fit_hessian" else "score")

    pipeline._timed = measured
    with stage("all"):
        pipeline.hessian_pipeline(
            index(RUN, train),
            HessianConfig(method="kfac", ev_correction=True, use_dataset_labels=True, hessian_dtype="fp32"),
            ScoreConfig(),
            PreprocessConfig(),
            HessianPipelineConfig(
                query=QuerySetConfig(dataset=query, aggregation="none"),
                inversion_cfg=InversionConfig(inversion="damped_inverse", damping_factor=0.1),
            ),
        )
    pipeline._timed = original
    return matrix(RUN / "scores"), folder_bytes(RUN / "hessian")


def source(train: str, query: str) -> tuple[np.ndarray, int]:
    from bergson.approx_unrolling import pipeline

    for name in ("build_query", "walk_query_phase1", "walk_query_phase2", "score_per_segment_and_aggregate"):
        setattr(pipeline, name, scoring(getattr(pipeline, name)))
    # With include_bias=True it stops: queries without the bias column meet eigenvectors with it.
    points = SPEC["checkpoints"]
    with stage("all"):
        pipeline.approx_unrolling_pipeline(
            index(RUN, train),
            HessianConfig(method="kfac", ev_correction=True, use_dataset_labels=True, hessian_dtype="fp32"),
            ApproxUnrollingConfig(
                checkpoints=[str(CASE / point["path"]) for point in points], segments=SPEC["segments"],
                lr_list=[point["lr"] for point in points],
                step_size_list=[point["steps"] for point in points],
                query=QuerySetConfig(dataset=query, aggregation="none"),
            ),
        )  # fmt: skip
    return matrix(RUN / "scores"), folder_bytes(RUN)


def scoring(step):
    """The step, its time counted as scoring."""

    def timed(*args, **kwargs):
        with stage("score"):
            return step(*args, **kwargs)

    return timed


def sketches(train: str, query: str) -> tuple[np.ndarray, int]:
    found = {}
    for part, data, where in (("train", train, "log"), ("query", query, "score")):
        with stage(where):
            config = index(RUN / part, data, projection_dim=SPEC["rank"])
            build(config, PreprocessConfig())
            promote(config)
    with stage("score"):
        for part in ("train", "query"):
            found[part] = np.asarray(load_gradients(RUN / part)[:])
            if found[part].dtype.names:
                found[part] = np.concatenate([found[part][name] for name in found[part].dtype.names], axis=1)
        scores = found["query"] @ found["train"].T
    return scores, folder_bytes(RUN / "train")


def promote(config: IndexConfig) -> None:
    """`build` writes beside its final name; its command renames, and so do we."""
    part = Path(config.partial_run_path)
    if part.exists() and part != Path(config.run_path):
        shutil.rmtree(config.run_path, ignore_errors=True)
        part.rename(config.run_path)


def main():
    scores, kept = {"ekfac": ekfac, "source": source, "logra-dot": sketches}[METHOD](
        rows("train"), rows("query")
    )
    whole = {"fit": clocked("all") - clocked("score")} if METHOD == "source" else None
    finish(scores, kept=kept, seconds=whole)


main()
