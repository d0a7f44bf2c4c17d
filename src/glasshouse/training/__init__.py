"""Training: specs, mixes and rounds; the bare loop for small models; the protocol of organisms.

Importing this package loads no torch, transformers, trl or peft; each name is imported when first used.
"""

from __future__ import annotations

from glasshouse.runtime.lazy import lazy_names

__all__ = [
    "Bar",
    "Checkpoint",
    "DataRef",
    "InstallGate",
    "LoraSpec",
    "Mix",
    "MixRow",
    "Organism",
    "Part",
    "Recipe",
    "RewardModel",
    "Rollout",
    "Round",
    "RoundResult",
    "TrainSpec",
    "Truth",
    "fit",
    "fit_rows",
    "grow_until_installed",
    "run_rounds",
    "train",
]

_HOME = {
    "Bar": "organisms",
    "Checkpoint": "_train",
    "DataRef": "mix",
    "InstallGate": "organisms",
    "LoraSpec": "spec",
    "Mix": "mix",
    "MixRow": "mix",
    "Organism": "organisms",
    "Part": "mix",
    "Recipe": "fast",
    "RewardModel": "rewards",
    "Rollout": "rewards",
    "Round": "rounds",
    "RoundResult": "rounds",
    "TrainSpec": "spec",
    "Truth": "organisms",
    "fit": "fast",
    "fit_rows": "fast",
    "grow_until_installed": "organisms",
    "run_rounds": "rounds",
    "train": "_train",
}

__getattr__, __dir__ = lazy_names(__name__, _HOME)
