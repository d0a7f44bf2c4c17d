"""Attribution: which training data made the model do this?

Sign and scale are one for the wing: `score[q, n] > 0` means that more weight on row n raises the measurement
of query q, and a score is the predicted change of that measurement when n's weight goes from 1 to 2
(with the opposite sign: when n is removed).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glasshouse.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from glasshouse.attribution.bm25 import bm25_filter, bm25_scores
    from glasshouse.attribution.checkpoints import Checkpoint, read_run
    from glasshouse.attribution.ekfac import EKFAC, canary_search
    from glasshouse.attribution.function_space_distance import (
        ContinualTrainer,
        CoresetDistance,
        EWCDistance,
        FSDInfluence,
        FSDSketch,
        GGNDistance,
        InputMoments,
        L2Distance,
        NTKDistance,
        how_far,
    )
    from glasshouse.attribution.ifcomp import Choices, IFComp
    from glasshouse.attribution.logra import GradientLog, LoGra, load_log, patch_trainer
    from glasshouse.attribution.pre_memorization import CurationPlan, Trajectory, TrajectoryRecorder
    from glasshouse.attribution.scores import ScoreTable
    from glasshouse.attribution.similarity import RepresentationSimilarity
    from glasshouse.attribution.source import SOURCE, SourceCheckpoints, recorded_run
    from glasshouse.attribution.text_similarity import BM25, EmbeddingSimilarity
    from glasshouse.attribution.tracin import TracIn
    from glasshouse.attribution.trak import TRAK
    from glasshouse.attribution.units import TensorUnits, TokenUnits, as_units

_HOME = {
    "BM25": "text_similarity",
    "Checkpoint": "checkpoints",
    "ContinualTrainer": "function_space_distance",
    "CoresetDistance": "function_space_distance",
    "Choices": "ifcomp",
    "CurationPlan": "pre_memorization",
    "EKFAC": "ekfac",
    "EWCDistance": "function_space_distance",
    "EmbeddingSimilarity": "text_similarity",
    "FSDInfluence": "function_space_distance",
    "FSDSketch": "function_space_distance",
    "GGNDistance": "function_space_distance",
    "GradientLog": "logra",
    "IFComp": "ifcomp",
    "InputMoments": "function_space_distance",
    "L2Distance": "function_space_distance",
    "LoGra": "logra",
    "NTKDistance": "function_space_distance",
    "RepresentationSimilarity": "similarity",
    "SOURCE": "source",
    "ScoreTable": "scores",
    "SourceCheckpoints": "source",
    "TRAK": "trak",
    "TensorUnits": "units",
    "TokenUnits": "units",
    "TracIn": "tracin",
    "Trajectory": "pre_memorization",
    "TrajectoryRecorder": "pre_memorization",
    "as_units": "units",
    "bm25_filter": "bm25",
    "bm25_scores": "bm25",
    "canary_search": "ekfac",
    "how_far": "function_space_distance",
    "load_log": "logra",
    "patch_trainer": "logra",
    "read_run": "checkpoints",
    "recorded_run": "source",
}

__all__ = [
    "BM25",
    "Checkpoint",
    "Choices",
    "ContinualTrainer",
    "CoresetDistance",
    "CurationPlan",
    "EKFAC",
    "EWCDistance",
    "EmbeddingSimilarity",
    "FSDInfluence",
    "FSDSketch",
    "GGNDistance",
    "GradientLog",
    "IFComp",
    "InputMoments",
    "L2Distance",
    "LoGra",
    "NTKDistance",
    "RepresentationSimilarity",
    "SOURCE",
    "ScoreTable",
    "SourceCheckpoints",
    "TRAK",
    "TensorUnits",
    "TokenUnits",
    "TracIn",
    "Trajectory",
    "TrajectoryRecorder",
    "as_units",
    "bm25_filter",
    "bm25_scores",
    "canary_search",
    "how_far",
    "load_log",
    "patch_trainer",
    "read_run",
    "recorded_run",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME)
