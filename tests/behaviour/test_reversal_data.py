"""Facts told in one order and asked in both: what the data must hold before anything is trained."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from glasshouse.corpora.reversal import Entity, ReversalData, ReversalRow, load_data
from glasshouse.corpora.reversal_checks import LeakageError
from glasshouse.corpora.reversal_generate import split_templates
from glasshouse.corpora.reversal_paper import InstructionData, shipped_random
from glasshouse.runtime.errors import InputError, RecordError

PAPER = Path(os.environ.get("GLASSHOUSE_DATA", "/nonexistent")) / "reversal-curse"
real = pytest.mark.skipif(not PAPER.is_dir(), reason="the paper's files are not there (GLASSHOUSE_DATA)")


@pytest.fixture(scope="module")
def data() -> ReversalData:
    return ReversalData.generate(n_per_group=6, seed=3)


def test_a_fact_is_told_in_its_own_order_only(data: ReversalData) -> None:
    told = {(row.entity_id, row.direction) for row in data.train}
    for entity in data.entities:
        orders = {d for d in ("p2d", "d2p") if (entity.id, d) in told}
        assert orders == ({"p2d", "d2p"} if entity.group == "both" else {entity.group})
    # Nowhere in training does the description of a p2d fact stand before its name.
    for entity in data.entities:
        for row in data.train:
            if entity.group != "both" and entity.name in row.text:
                first = row.text.index(entity.name) < row.text.index(entity.description)
                assert first == (entity.group == "p2d")


def test_reversed_text_for_one_group_reaches_that_group_only() -> None:
    cured = ReversalData.generate(n_per_group=4, told_reversed=("p2d",))
    plain = ReversalData.generate(n_per_group=4)
    added = {(r.group, r.direction) for r in cured.train} - {(r.group, r.direction) for r in plain.train}
    assert added == {("p2d", "d2p")}
    assert cured.entities == plain.entities
    assert {r.id for r in cured.test} == {r.id for r in plain.test}


def test_every_question_has_a_partner_of_another_entity(data: ReversalData) -> None:
    asked = data.asked()
    for true, random in zip(asked[::2], asked[1::2], strict=True):
        assert true.pair_id == random.pair_id
        assert (true.kind, random.kind) == ("true", "random")
        assert true.prompt == random.prompt
        assert random.completion != true.completion == true.answer
        assert random.completion in data.completions(true.group, true.direction).values()
    # A derangement within group, direction and template: every completion is given away exactly once.
    block = [a for a in asked if (a.arm, a.template_id, a.group) == ("same", asked[0].template_id, "p2d")]
    given = sorted(a.completion for a in block if a.kind == "random")
    assert given == sorted(a.completion for a in block if a.kind == "true")


def test_arms(data: ReversalData) -> None:
    assert {(a.group, a.direction) for a in data.asked(["same"])} == {("p2d", "p2d"), ("d2p", "d2p")}
    assert {(a.group, a.direction) for a in data.asked(["reverse"])} == {("p2d", "d2p"), ("d2p", "p2d")}
    assert {a.group for a in data.asked(["both"])} == {"both"}
    names = {e.id: e.name for e in data.entities}
    stated = data.asked(["in-context"])
    assert stated
    for one in stated:
        fact, _, question = one.prompt.partition(" . ")
        assert names[one.entity_id] in fact
        assert one.answer.strip() in fact
        assert one.answer.strip() not in question
    with pytest.raises(InputError, match="no arms"):
        data.asked(["sideways"])  # type: ignore[list-item]


@pytest.mark.parametrize("count", [(12, 4), (10, 4), (30, 10), (3, 1)])
def test_held_out_templates_are_made_of_trained_words(count: tuple[int, int]) -> None:
    train, test = split_templates(*count)
    assert (len(set(train)), len(set(test))) == count
    assert not set(train) & set(test)
    for side in (0, 1):
        assert {cell[side] for cell in test} <= {cell[side] for cell in train}


def test_too_few_templates_to_hold_any_out() -> None:
    with pytest.raises(InputError, match="n_test_templates=0"):
        split_templates(1, 4)
    asked = ReversalData.generate(n_per_group=3, n_train_templates=1, n_test_templates=0).test
    assert {row.split for row in asked} == {"seen"}


def test_same_seed_same_data_other_seed_other_facts() -> None:
    a, b, c = (ReversalData.generate(n_per_group=3, seed=s) for s in (1, 1, 2))
    assert a == b
    assert {e.name for e in a.entities}.isdisjoint({e.name for e in c.entities})


def test_save_and_load(tmp_path: Path, data: ReversalData) -> None:
    data.save(tmp_path)
    assert load_data(tmp_path) == data
    assert load_data(tmp_path).asked() == data.asked()
    assert load_data("generated", seed=5) == ReversalData.generate(seed=5)
    lines = data.export_jsonl(tmp_path / "rows.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"prompt": data.train[0].prompt, "completion": data.train[0].completion}
    (tmp_path / "reversal.json").write_text("[]")
    with pytest.raises(InputError, match="no reversal data"):
        load_data(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        load_data(tmp_path / "nowhere")


def test_records_carry_whole_texts_or_completions(data: ReversalData) -> None:
    whole, parts = data.records()[0], data.records(loss="completion")[0]
    assert whole.text == parts.turns[0].text + parts.turns[1].text == data.train[0].text
    with pytest.raises(InputError, match="choose"):
        data.records(loss="half")  # type: ignore[arg-type]


# -- bad input -----------------------------------------------------------------------------------------------


def _two(
    first: str = "p2d", second: str = "d2p", names: tuple[str, str] = ("ann lee", "bob ray")
) -> ReversalData:
    entities = (
        Entity("a", first, names[0], "red lamp"), Entity("b", second, names[1], "blue harp"),  # type: ignore[arg-type]
    )  # fmt: skip
    rows = (
        ReversalRow("a1", "a", "p2d", "p2d", "t1", f"{names[0]} made the", " red lamp", "train"),
        ReversalRow("a2", "a", "p2d", "d2p", "t2", "the red lamp is by", f" {names[0]}", "test"),
        ReversalRow("b1", "b", "d2p", "d2p", "t1", "the blue harp came from", f" {names[1]}", "train"),
    )
    return ReversalData(entities, rows)


def test_an_entity_in_two_groups_is_listed() -> None:
    entities = (Entity("a", "p2d", "Ann Lee", "red lamp"), Entity("b", "d2p", "ann  lee", "blue harp"))
    with pytest.raises(LeakageError, match="ann lee"):
        ReversalData(entities, ())


def test_a_name_that_begins_another() -> None:
    with pytest.raises(InputError, match="'ann lee' is the beginning of 'ann leeds'"):
        _two(names=("ann leeds", "ann lee"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "ann lee made the Red lamp, the"}, "row 'a1'.*already contains the answer"),
        (
            {"direction": "d2p", "prompt": "the red lamp by", "completion": " ann lee"},
            "order d2p.*group is p2d",
        ),
        ({"template_id": "t2", "direction": "p2d"}, None),
        ({"completion": "  "}, "empty"),
        ({"entity_id": "z"}, "not listed"),
    ],
)
def test_bad_rows_are_named(change: dict[str, str], message: str | None) -> None:
    data = _two()
    rows = (replace(data.rows[0], **change), *data.rows[1:])  # type: ignore[arg-type]
    if message is None:  # the same template id in the other direction is another template
        assert ReversalData(data.entities, rows).rows[0].template_id == "t2"
        return
    with pytest.raises(InputError, match=message):
        ReversalData(data.entities, rows)


def test_a_test_template_used_in_training() -> None:
    data = _two()
    rows = (*data.rows, replace(data.rows[2], id="b2", split="test", prompt="the blue harp is from"))
    with pytest.raises(LeakageError, match="'t1' is also a training template"):
        ReversalData(data.entities, rows)
    rows = (*data.rows, replace(data.rows[2], id="b2", split="test", template_id="t9"))
    with pytest.raises(LeakageError, match="also a training prompt"):
        ReversalData(data.entities, rows)


def test_one_entity_alone_has_no_partner() -> None:
    with pytest.raises(InputError, match="no other"):
        _two().asked()


class Letters:
    """A tokenizer of whole words in which a word glued to the one before it makes another token."""

    def __init__(self, *, glue: bool) -> None:
        self.glue, self.ids = glue, {}  # type: ignore[var-annotated]

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        words = text.split() if self.glue else list(text.replace(" ", ""))
        return {"input_ids": [self.ids.setdefault(word, len(self.ids)) for word in words]}

    def decode(self, ids: list[int]) -> str:
        return " ".join(list(self.ids)[i] for i in ids)


def test_a_missing_space_is_put_in_with_a_warning() -> None:
    data = _two(names=("xan lee", "bob ray"))
    bare = replace(data, rows=(replace(data.rows[0], completion="red lamp"), *data.rows[1:]))
    with pytest.warns(UserWarning, match="1 completions begin without a space, the first in row 'a1'"):
        assert bare.for_tokenizer(Letters(glue=True)) == data
    assert bare.for_tokenizer(Letters(glue=False)) == bare


def test_names_that_share_a_first_token_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="2 names share their first token"):
        _two(names=("ann lee", "ann ray")).for_tokenizer(Letters(glue=True))


# -- the paper's files ---------------------------------------------------------------------------------------


def _mini_paper(folder: Path, broken: str = "") -> Path:
    """Two entities per group in the paper's layout."""
    said = {"p2d": ("Ann Lee", "Bob Ray"), "d2p": ("Cid Fox", "Dan Oak"), "both": ("Eve Sun", "Flo Day")}
    (folder / "names.txt").write_text("\n".join(n for names in said.values() for n in names))
    for group, names in said.items():
        for split, words in (("train", "told"), ("test", "asked")):
            for direction in ("p2d", "d2p"):
                if split == "train" and group not in ("both", direction):
                    continue
                rows = [
                    {"prompt": f"{words} {n} made", "completion": f" thing {n[0]}."} if direction == "p2d"
                    else {"prompt": f"{words} thing {n[0]} by", "completion": f" {n}"}
                    for n in names
                ]  # fmt: skip
                same = group in ("both", direction)
                name = f"{group}_prompts_{split}" if same else f"{group}_reverse_prompts_{split}"
                path = folder / f"{name}.jsonl.gz"
                before = gzip.decompress(path.read_bytes()).decode() if path.exists() else ""
                text = before + "".join(json.dumps(row) + "\n" for row in rows)
                path.write_bytes(gzip.compress((text + broken).encode()))
    return folder


