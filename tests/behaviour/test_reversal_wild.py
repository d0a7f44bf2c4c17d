"""Facts models learned by themselves: the paper's figures again, and its task with both directions alike."""

from __future__ import annotations

import gzip
import math
import os
from pathlib import Path
from typing import Any

import pytest

from glasshouse.behaviour.reversal_curse.wild import WildReport, parent_child, read_pairs, sides
from glasshouse.runtime.errors import InputError, RecordError

CELEBRITIES = (
    Path(os.environ.get("GLASSHOUSE_DATA", "/nonexistent"))
    / "reversal-curse" / "celebrity_pairs_numeric.csv.gz"
)  # fmt: skip
# Means in the spec, read from the result files of the paper's repository, to their last digit given.
PAPER = {
    "gpt-3.5-turbo": (0.348, 0.119, 5e-4),
    "davinci": (0.0986, 0.0445, 5e-5),
    "llama-7b": (0.0804, 0.0087, 5e-5),
    "llama-65b": (0.0810, 0.0168, 5e-5),
}


@pytest.mark.skipif(not CELEBRITIES.is_file(), reason="the paper's results are not there (GLASSHOUSE_DATA)")
def test_t8_the_papers_figures_from_its_files() -> None:
    found = parent_child(CELEBRITIES)
    assert set(found.sides) == set(PAPER)
    for model, (parent, child, step) in PAPER.items():
        one = found.sides[model]
        assert one.a_to_b.n == one.difference.n == 1513
        assert one.a_to_b.value == pytest.approx(parent, abs=step)
        assert one.b_to_a.value == pytest.approx(child, abs=step)
        assert one.difference.low > 0, f"{model} answers both directions alike"
    reversible = found.can_reverse["gpt-4"]
    assert (reversible.n, round(reversible.value, 3)) == (1513, 0.327)


