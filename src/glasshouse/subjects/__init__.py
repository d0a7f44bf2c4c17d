"""The access layer: open a model, read and edit its sites, generate, score, differentiate."""

from glasshouse.subjects.architectures import Architecture, register_arch
from glasshouse.subjects.boundary import BoundaryMergeError
from glasshouse.subjects.generation import Completion
from glasshouse.subjects.loading import as_subject, register_resolver
from glasshouse.subjects.patches import Patch
from glasshouse.subjects.selftest import SelfTest
from glasshouse.subjects.sites import Site
from glasshouse.subjects.subject import Run, Subject

__all__ = [
    "Architecture",
    "BoundaryMergeError",
    "Completion",
    "Patch",
    "Run",
    "SelfTest",
    "Site",
    "Subject",
    "as_subject",
    "register_arch",
    "register_resolver",
]
