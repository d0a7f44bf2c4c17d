"""How open is this model, component by component, and what do its licences really allow?

    from glasshouse.governance.openness import compare, score
    from glasshouse.governance import from_hf_repo

    card = from_hf_repo("./model")            # what its files tell; the rest stays unknown
    print(score(card).overall)                # a mean with bounds
    print(compare(card).nearest)              # among 45 published models

Taxonomy and rows: arXiv 2404.17047 and 2405.08597; `mof_evaluate`: the Model Openness Framework, 2403.13784.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glasshouse.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from glasshouse.governance.openness.corpus import (
        mof_models,
        opening_up_projects,
        taxonomy_cards,
        taxonomy_rows,
    )
    from glasshouse.governance.openness.licences import (
        LicensePoints,
        effective_weights_license,
        license_points,
        read_overrides,
    )
    from glasshouse.governance.openness.mof import MofResult, mof_evaluate, mof_to_openness
    from glasshouse.governance.openness.scoring import (
        Comparison,
        OpennessScore,
        compare,
        matrix,
        matrix_frame,
        score,
    )
    from glasshouse.governance.openness.stages import StageAssessment, paper_sheet, read_sheet
    from glasshouse.governance.openness.taxonomy import (
        COMPONENTS,
        ComponentOpenness,
        OpennessCard,
        band_to_level,
    )

_HOME = {
    "COMPONENTS": "taxonomy",
    "Comparison": "scoring",
    "ComponentOpenness": "taxonomy",
    "LicensePoints": "licences",
    "MofResult": "mof",
    "OpennessCard": "taxonomy",
    "OpennessScore": "scoring",
    "StageAssessment": "stages",
    "band_to_level": "taxonomy",
    "compare": "scoring",
    "effective_weights_license": "licences",
    "license_points": "licences",
    "matrix": "scoring",
    "matrix_frame": "scoring",
    "mof_evaluate": "mof",
    "mof_models": "corpus",
    "mof_to_openness": "mof",
    "opening_up_projects": "corpus",
    "paper_sheet": "stages",
    "read_overrides": "licences",
    "read_sheet": "stages",
    "score": "scoring",
    "taxonomy_cards": "corpus",
    "taxonomy_rows": "corpus",
}

__all__ = [
    "COMPONENTS",
    "Comparison",
    "ComponentOpenness",
    "LicensePoints",
    "MofResult",
    "OpennessCard",
    "OpennessScore",
    "StageAssessment",
    "band_to_level",
    "compare",
    "effective_weights_license",
    "license_points",
    "matrix",
    "matrix_frame",
    "mof_evaluate",
    "mof_models",
    "mof_to_openness",
    "opening_up_projects",
    "paper_sheet",
    "read_overrides",
    "read_sheet",
    "score",
    "taxonomy_cards",
    "taxonomy_rows",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME)
