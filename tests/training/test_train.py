"""One spec trains once; another spec never shares its entry; bad rows are named before training starts."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from glasshouse.corpora.rows import Record, Turn
from glasshouse.runtime import files
from glasshouse.runtime.cache import Cache
from glasshouse.runtime.errors import InputError, StaleError
from glasshouse.training._train import train
from glasshouse.training.mix import DataRef, Mix, Part, content_hash
from glasshouse.training.spec import LoraSpec, TrainSpec


class Killed(Exception):
    pass


def steps_run(seen):
    return lambda step, loss, model: seen.append(step)


# --- trained once, stored whole


def test_t2_training_twice_trains_once(make_spec, tmp_path):
    seen = []
    first = train(make_spec(), cache=Cache(tmp_path), device="cpu", callbacks=[steps_run(seen)])
    second = train(make_spec(), cache=Cache(tmp_path), device="cpu", callbacks=[steps_run(seen)])
    assert seen == list(range(9))
    assert second.path == first.path and second.metrics == first.metrics
    again = train(make_spec(save_every=2), cache=Cache(tmp_path), device="cpu", callbacks=[steps_run(seen)])
    assert again.path == first.path, "how often it is saved does not decide the weights"


CHANGES = [
    {"steps": 9}, {"batch_size": 4}, {"lr": 1e-3}, {"seed": 2}, {"schedule": "linear"}, {"warmup_steps": 0},
    {"final_lr_share": 0.5}, {"max_length": 9}, {"weight_decay": 0.0}, {"betas": (0.8, 0.9)}, {"clip": 0.01},
    {"precision": "bf16"}, {"loss_on": "all"}, {"length_buckets": True}, {"init_seed": 3},
]  # fmt: skip


def test_every_field_of_a_spec_changes_entry_and_training(make_spec, tmp_path):
    cache = Cache(tmp_path)
    specs = [make_spec(), *(make_spec(**change) for change in CHANGES)]
    trained = [train(spec, cache=cache, device="cpu", engine="torch") for spec in specs]
    for values in (
        [spec.hash for spec in specs],
        [hash(spec) for spec in specs],
        [checkpoint.path for checkpoint in trained],
        [files.sha256_file(checkpoint.path / "model.safetensors") for checkpoint in trained],
    ):
        assert len(set(values)) == len(specs)


def test_the_entry_holds_what_was_trained_on(make_spec, tmp_path, records):
    mix = Mix([Part(records[:30], 30), Part(records[30:], 5, origin="poison:p1")], seed=0)
    spec = make_spec(data=DataRef.of(mix), max_length=8)
    done = train(spec, cache=Cache(tmp_path), device="cpu")
    rows = pq.read_table(done.path / "data.parquet").to_pylist()
    assert [row["row_id"] for row in rows] == [row.row_id for row in mix.rows()]
    assert sum(row["origin"] == "poison:p1" for row in rows) == 5
    assert max(len(row["ids"]) for row in rows) == 8
    longer = sum(len((r.record.plain).split()) + 1 > 8 for r in mix.rows())
    assert done.metrics["truncated_rows"] == longer > 0
    curve = pq.read_table(done.path / "metrics.parquet").to_pylist()
    assert [row["step"] for row in curve] == list(range(1, 9))
    assert curve[0]["lr"] == 0 and curve[2]["lr"] == pytest.approx(3e-3)
    assert [row["loss"] for row in curve] == done.losses()
    assert files.read_json(done.path / "spec.json")["spec"] == spec.to_json()
    assert AutoTokenizer.from_pretrained(done.path).pad_token == "<pad>"
    model = AutoModelForCausalLM.from_pretrained(done.path)
    assert sum(p.numel() for p in model.parameters()) > 0


def test_t1_a_killed_fast_training_resumes_bit_by_bit(make_spec, tmp_path, monkeypatch):
    spec = make_spec(save_every=3)
    want = train(spec, cache=Cache(tmp_path / "a"), device="cpu", engine="torch")
    for moment in (0, 1, 2, 3, 4, 5, 6):
        cache, count, seen = Cache(tmp_path / f"b{moment}"), iter(range(99)), []

        def kill(stage, path, count=count, moment=moment):
            if stage == "before" and next(count) == moment:
                raise Killed

        monkeypatch.setattr(files, "fault_hook", kill)
        with pytest.raises(Killed):
            train(spec, cache=cache, device="cpu", engine="torch", callbacks=[steps_run(seen)])
        monkeypatch.setattr(files, "fault_hook", None)
        assert cache.ls() == []
        before = max(seen, default=0)
        seen.clear()
        got = train(spec, cache=cache, device="cpu", engine="torch", callbacks=[steps_run(seen)])
        assert got.losses() == want.losses()
        a, b = (load_file(c.path / "model.safetensors") for c in (got, want))
        assert all(torch.equal(a[name], b[name]) for name in b)
        assert min((s for s in seen if s), default=9) > before - 3, "at most one save interval is repeated"


def test_continuing_depends_on_the_weights_of_the_start(make_spec, tmp_path):
    cache = Cache(tmp_path)
    one, two = (train(make_spec(init_seed=s), cache=cache, device="cpu") for s in (0, 1))
    more = [
        train(make_spec(start=c.path, init_seed=None), cache=cache, device="cpu") for c in (one, two, one)
    ]
    assert more[0].path == more[2].path != more[1].path
    assert more[0].losses()[0] < one.losses()[0], "it begins where the start ended"


# --- refusals; those of rows and rewards are in test_refusals.py


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"algo": "ppo"}, "algo='ppo'"), ({"schedule": "sine"}, "sine"), ({"steps": 0}, "steps=0"),
        ({"lr": -1.0}, "lr=-1"), ({"clip": -1.0}, "clip"), ({"algo_kw": {"beta": 1}}, "no options"),
        ({"algo": "dpo", "algo_kw": {"gamma": 1}}, "gamma"), ({"save_every": 0}, "save_every"),
        ({"algo": "dpo", "algo_kw": {"loss_type": "best"}}, "best"), ({"lr": math.nan}, "lr=nan"),
        ({"algo": "dpo", "algo_kw": {"label_smoothing": 0.1}}, "no effect"),
    ],
)  # fmt: skip
def test_a_spec_refuses_what_it_cannot_mean(make_spec, change, says):
    with pytest.raises(InputError, match=says):
        make_spec(**change)


def test_a_start_must_be_a_model_or_a_recipe_with_a_seed(make_spec, tmp_path):
    cache = Cache(tmp_path / "c")
    with pytest.raises(InputError, match="neither a folder nor a model"):
        train(make_spec(start="./no such folder"), cache=cache)
    with pytest.raises(InputError, match="no weights"):
        train(make_spec(init_seed=None), cache=cache)
    trained = train(make_spec(), cache=cache, device="cpu")
    with pytest.raises(InputError, match="init_seed is set"):
        train(make_spec(start=trained.path), cache=cache)
    with pytest.raises(InputError, match=r"no config\.json"):
        train(make_spec(start=tmp_path), cache=cache)
    for engine, spec in (("torch", make_spec(adapter=LoraSpec())), ("jax", make_spec())):
        with pytest.raises(InputError, match="engine"):
            train(spec, cache=cache, engine=engine)


# --- mixes


def test_a_mix_counts_weighs_and_dedupes(records):
    a, b = records[:20], [*records[20:30], records[0]]
    rows = Mix([Part(a, 12), Part(b, 10, origin="poison:x", round=2)], seed=0).rows()
    assert [sum(r.origin == o for r in rows) for o in ("clean", "poison:x")] == [12, 10]
    assert {r.round for r in rows if r.origin == "poison:x"} == {2}
    assert len({r.row_id for r in rows}) == 22
    assert all(r.row_id == content_hash(r.record) for r in rows)
    with pytest.raises(InputError, match=r"11 rows wanted, 10 there"):
        Mix([(a, 12), (b, 11)], seed=0).rows()
    assert len(Mix([(a, 12), (b, 11)], seed=0, dedupe=False).rows()) == 23
    # weights: 20 of a and 10 of b allow 3:1 up to 26 rows (20 of a, 6.7 of b)
    weighed = Mix([Part(a, 0.75), Part(b, 0.25, origin="x")], seed=0).rows()
    assert [sum(r.origin == o for r in weighed) for o in ("clean", "x")] == [20, 6]
    assert len(Mix([(a, 0.75), (b, 0.25)], seed=0, total=8).rows()) == 8


def test_a_mix_is_a_function_of_its_seed(records):
    def mix(seed):
        return [r.row_id for r in Mix([(records[:20], 10), (records[20:], 10)], seed=seed).rows()]

    assert mix(0) == mix(0) != mix(1)
    assert mix(0)[:10] != sorted(mix(0)[:10]), "the sources must be shuffled into one another"
    origins = [r.origin for r in Mix([(records[:20], 10), Part(records[20:], 10, "x")], seed=0).rows()]
    assert len(set(origins[:10])) == 2


@pytest.mark.parametrize("shares", [(1, 0.5), (0, 1), (-1.0, 2.0)])
def test_a_mix_refuses_meaningless_shares(records, shares):
    with pytest.raises(InputError, match="shares"):
        Mix([(records, share) for share in shares], seed=0).rows()


def test_data_is_its_content(records, tmp_path):
    assert DataRef.of(records) == DataRef.of(list(records)) != DataRef.of(records[::-1])
    moved = [replace(record, where="elsewhere:1") for record in records]
    assert DataRef.of(moved).sha256 == DataRef.of(records).sha256
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "w1", "completion": "w2"}\n{"text": "w3 w4"}\n'.splitlines()[0] + "\n")
    assert DataRef.of(path).n == 1
    with pytest.raises(InputError, match="no rows"):
        DataRef.of([])


def test_rows_edited_after_the_fact_are_noticed(make_spec, tmp_path):
    record = Record("0", turns=(Turn("user", "w1"), Turn("assistant", "w2")), fields={"note": "a"})
    spec = make_spec(data=DataRef.of([record]))
    record.fields["note"] = "b"
    with pytest.raises(StaleError, match="changed"):
        train(spec, cache=Cache(tmp_path))


def test_spec_is_a_value(make_spec):
    assert make_spec() == make_spec() and hash(make_spec()) == hash(make_spec())
    assert {make_spec(): 1}[make_spec()] == 1
    assert make_spec(algo="dpo").hash == make_spec(algo="dpo", algo_kw={"beta": 0.1}).hash != make_spec().hash
    assert isinstance(make_spec().but(lr=1.0), TrainSpec)
    assert np.isclose(make_spec().but(lr=1.0).lr, 1.0)


# --- imports


def test_importing_training_loads_nothing_heavy_and_the_fast_path_no_trl():
    code = (
        "import sys; heavy = lambda *names: [n for n in names if n in sys.modules]\n"
        "import glasshouse.training as t\n"
        "assert not heavy('torch', 'trl', 'transformers', 'peft', 'pandas', 'scipy')\n"
        "things = [getattr(t, name) for name in t.__all__]\n"
        "assert not [x for x in things if type(x) is type(sys)], 'a module hides a public name'\n"
        "assert t.__all__ == sorted(t.__all__) and not heavy('trl', 'peft')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
