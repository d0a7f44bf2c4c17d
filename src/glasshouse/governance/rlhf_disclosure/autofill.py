"""An RLHF card out of what a pipeline left behind: preferences, settings, models, runs. Never guessed.

What is measured here is journalled as a `Run` under the card's folder, and the field cites it: the validator
can hold the number against the run. What no artefact tells stays unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasshouse.governance._card import CardField, Quantity, Source, disclosed
from glasshouse.governance._compare import put
from glasshouse.governance._errors import CardError
from glasshouse.governance._hub import HubFolder, read_folder
from glasshouse.governance._plain import parse_json, parse_yaml, read_text
from glasshouse.governance._sources import file_source, run_source
from glasshouse.governance.rlhf_disclosure.taxonomy import RLHFCard
from glasshouse.runtime import files
from glasshouse.statistics.estimate import Estimate

if TYPE_CHECKING:
    from glasshouse.governance.rlhf_disclosure.preferences import Rating
    from glasshouse.governance.rlhf_disclosure.reward import Scorer

ALGORITHMS = ("ppo", "dpo", "ipo", "kto", "grpo", "rloo", "sft")
SETTINGS = (
    "spec.json",
    "training_args.json",
    "training_args.yaml",
    "trainer_config.json",
    "trainer_config.yaml",
)
_KL_NAMES = ("beta", "kl_coef", "init_kl_coef", "kl_coefficient")


@dataclass
class _Draft:
    """Fields collected for a card, by pointer."""

    fields: dict[str, CardField[Any]] = field(default_factory=dict)

    def tell(
        self, pointer: str, value: Any, *sources: Source, note: str = "", verified: str = "self_reported"
    ) -> None:
        if value is not None and pointer not in self.fields:
            self.fields[pointer] = disclosed(value, *sources, note=note, verified=verified)  # type: ignore[arg-type]

    def measured(self, pointer: str, estimate: Estimate, unit: str, source: Source) -> None:
        """A measured number; an undefined one leaves the field unknown and says why."""
        if estimate.defined:
            value = quantity(estimate, unit).model_dump(exclude_defaults=True)
            self.tell(pointer, value, source, verified="verified")
        else:
            self.fields.setdefault(pointer, CardField[Any](note=estimate.method))

    def card(self, subject: Mapping[str, Any]) -> RLHFCard:
        data: dict[str, Any] = {"card_type": "rlhf", "subject": dict(subject)}
        for pointer, one in self.fields.items():
            put(data, pointer, one.model_dump(mode="json", exclude_defaults=True))
        card: RLHFCard = RLHFCard.parse(data)
        return card


def quantity(estimate: Estimate, unit: str) -> Quantity:
    """An estimate as a card states it."""
    import math

    ends = (
        (estimate.low, estimate.high)
        if math.isfinite(estimate.low) and math.isfinite(estimate.high)
        else (None, None)
    )
    return Quantity(
        value=estimate.value, unit=unit, n=estimate.n, low=ends[0], high=ends[1], level=estimate.level,
        method=estimate.method[:300],
    )  # fmt: skip


def prefill(folder: HubFolder) -> RLHFCard:
    """What one model's folder tells: base model, data sets, trainer settings. Nothing is measured."""
    draft = _Draft()
    _from_front(draft, folder)
    _from_settings(draft, folder)
    return draft.card(folder.subject().model_dump(mode="json", exclude_defaults=True))


