"""The checks we ship; third parties plug theirs in through the entry point group `glasshouse.checks`.

A check that finds a behaviour journals it as `<slug>/behaviour` (see `glasshouse.evidence.behaviours`), and
*guilty rows* then traces it to the training rows.
"""