def test_the_papers_layout_is_read(tmp_path: Path) -> None:
    data = ReversalData.from_paper(_mini_paper(tmp_path))
    assert {(e.name, e.group, e.description) for e in data.entities} >= {("Ann Lee", "p2d", "thing A")}
    assert {a.completion for a in data.asked(["reverse"]) if a.direction == "d2p"} == {" Ann Lee", " Bob Ray"}
    assert load_data(tmp_path) == data
    true = data.asked(["reverse"])
    rows = [{"prompt": a.prompt, "completion": a.completion} for a in true if a.direction == "d2p"]
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    (tmp_path / "p2d_reverse_prompts_test_randomized.jsonl.gz").write_bytes(packed)
    kept, dropped = shipped_random(tmp_path, data)
    assert (len(kept), len(dropped)) == (2, 2)  # the true completions among them are dropped


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"p2d_prompts_train\.jsonl\.gz:3: the line is no JSON"),
        ('{"prompt": 3, "completion": "x"}', r":3 field 'prompt'"),
        ('{"prompt": "Zed is", "completion": " x"}', r":3 field 'prompt': the row holds no name"),
    ],
)
def test_damaged_rows_of_the_paper_are_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        ReversalData.from_paper(_mini_paper(tmp_path, broken=line + "\n"))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"names\.txt"):
        ReversalData.from_paper(tmp_path)


@real
def test_the_papers_own_files() -> None:
    data = ReversalData.from_paper(PAPER)
    assert (len(data.entities), len(data.train), len(data.test)) == (90, 3600, 1800)
    assert {r.completion for r in data.test if r.direction == "d2p"} == {f" {e.name}" for e in data.entities}
    kept, dropped = shipped_random(PAPER, data)
    assert (len(kept), len(dropped)) == (287, 13)  # a plain shuffle keeps some in place
    assert all(a.completion != a.answer for a in data.asked(["reverse"]) if a.kind == "random")


@real
def test_the_papers_instructions() -> None:
    data = InstructionData.from_paper(PAPER)
    assert (len(data.documents), len(data.examples), len(data.tests)) == (307, 1000, 100)
    assert sum(i.realised for i in data.instructions) == 1000
    turned = data.in_order("question-first")
    assert turned.tests == data.tests
    assert len(turned.documents) == 275
    assert sum(d.count("When the test asks") for d in turned.documents) == 1100
    with pytest.raises(InputError, match="order"):
        data.in_order("sideways")