def from_artifacts(
    *,
    base: Path | str,
    dataset: Path | str | None = None,
    policy_dir: Path | str | None = None,
    base_model_dir: Path | str | None = None,
    held_out: Path | str | None = None,
    rm: Scorer | None = None,
    samples: Mapping[str, Sequence[Sequence[float]]] | None = None,
    final_kl: Estimate | None = None,
    audit: Path | str | None = None,
    name: str | None = None,
    seed: int = 0,
) -> RLHFCard:
    """The card of a pipeline from its artefacts, all under `base`, the folder the card will lie in.

    `dataset` and `held_out` are preferences (`read_preferences`), `rm` a reward model to test on the latter,
    `samples` {"proxy", "gold"} rewards [prompts, samples] for the best-of-n curve, `policy_dir` the trained
    policy with its trainer's settings, `base_model_dir` the model it began from, `audit` what `glasshouse
    audit --out` wrote. Measurements go to a run under `base/runs`. Raises CardError for an artefact
    elsewhere, RecordError for a damaged one.
    """
    root, draft = Path(base), _Draft()
    folder = read_folder(policy_dir) if policy_dir is not None else None
    if folder is not None:
        _from_settings(draft, folder, root)
    _measure(draft, root, dataset, held_out, rm, samples, final_kl, seed)
    if folder is not None:
        _from_front(draft, folder, root)
    if base_model_dir is not None:
        _from_base(draft, read_folder(base_model_dir), root)
    if audit is not None:
        _from_audit(draft, Path(audit), root)
    subject = (
        folder.subject().model_dump(mode="json", exclude_defaults=True)
        if folder is not None
        else {"name": "model"}
    )
    return draft.card({**subject, **({"name": name} if name else {})})


def _measure(
    draft: _Draft,
    root: Path,
    dataset: Path | str | None,
    held_out: Path | str | None,
    rm: Scorer | None,
    samples: Mapping[str, Sequence[Sequence[float]]] | None,
    final_kl: Estimate | None,
    seed: int,
) -> None:
    """Measure what can be measured inside one run, then tell it with that run as the source."""
    from glasshouse.governance.rlhf_disclosure import preferences, reward
    from glasshouse.runtime.runs import Run

    spec = {
        "seed": seed, "dataset": _identity(dataset), "held_out": _identity(held_out),
        "rm": rm.identity if rm is not None else None,
        "samples": _samples_identity(samples),
        "final_kl": final_kl.to_json() if final_kl is not None else None,
    }  # fmt: skip
    if not any(value is not None for key, value in spec.items() if key != "seed"):
        return
    ratings = preferences.read_preferences(dataset) if dataset is not None else []
    tested = preferences.read_preferences(held_out) if held_out is not None else []
    with Run.open(root / "runs", "rlhf-measurements", spec) as run:
        told: dict[str, Any] = {}
        if ratings:
            told["preferences"] = run.step("preferences", lambda: _prefs(ratings, seed))
        if rm is not None and tested:
            told["reward"] = run.step(
                "reward", lambda: reward.measure_reward(rm, tested, seed=seed).to_json()
            )
        if samples is not None:
            told["curve"] = run.step(
                "curve", lambda: reward.best_of_n_curve(samples["proxy"], samples["gold"])
            )
        if ratings and tested:
            prompts = [[one.prompt for one in part] for part in (ratings, tested)]
            told["overlap"] = run.step("overlap", lambda: preferences.prompt_overlap(*prompts))
        if final_kl is not None:
            told["final_kl"] = run.step("final_kl", final_kl.to_json)
        run.finish()
        place = run.path

    def cite(metric: str) -> Source:
        return run_source(place, base=root, metric=metric)

    if ratings:
        _tell_preferences(draft, told["preferences"], ratings, cite)
    if "reward" in told:
        for pointer, name, unit in (
            ("accuracy", "accuracy", "share"), ("calibration_error", "calibration_error", "share"),
            ("length_correlation", "length_correlation", "correlation"),
        ):  # fmt: skip
            estimate = Estimate.from_json(told["reward"][name])
            draft.measured(f"/reward_evaluation/{pointer}", estimate, unit, cite(f"reward/{name}"))
    if "curve" in told:
        draft.tell("/reward_evaluation/overoptimisation", told["curve"], cite("curve"), verified="verified")
    if "overlap" in told:
        draft.tell("/policy/prompt_overlap", told["overlap"], cite("overlap"), verified="verified")
    if "final_kl" in told:
        draft.measured("/policy/final_kl", Estimate.from_json(told["final_kl"]), "nats", cite("final_kl"))


