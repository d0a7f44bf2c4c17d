"""What the study of lenses declares before it runs: thresholds, nulls and controls."""

from __future__ import annotations

from dataclasses import dataclass

from glasshouse.evidence.claims import ClaimSpec, Threshold

REVERSED = "the same translators in reverse order of layers"
TWIN = "the clean twin, which saw the same documents rightly answered"
STORIES = "On stories260K, a real model (read where GLASSHOUSE_DATA holds it): "


@dataclass(frozen=True)
class Config:
    """`rows` sequences of `length` tokens are drawn from each BindWorld model, a fifth of them held out.

    `prompts` normal and as many injected ones; `directions` of `causal_rows` sequences for fidelity; `steps`
    and `step_tokens` train every lens. `stage1`, `trigger` and `twin` name organisms.
    """

    seeds: int = 5
    rows: int = 4000
    length: int = 48
    steps: int = 400
    step_tokens: int = 2048
    prompts: int = 400
    stories_rows: int = 640
    stories_length: int = 256
    directions: int = 30
    causal_rows: int = 4
    stage1: str = "bind-world"
    trigger: str = "bind-world-trigger"
    twin: str = "bind-world-trigger-twin"


def _four(where: str, suffix: str, ratio: float, biased: str) -> list[ClaimSpec]:
    """A1 to A4 for one model."""
    return [
        ClaimSpec(
            f"tuned-lens/A1{suffix}",
            f"{where}the tuned lens is closer to the model's output than the logit lens at every layer: its "
            "KL, less that of the logit lens, is below zero at the worst layer (nats).",
            Threshold("<", 0.0),
            control=REVERSED,
            paper="lower bits per byte at all layers for GPT-Neo, Pythia, OPT, BLOOM, LLaMA (recalled)",
        ),
        ClaimSpec(
            f"tuned-lens/A2{suffix}",
            f"{where}the KL of the tuned lens, over that of the logit lens, is at most {ratio:g} on average "
            "over layers.",
            Threshold("<=", ratio),
            null=1.0,
            control=REVERSED,
            paper="the logit lens is unusable in early layers of GPT-Neo, OPT-125m, BLOOM (recalled)",
        ),
        ClaimSpec(
            f"tuned-lens/A3{suffix}",
            f"{where}the tuned lens's cross entropy never rises from one layer to the next by more than 0.02 "
            "nats.",
            Threshold("<=", 0.02),
            control="the same cross entropies read from the last layer to the first",
        ),
        ClaimSpec(
            f"tuned-lens/A4{suffix}",
            f"{where}the bias of the tuned lens, less that of the logit lens, is below zero at the worst of "
            f"{biased} (nats).",
            Threshold("<", 0.0),
            control=REVERSED,
            paper="logit lens off by 4 to 5 bits at most layers of GPT-Neo-2.7B, tuned far lower (recalled)",
        ),
    ]


CLAIMS = [
    # BindWorld models have an output matrix of their own; stories260K shares it with the input.
    *_four("On BindWorld models ", "", 0.6, "all layers"),
    *_four(STORIES, "-stories", 0.4, "layers 2 and later"),
    ClaimSpec(
        "tuned-lens/A5r",
        "Prediction depth goes with the training step at which a prompt was learned: Spearman's rho over "
        "prompts.",
        Threshold("report"),
        paper="correlated on most tasks for Pythia (recalled)",
    ),
    ClaimSpec(
        "tuned-lens/C1",
        "A local outlier factor on tuned-lens trajectories tells injected prompts from normal ones: AUROC "
        "at least 0.9.",
        Threshold(">=", 0.9),
        null=0.5,
        control=TWIN,
        paper="near 1.0 on BoolQ, MNLI, SST-2 with Pythia-12B (recalled)",
    ),
    ClaimSpec(
        "tuned-lens/C2",
        "The lower bound of that AUROC lies above the AUROC on logit-lens trajectories (difference).",
        Threshold(">", 0.0),
        control=TWIN,
        paper="tuned trajectories are better than logit-lens ones (recalled)",
    ),
    ClaimSpec(
        "tuned-lens/C3",
        "The lower bound of that AUROC lies above the AUROC of the simplified relative Mahalanobis distance "
        "on the last layer (difference).",
        Threshold(">", 0.0),
        control=TWIN,
        paper="SRM clearly worse (recalled)",
    ),
    ClaimSpec(
        "tuned-lens/C4",
        "The injection takes at least 40 points of task accuracy.",
        Threshold(">=", 0.4),
        null=0.0,
        control=TWIN,
    ),
    ClaimSpec(
        "tuned-lens/D1",
        "On a white stream the first causal direction is the planted one: |cos| at least 0.95, at planted "
        "strengths 1 and 0.3 (the worse of the two).",
        Threshold(">=", 0.95),
        null=0.5,
        control="the same stream stretched by scales from 1 to 0.1, where the optimum is another direction",
    ),
    ClaimSpec(
        "tuned-lens/D2",
        f"{STORIES}influence on the lens ranks causal directions like influence on the model in the last "
        "third of layers: Spearman's rho at least 0.7 at the worst of them.",
        Threshold(">=", 0.7),
        null=0.0,
        control="as many random directions at the same layers",
        paper="about 0.89 at layer 18 of Pythia 410M (recalled)",
    ),
    ClaimSpec(
        "tuned-lens/D2-gap",
        f"{STORIES}that correlation is higher for causal directions than for random ones (difference at the "
        "worst of these layers).",
        Threshold(">", 0.0),
        control="random directions less other random directions",
    ),
]
