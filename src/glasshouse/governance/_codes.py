"""The codes of the lint. They are stable: a build that gates on one keeps working."""

from __future__ import annotations

CODES: dict[str, str] = {
    # L0: the file
    "E-READ": "the file is not there or cannot be opened",
    "E-SIZE": "the file is larger, or holds more values, than a card may",
    "E-ENCODING": "the text is not UTF-8",
    "E-PARSE": "the file is not well-formed JSON, YAML or Markdown with front matter",
    "E-ALIAS": "YAML anchors and aliases are not read",
    "E-TAG": "YAML tags are not read",
    "E-DEPTH": "the data is nested too deep",
    "E-NAN": "NaN or infinity stands where a number is due",
    "E-TYPE-CARD": "the card's type is missing or unknown",
    # L1: the schema
    "E-MISSING": "a required key is missing",
    "E-UNKNOWN-KEY": "a key is not part of the schema",
    "E-TYPE": "a value has the wrong type",
    "E-CHOICE": "a value is not one of the allowed ones",
    "E-RANGE": "a number is outside its range",
    "E-FORMAT": "a text does not have the required form",
    "E-LENGTH": "a text is too long or empty",
    # L2: every card
    "E-STATUS": "value and status contradict each other",
    "E-FILLER": "a filler stands where a disclosure is due",
    "E-DATE": "a date does not exist or lies in the future",
    "E-INTERVAL": "an interval is reversed, half given, or does not contain its value",
    "W-EVID": "a disclosed field names no source",
    "W-DISPUTED": "a field is disputed",
    "W-URL": "a reference is neither http, https nor a doi",
    "W-REGRESS": "a field that was disclosed is no longer",
    # L3: sources
    "E-SRC-PATH": "a source's path leaves the card's folder",
    "E-SRC-MISSING": "a source's file or run is not there",
    "E-SRC-HASH": "a source's file has changed since the card was written",
    "E-RUN": "a run cannot be read or is not finished",
    "E-RUN-METRIC": "a stated number differs from the run it cites",
    "W-SRC-UNHASHED": "a local source has no hash, so a change would not be seen",
    # L4: policy
    "E-COVERAGE": "the policy asks for a field that is neither disclosed nor justified",
    # openness
    "E-LEVEL-LICENSE": "the level is higher than the licence allows",
    "E-LEVEL-ACCESS": "the level contradicts the access",
    "E-KIND": "a code component carries a data level or the reverse",
    "E-LICENSE": "the licence expression cannot be read",
    "E-LIC-CONFLICT": "the licence text contradicts the stated licence",
    "E-BASE-CYCLE": "the base models form a cycle",
    "W-LIC-UNKNOWN": "the licence is not a known one",
    "W-LIC-LINK": "the licence is 'other' without a link to its text",
    "W-LIC-STRICT": "a strict reading of the licence gives another level",
    "W-BASE-MISSING": "nothing is known of a base model's licence",
    # rlhf
    "E-LOSS-TYPE": "the feedback type and the reward model's loss do not fit",
    "E-AGREEMENT": "the agreement is impossible",
    "E-RATERS": "fewer raters than ratings of an item",
    "E-RM-ACCURACY": "the reward model's accuracy is impossible or below chance",
    "E-CEILING": "the reward model's accuracy is above what the raters' noise allows",
    "E-IMPLICIT-RM": "DPO has no explicit reward model, and the card describes one",
    "E-KL-REFERENCE": "a KL without the model it is measured from",
    "E-CONTAMINATION": "prompts of the evaluation are in the training data",
    "E-AUDITOR": "an external audit by the issuer",
    "E-DEMOGRAPHICS": "percentages do not sum to 100",
    "E-MONITORING": "monitoring is claimed without a channel",
    "E-PII": "rater ids look like names or addresses",
    "E-UNIT": "a number carries the wrong unit",
    "W-PAY": "raters are paid, and the pay is unknown",
    # challenges
    "E-QUESTION": "a question id does not exist",
    "E-METHOD": "a method does not exist",
    "E-LINK": "a link's end does not exist",
    "E-DUPLICATE": "an id is defined twice",
    "E-CYCLE": "questions depend on each other in a circle",
    "W-NO-CI": "evidence without interval or date",
}
"""Code -> what it means. `E-` errors exit 2; `W-` warnings exit 0, or 1 under --strict."""