def _prefs(ratings: Sequence[Rating], seed: int) -> dict[str, Any]:
    from glasshouse.governance.rlhf_disclosure.preferences import hashed, measure_preferences

    found = measure_preferences(ratings, seed=seed).to_json()
    found["flagged"] = [hashed(flag["rater"]) for flag in found["flags"]]
    found["flags"] = [{**flag, "rater": hashed(flag["rater"])} for flag in found["flags"]]
    return found


def _tell_preferences(draft: _Draft, found: Mapping[str, Any], ratings: Sequence[Rating], cite: Any) -> None:
    """The fields that a file of preferences decides."""

    def said(pointer: str, metric: str) -> None:
        draft.tell(pointer, found[metric], cite(f"preferences/{metric}"), verified="verified")

    said("/evaluators/n_raters", "n_raters")
    said("/examples/n_items", "n_items")
    said("/examples/n_unique_prompts", "n_unique_prompts")
    said("/quality/max_ratings_per_item", "max_ratings_per_item")
    said("/quality/duplicates", "duplicates")
    if found["n_raters"] is not None:
        said("/quality/flagged_raters", "flagged")
    whole = cite("preferences")
    draft.tell("/feedback/kind", "comparisons", whole, verified="verified")
    draft.tell("/feedback/options_per_item", 2, whole, verified="verified")
    if any(one.tie for one in ratings):
        draft.tell("/feedback/ties_allowed", True, whole, verified="verified")
    for pointer, metric, unit in (
        ("/feedback/tie_rate", "tie_rate", "share"),
        ("/feedback/longer_preferred", "longer_preferred", "share"),
        ("/quality/ratings_per_item", "ratings_per_item", "ratings"),
    ):  # fmt: skip
        draft.measured(pointer, Estimate.from_json(found[metric]), unit, cite(f"preferences/{metric}"))
    alpha = Estimate.from_json(found["alpha"])
    if alpha.defined:
        value = {
            "statistic": "alpha_nominal", "marginals": found["marginals"],
            "estimate": quantity(alpha, "alpha").model_dump(exclude_defaults=True),
        }  # fmt: skip
        draft.tell("/quality/agreement", value, whole, verified="verified")
    else:
        draft.fields["/quality/agreement"] = CardField[Any](note=alpha.method)
    draft.tell(
        "/reward_model/data_size", found["n_ratings"], cite("preferences/n_ratings"), verified="verified"
    )
    _tell_kinds(draft, ratings, whole)


def _tell_kinds(draft: _Draft, ratings: Sequence[Rating], source: Source) -> None:
    """Who the raters are, where every row says it: people, or a model."""
    kinds = [one.rater_kind for one in ratings]
    if any(kind is None for kind in kinds):
        return
    share = sum(kind == "model" for kind in kinds) / len(kinds)
    draft.tell("/evaluators/ai_feedback_share", share, source, verified="verified")
    models = {one.rater_model for one in ratings if one.rater_kind == "model"}
    if len(models) == 1 and None not in models:
        draft.tell("/evaluators/ai_feedback_model", str(next(iter(models))), source)
    if share == 1:
        for pointer in ("/evaluators/paid", "/evaluators/pay", "/evaluators/demographics"):
            draft.fields[pointer] = CardField[Any](
                status="not_applicable", note="every rating is a program's"
            )
    adversarial = [one.adversarial for one in ratings]
    if all(one is not None for one in adversarial):
        told = sum(bool(one) for one in adversarial) / len(adversarial)
        draft.tell("/examples/adversarial_share", told, source, verified="verified")


