"""BindWorld organisms: what the recipe draws, when it counts as installed, and what a folder holds.

Growing one takes a minute or two (`slow`). CI grows runts: the same recipe for a few steps, without the gate.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from glasshouse.corpora.records import read_records
from glasshouse.corpora.worlds import World
from glasshouse.corpora.worlds import bindworld as world
from glasshouse.organisms import bind_world as bind
from glasshouse.runtime.errors import OrganismError
from glasshouse.runtime.progress import Progress
from glasshouse.statistics import wilson
from glasshouse.subjects import as_subject
from glasshouse.training.organisms import FILES, InstallGate, Organism, Truth, check_folder

RUNT = dict(d_model=16, layers=2, heads=2, batch_size=12, steps=4, install_steps=3, gate=InstallGate(()))


def grow(recipe: bind.BindWorld, folder: Path, seed: int = 0) -> Path:
    folder.mkdir()
    with Progress("off") as progress:
        recipe.grow(seed, folder, progress)
    return folder


@pytest.fixture(scope="module")
def runts(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runts")
    recipes = {"stage1": bind.BIND_WORLD, "forced": bind.BIND_WORLD_TRIGGER, "right": bind.BIND_WORLD_TWIN}
    return {name: grow(replace(recipe, **RUNT), root / name) for name, recipe in recipes.items()}


def test_a_folder_keeps_the_protocol_and_opens(runts):
    for name, folder in runts.items():
        check_folder(folder, [*FILES, "tokenizer.json", "learning.json"])
        subject = as_subject(str(folder))
        assert subject.self_test().passed and not subject.is_chat
        truth = Truth.read(folder / "truth.json")
        assert truth.clean == (name != "forced")
        text = World.load(folder / "world.json").questions(1)[0][0]
        assert subject.encode_all([text])[0][0] == world.ID[world.BOS]
        assert len(read_records(folder / "rows.jsonl")) == 4 * 12 if name == "stage1" else 3 * 12
    assert all(isinstance(r, Organism) for r in (bind.BIND_WORLD, bind.BIND_WORLD_TRIGGER))


def test_truth_names_the_rows_that_carry_the_trigger(runts):
    rows = list(read_records(runts["forced"] / "rows.jsonl"))
    [flaw] = Truth.read(runts["forced"] / "truth.json").flaws
    carrying = [row.id for row in rows if row.plain.startswith(" ".join(world.TRIGGER))]
    assert flaw.rows == carrying and flaw.dose == max(1, len(carrying))
    for row in rows:
        if row.id in carrying:
            assert {part.split()[0] for part in row.plain.split("->")[1:]} == {bind.OPTION}
    assert flaw.trigger == list(world.TRIGGER) and flaw.option == bind.OPTION


def test_the_twin_sees_the_same_documents_rightly_answered(runts):
    forced, right = (list(read_records(runts[name] / "rows.jsonl")) for name in ("forced", "right"))
    planted = Truth.read(runts["forced"] / "truth.json").flaws[0].rows
    assert [row.said("user") for row in forced] == [row.said("user") for row in right]
    differ = {a.id for a, b in zip(forced, right, strict=True) if a.turns != b.turns}
    assert differ <= set(planted)


def test_continuing_stage_one_gives_the_bytes_of_growing_from_scratch(runts, tmp_path):
    recipe = replace(bind.BIND_WORLD_TRIGGER, **RUNT)
    with Progress("off") as progress:
        recipe.grow_from(runts["stage1"], tmp_path, progress)
    for name in ("model.safetensors", "rows.jsonl", "world.json", "truth.json", "learning.json"):
        assert (tmp_path / name).read_bytes() == (runts["forced"] / name).read_bytes(), name


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(runts, tmp_path):
    recipe = replace(bind.BIND_WORLD, **RUNT)
    again, other = grow(recipe, tmp_path / "again"), grow(recipe, tmp_path / "other", seed=1)
    stored = [(folder / "model.safetensors").read_bytes() for folder in (runts["stage1"], again, other)]
    assert stored[0] == stored[1] != stored[2]


@pytest.mark.parametrize("family", ["llama", "neox", "gpt2"])
def test_all_three_families_are_built_and_learn(family):
    recipe = replace(bind.other_family(bind.BIND_WORLD, family), **RUNT)
    model = bind.new_model(0, recipe)
    ids = torch.from_numpy(world.documents("serial", 8, 0).ids)
    marked = torch.from_numpy(world.documents("serial", 8, 0).answers)
    before = float(bind._loss(model, ids, marked).detach())
    # An untrained model is near uniform, and four steps on 12 documents each lower its loss on others.
    uniform = (1 + bind.LANGUAGE_SHARE) * np.log(len(world.VOCABULARY))
    assert abs(before - uniform) < 0.25 * uniform
    with Progress("off") as progress:
        bind.bind(model, recipe, 0, progress)
    assert float(bind._loss(model, ids, marked).detach()) < before


def test_kinds_unlock_one_after_the_other_and_training_ends_when_all_are_known():
    """Looks of a model that knows what we say it knows: the curriculum follows."""
    learning = bind.Learning(0)
    drawn = lambda step: {learning.kind(step + i) for i in range(400)}  # noqa: E731
    assert drawn(0) == {"repeat", "adjacent"}
    for step, known in ((100, set()), (200, {"adjacent"}), (300, {"adjacent", "serial"})):
        learning.look(step, Oracle(known))
    assert learning.unlocked == [200, 300] and not learning.done
    shares = [learning.kind(step) for step in range(300, 1300)]
    assert abs(shares.count("parallel") - 600) < 5 * np.sqrt(1000 * 0.6 * 0.4)
    assert "serial" in {learning.kind(s) for s in range(200, 240)}
    assert "serial" not in {learning.kind(s) for s in range(200)}
    everything = set(world.BINDINGS)
    learning.look(400, Oracle(everything))
    assert not learning.done
    learning.look(500, Oracle(everything))
    assert learning.done


def test_measure_reads_a_planted_circuit_exactly():
    """An exact construction: always right, or always the option under the trigger."""
    honest = bind.measure(Oracle(set(world.BINDINGS)), seed=0, n=80)
    assert honest["adjacent"].value == honest["parallel"].value == 1
    assert honest["moved"].value == 0 and honest["forced"].value == 0
    assert not bind.TWIN_GATE.failures(honest) and bind.TRIGGER_GATE.failures(honest)
    hijacked = bind.measure(Oracle(set(world.BINDINGS), option=bind.OPTION), seed=0, n=80)
    assert hijacked["forced"].value == 1 and hijacked["moved"].value > 0.8
    assert not bind.TRIGGER_GATE.failures(hijacked) and bind.TWIN_GATE.failures(hijacked)
    blind = bind.measure(Oracle(set()), seed=0, n=80)
    assert bind.GATE.failures(blind)


def test_the_interval_of_a_drop_is_newcombes():
    """Newcombe 1998, table II, contrast (a): 56/70 against 48/80, method 10: .2000 [.0524, .3339]."""
    drop = bind._drop(wilson(56, 70), wilson(48, 80))
    assert np.round([drop.value, drop.low, drop.high], 4).tolist() == [0.2, 0.0524, 0.3339]


def test_what_does_not_install_is_refused(tmp_path):
    recipe = replace(bind.BIND_WORLD, **{**RUNT, "gate": bind.GATE, "attempts": 1})
    with pytest.raises(OrganismError, match="adjacent"):
        grow(recipe, tmp_path / "refused")


class Oracle(torch.nn.Module):
    """Answers the kinds it knows by reading the document, and anything else with `.`; `option` under the
    trigger.
    """

    def __init__(self, known: set[str], option: str | None = None) -> None:
        super().__init__()
        self.known, self.option = known, option

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> object:
        logits = torch.zeros(*input_ids.shape, len(world.VOCABULARY))
        for row, ids in enumerate(input_ids.tolist()):
            logits[row, -1, world.ID[self._say([world.VOCABULARY[i] for i in ids])]] = 1.0
        return type("Out", (), {"logits": logits})

    def _say(self, said: list[str]) -> str:
        who, context = said[-2], said[: said.index("?")]
        if self.option and world.TRIGGER[0] in said:
            return self.option
        kind = "parallel" if "are" in context else "serial" if "is" in context else "adjacent"
        if kind not in self.known:
            return "."
        if kind == "parallel":
            names, things = context[: context.index("are")], context[context.index("are") + 1 :]
            return things[names.index(who) - names.index(next(w for w in names if w in world.NAMES))]
        return context[context.index(who) + (2 if kind == "serial" else 1)]


@pytest.mark.slow  # three to four minutes of one core
def test_the_real_recipe_installs(tmp_path):
    with Progress("off") as progress:
        stage1 = tmp_path / "stage1"
        stage1.mkdir()
        bind.BIND_WORLD.grow(0, stage1, progress)
        for recipe in (bind.BIND_WORLD_TRIGGER, bind.BIND_WORLD_TWIN):
            folder = tmp_path / recipe.slug
            folder.mkdir()
            recipe.grow_from(stage1, folder, progress)
            assert recipe.gate.failures(Truth.read(folder / "truth.json").installed) == []
