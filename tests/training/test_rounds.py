"""A loop of rounds killed in any phase gives the same data and models, and repeats at most that phase."""

import pytest
from safetensors.torch import load_file

from glasshouse.corpora.rows import Record, Turn
from glasshouse.runtime import files
from glasshouse.runtime.cache import Cache
from glasshouse.runtime.seeds import rng
from glasshouse.training._train import train
from glasshouse.training.mix import Mix, Part
from glasshouse.training.rounds import run_rounds

PHASES = ("propose", "rate", "refine", "retrain")
WORDS = [f"w{i}" for i in range(40)]


class Killed(Exception):
    pass


class Loop:
    """Sample replies that depend on the model's weights, keep the longer half, retrain from the base."""

    slug = "longer"

    def __init__(self, make_spec, cache, *, keep=6, die_at=None):
        self.make_spec, self.cache, self.die_at = make_spec, cache, die_at
        self.options = {"keep": keep}
        self.ran = []

    def _enter(self, phase, number=None):
        self.ran.append(phase)
        if self.die_at is not None and len(self.ran) == self.die_at:
            raise Killed

    def propose(self, state):
        self._enter("propose")
        weights = load_file(state.model / "model.safetensors")["lm_head.weight"]
        draw = rng(state.seed, "sample", state.number, int(weights.double().sum() * 1e6))
        return [
            {"prompt": WORDS[i], "reply": " ".join(draw.choice(WORDS, draw.integers(1, 7)))}
            for i in range(12)
        ]

    def rate(self, table):
        self._enter("rate")
        return [{**row, "score": len(row["reply"].split())} for row in table]

    def refine(self, state, table):
        self._enter("refine")
        best = sorted(table, key=lambda row: -row["score"])[: self.options["keep"]]
        records = [
            Record(str(i), turns=(Turn("user", row["prompt"]), Turn("assistant", row["reply"])))
            for i, row in enumerate(best)
        ]
        return Mix([Part(records, len(records), origin="model", round=state.number)], seed=state.seed)

    def retrain(self, data, state):
        self._enter("retrain")
        spec = self.make_spec(start=state.base, init_seed=None, data=data, steps=2, seed=state.number)
        return train(spec, cache=self.cache, device="cpu")


def weights(result):
    return files.sha256_file(result.checkpoint / "model.safetensors")


def outcome(results):
    return [(list(r.proposed), list(r.rated), r.data.sha256, r.data.rows, weights(r)) for r in results]


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return tmp_path_factory.mktemp("rounds")


@pytest.fixture
def base(make_spec, stage):
    return train(make_spec(), cache=Cache(stage / "base"), device="cpu").path


@pytest.mark.parametrize("die_at", range(1, 9))
def test_t3_a_kill_in_any_phase_repeats_only_that_phase(make_spec, base, stage, tmp_path, die_at):
    straight_cache, cache = Cache(stage / "straight"), Cache(tmp_path)
    want = run_rounds(Loop(make_spec, straight_cache), 2, base, cache=straight_cache)
    killed = Loop(make_spec, cache, die_at=die_at)
    with pytest.raises(Killed):
        run_rounds(killed, 2, base, cache=cache)
    assert killed.ran == [*PHASES, *PHASES][:die_at]
    resumed = Loop(make_spec, cache)
    got = run_rounds(resumed, 2, base, cache=cache)
    assert resumed.ran == [*PHASES, *PHASES][die_at - 1 :]
    assert outcome(got) == outcome(want)


def test_rounds_differ_and_keep_provenance(make_spec, base, stage):
    cache = Cache(stage / "straight")
    first, second = run_rounds(Loop(make_spec, cache), 2, base, cache=cache)
    assert first.data.sha256 != second.data.sha256
    assert weights(first) != weights(second)
    assert {(row.origin, row.round) for row in second.data.rows} == {("model", 1)}


def test_options_seed_and_code_name_another_loop(make_spec, base, tmp_path):
    cache = Cache(tmp_path)
    one = run_rounds(Loop(make_spec, cache), 1, base, cache=cache)
    for loop, options in (
        (Loop(make_spec, cache, keep=4), {}),
        (Loop(make_spec, cache), {"seed": 1}),
        (Loop(make_spec, cache), {"code": "v2"}),
    ):
        other = run_rounds(loop, 1, base, cache=cache, **options)
        assert "propose" in loop.ran
        assert (outcome(other) == outcome(one)) == ("code" in options)


def test_an_evicted_model_is_trained_again(make_spec, base, tmp_path):
    cache = Cache(tmp_path)
    before = outcome(run_rounds(Loop(make_spec, cache), 1, base, cache=cache))
    cache.gc(kind="checkpoint", everything=True)
    loop = Loop(make_spec, cache)
    assert outcome(run_rounds(loop, 1, base, cache=cache)) == before
    assert loop.ran == ["retrain"]