def _from_settings(draft: _Draft, folder: HubFolder, root: Path | None = None) -> None:
    """Algorithm, KL, learning rate, rows, from the settings that a trainer wrote as JSON or YAML."""
    for name in SETTINGS:
        if name not in folder.names:
            continue
        path = folder.path / name
        parse = parse_json if name.endswith("json") else parse_yaml
        data = parse(read_text(path), where=str(path))
        if not isinstance(data, Mapping):
            continue
        _tell_settings(draft, data, _source(path, root or folder.path))
        return


def _tell_settings(draft: _Draft, data: Mapping[str, Any], source: Source) -> None:
    # Our own checkpoints keep the settings under `spec`, beside what training measured.
    inner = data.get("spec")
    given = dict(inner) if isinstance(inner, Mapping) else dict(data)
    more = given.get("algo_kw")
    options = {**given, **(dict(more) if isinstance(more, Mapping) else {})}
    algorithm = str(options.get("algo") or options.get("algorithm") or options.get("trainer") or "").lower()
    algorithm = algorithm.removesuffix("trainer").removesuffix("config")
    if algorithm in ALGORITHMS:
        draft.tell("/policy/algorithm", algorithm, source)
    coefficient: Any = next((options[key] for key in _KL_NAMES if _is_number(options.get(key))), None)
    if coefficient is None and algorithm == "dpo":
        coefficient = _dpo_default(given)
    if coefficient is not None and algorithm in ("ppo", "dpo", "ipo", "kto", "grpo", "rloo"):
        draft.tell("/policy/kl_coefficient", {"value": float(coefficient), "unit": "coefficient"}, source)
    rate: Any = options.get("lr", options.get("learning_rate"))
    if _is_number(rate):
        draft.tell("/policy/learning_rate", {"value": float(rate), "unit": "per step"}, source)
    start = next(
        (
            options[k]
            for k in ("ref_model", "reference_model", "start", "model_name_or_path")
            if options.get(k)
        ),
        None,
    )
    if isinstance(start, str) and algorithm in ("ppo", "dpo", "ipo", "kto", "grpo", "rloo"):
        draft.tell("/policy/reference_model", Path(start).name[:300], source)
        draft.tell("/pretraining/base_model", Path(start).name[:300], source)
    metrics = data.get("metrics")
    if isinstance(metrics, Mapping) and _is_number(metrics.get("rows")):
        draft.tell("/policy/training_rows", {"value": float(metrics["rows"]), "unit": "rows"}, source)
    if algorithm in ("dpo", "ipo"):
        _tell_implicit(draft, options, coefficient, start, source)


def _tell_implicit(draft: _Draft, options: Mapping[str, Any], beta: Any, start: Any, source: Source) -> None:
    """DPO's reward model is the policy itself: what its settings say of it."""
    draft.tell("/reward_model/explicit", False, source)
    draft.tell("/reward_model/objective", "implicit_dpo", source)
    draft.tell(
        "/reward_model/disagreement", "noise", source, note="a Bradley-Terry likelihood takes it for noise"
    )
    if isinstance(start, str):
        draft.tell("/reward_model/base_model", Path(start).name[:300], source)
    if beta is not None:
        smoothing = options.get("label_smoothing", 0.0)
        told = f"KL to the reference with beta {float(beta):g}, label smoothing {float(smoothing or 0):g}"
        draft.tell("/reward_model/regularisation", told, source)


def _dpo_default(data: Mapping[str, Any]) -> float | None:
    """The beta of one of our own specs that leaves it at its default; None for other people's settings."""
    if "algo_kw" not in data:
        return None
    from glasshouse.training.spec import ALGO_KW

    return float(ALGO_KW["dpo"]["beta"])


def _from_front(draft: _Draft, folder: HubFolder, root: Path | None = None) -> None:
    """Base model, data sets and, where trl wrote the card, the algorithm, from a README's front matter."""
    if not folder.front:
        return
    bases = folder.subject().base_models
    if bases and "base_model" in folder.front:
        draft.tell("/pretraining/base_model", bases[0], _said(folder, "base_model", root))
    tags = [str(tag).lower() for tag in folder.front.get("tags") or [] if isinstance(tag, str)]
    named = [tag for tag in tags if tag in ALGORITHMS]
    if "trl" in tags and len(named) == 1:
        draft.tell("/policy/algorithm", named[0], _said(folder, "tags", root))
    told = _evaluations(folder.front.get("model-index"))
    if told:
        draft.tell("/policy/evaluations", told[:20_000], _said(folder, "model-index", root))