def test_sums_of_logprobs_become_mean_probabilities(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv.gz"
    rows = "gpt4_can_reverse,m_parent_logprob,m_child_logprob,c_freq_find_parent,c_freq_find_child\n"
    rows += f"True,{math.log(0.5)},{math.log(0.25)},1.0,0.5\nFalse,0.0,{math.log(0.75)},0.5,\n"
    path.write_bytes(gzip.compress(rows.encode()))
    found = parent_child(path)
    assert found.sides["m"].a_to_b.value == pytest.approx(0.75)
    assert found.sides["m"].b_to_a.value == pytest.approx(0.5)
    assert found.sides["m"].difference.value == pytest.approx(0.25)
    assert (found.sides["c"].a_to_b.value, found.sides["c"].a_to_b.n) == (1.0, 1)  # a row lacks one side
    assert found.can_reverse["gpt-4"].value == 0.5
    found.save(tmp_path / "report.json")
    assert WildReport.load(tmp_path / "report.json") == found
    assert len(found.plot().data) == 2
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(InputError, match="no saved report"):
        WildReport.load(tmp_path / "report.json")


def test_equal_directions_give_no_difference() -> None:
    same = sides("success rate", [0.1, 0.9, 0.4] * 10, [0.4, 0.1, 0.9] * 10)
    assert same.difference.value == pytest.approx(0.0)
    assert same.difference.low < 0 < same.difference.high


def test_pairs_are_read_with_their_columns(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("id,child,parent,parent_type\np1,Telemachus,Odysseus,father\n")
    (pair,) = read_pairs(path)
    assert (pair.id, pair.a, pair.b, pair.more["parent_type"]) == ("p1", "Telemachus", "Odysseus", "father")
    path.write_text("id,child,parent\np1,Telemachus,\n")
    with pytest.raises(RecordError, match=r"pairs\.csv:2 field 'parent'"):
        read_pairs(path)
    path.write_text("id,child,parent\np1,A,B\np1,C,D\n")
    with pytest.raises(RecordError, match="'p1' was used before"):
        read_pairs(path)
    path.write_text("id,child,parent\n")
    with pytest.raises(RecordError, match="no pairs"):
        read_pairs(path)
    with pytest.raises(RecordError, match="cannot be read"):
        read_pairs(tmp_path / "none.csv")
    jsonl = tmp_path / "pairs.jsonl"
    jsonl.write_text('{"capital": "Lorn", "land": "Istria"}\n')
    assert read_pairs(jsonl, a="capital", b="land")[0].b == "Istria"


def test_both_directions_are_prompted_alike(tmp_path: Path) -> None:
    from glasshouse.behaviour.reversal_curse.wild_task import SHOTS, wild

    path = tmp_path / "pairs.csv"
    path.write_text("id,child,parent,parent_type\np1,Ada,Boris,father\n")
    for style in ("chat", "completion"):
        made = {s.metadata["arm"]: s for s in wild(str(path), style=style).dataset}  # type: ignore[index]
        assert set(made) == {"forward", "back", "forward-bare", "back-bare"}
        for kind in ("", "-bare"):
            one, other = (_frame(made[arm + kind].input, style) for arm in ("forward", "back"))
            assert one == other, "what stands around the question differs between the directions"
    assert sum(q.startswith("Name a child") for q, _ in SHOTS) == len(SHOTS) / 2
    with pytest.raises(InputError, match="holds its answer"):
        wild(str(path), ask_forward="Is {parent} the father of {child}?")
    with pytest.raises(InputError, match="cannot be filled"):
        wild(str(path), ask_back="Name a {cousin} of {parent}.")
    with pytest.raises(InputError, match="style"):
        wild(str(path), style="loud")


def _frame(prompt: object, style: str) -> str:
    if style == "completion":
        text = str(prompt)
        cut = text.rindex("Q: ")
        assert text.endswith("\nA:")
        return text[:cut]
    return "\n".join(f"{m.role}: {m.text}" for m in prompt[:-1])  # type: ignore[attr-defined,index]


def test_declined_is_not_wrong_and_pairs_are_compared(tmp_path: Path) -> None:
    """A scripted model that knows every parent, one child in two samples, and says nothing else it knows."""
    from inspect_ai import eval as inspect_eval
    from inspect_ai.model import ModelOutput, ModelUsage, get_model

    from glasshouse.behaviour.reversal_curse.wild_task import analyse_wild, wild
    from glasshouse.evaluation import scores_df

    path = tmp_path / "pairs.csv"
    people = [("Ada", "Boris"), ("Cid", "Dora"), ("Eli", "Flo")]
    path.write_text("id,child,parent,parent_type\n" + "".join(f"{a},{a},{b},parent\n" for a, b in people))
    asked = {True: 0, False: 0}  # with the examples before the question, and bare

    def reply(messages: list[Any], *_: object) -> ModelOutput:
        question = messages[-1].text
        parent = next((b for a, b in people if f"Who is {a}'s" in question), None)
        said = parent or "I don't know."
        if "child of Boris" in question:
            asked[len(messages) > 2] += 1
            said = "Ada" if asked[len(messages) > 2] % 2 else "Zoe"
        output = ModelOutput.from_content("mockllm/model", said)
        output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
        return output

    model = get_model("mockllm/model", custom_outputs=reply)
    (log,) = inspect_eval(
        wild(str(path), samples=2), model=model, log_dir=str(tmp_path / "logs"), display="none",
        log_level="warning",
    )  # fmt: skip
    assert log.status == "success", log.error
    report = analyse_wild(tmp_path / "logs")
    for name in ("mockllm/model", "mockllm/model-bare"):
        one = report.sides[name]
        assert (one.a_to_b.value, one.a_to_b.n) == (1.0, 3)  # epochs are no pairs
        assert one.b_to_a.value == pytest.approx(0.5 / 3)
        assert report.can_reverse[name].value == pytest.approx(1 / 3)
    frame = scores_df(tmp_path / "logs")
    parts = frame[[f"score_names_answer_{name}" for name in ("correct", "declined", "wrong")]]
    assert (parts.sum(axis=1) == 1).all()
    back = frame[frame["arm"] == "back"]
    assert back["score_names_answer_declined"].sum() == 4
    assert back["score_names_answer_wrong"].sum() == 1
    with pytest.raises(InputError, match="no such log"):
        analyse_wild(tmp_path / "none")