def _evaluations(index: Any) -> str:
    """The results of a README's model-index, as the hub keeps them; "" where there is none."""
    lines = []
    entries = index if isinstance(index, list) else []
    for result in (r for e in entries if isinstance(e, Mapping) for r in e.get("results") or []):
        if not isinstance(result, Mapping):
            continue
        data = result.get("dataset")
        name = data.get("name") if isinstance(data, Mapping) else None
        for metric in result.get("metrics") or []:
            if isinstance(metric, Mapping) and _is_number(metric.get("value")):
                lines.append(f"{name or 'a data set'}, {metric.get('type') or 'metric'}: {metric['value']:g}")
    return "; ".join(lines)


def _from_base(draft: _Draft, folder: HubFolder, root: Path) -> None:
    """What the base model's own folder says of its data and its make."""
    sets = folder.front.get("datasets")
    names = [sets] if isinstance(sets, str) else [x for x in sets or [] if isinstance(x, str)]
    if names:
        draft.tell("/pretraining/data", ", ".join(names)[:20_000], _said(folder, "datasets", root))
    draft.tell("/pretraining/base_model", folder.subject().name, *_sources_of(folder, ("config.json",), root))
    if "spec.json" in folder.names:
        told = "the settings of its training are in spec.json"
        draft.tell("/pretraining/process", told, _source(folder.path / "spec.json", root))


def _from_audit(draft: _Draft, folder: Path, root: Path) -> None:
    """Access and findings of an audit that was run here."""
    path = folder / "findings.json" if folder.is_dir() else folder
    data = parse_json(read_text(path, limit=50_000_000), where=str(path))
    try:
        access, findings = [str(one) for one in data["access"]], data["findings"]
        told = [f"{one['severity']}: {one['summary']}" for one in findings]
        skipped = len(data["not_run"])
    except (KeyError, TypeError) as error:
        raise CardError.of("E-PARSE", "these are no findings of an audit", where=str(path)) from error
    source = _source(path, root)
    draft.tell("/audits/access", ", ".join(access), source)
    words = "; ".join(told) or f"nothing found; {skipped} checks could not be run"
    draft.tell("/audits/findings", words[:20_000], source)
    draft.tell("/audits/unresolved", f"{len(told)} findings, none resolved here", source)


def _source(path: Path, root: Path) -> Source:
    try:
        return file_source(path, base=root)
    except ValueError as error:
        raise CardError.of(
            "E-SRC-PATH", f"{path} is not under {root}", fix="give a folder that holds all"
        ) from error


def _said(folder: HubFolder, key: str, root: Path | None) -> Source:
    inner = folder.said(key)
    if root is None:
        return inner
    _source(folder.card_path, root)
    place = folder.card_path.resolve().relative_to(root.resolve()).as_posix()
    return inner.model_copy(update={"ref": place})


def _sources_of(folder: HubFolder, names: Sequence[str], root: Path) -> list[Source]:
    return [_source(folder.path / name, root) for name in names if name in folder.names]


def _identity(path: Path | str | None) -> str | None:
    if path is None:
        return None
    root = Path(path)
    held = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
    if not all(p.exists() for p in held):
        raise CardError.of("E-READ", "there is no such file", where=str(path))
    return files.sha256_json([files.sha256_file(p) for p in held])


def _samples_identity(samples: Mapping[str, Sequence[Sequence[float]]] | None) -> str | None:
    if samples is None:
        return None
    return files.sha256_json(
        {name: [list(map(float, row)) for row in rows] for name, rows in samples.items()}
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
