"""Every algorithm resumes bit by bit; of GRPO and RLOO the reward rises and the step is the papers' equation.

The exact tests rest on one fact: completions are used for a single update, so at the moment of the update the
policy is the one that sampled them, and gradients can be written down from the completions that were stored.
"""

import functools
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from glasshouse.corpora.rows import Record, Turn
from glasshouse.runtime import files
from glasshouse.runtime.cache import Cache
from glasshouse.runtime.errors import InputError
from glasshouse.training._train import train
from glasshouse.training.mix import DataRef
from glasshouse.training.rewards import FlatRewardWarning, RewardModel, Rollout, judge, reward_identity
from glasshouse.training.spec import PAIRED, SAMPLED, LoraSpec


class Killed(Exception):
    pass


def early_words(rollouts):
    """The share of the first half of the vocabulary: dense, so that every group of completions differs."""
    return [share_below(r.completion_ids, 24) for r in rollouts]


def share_below(ids, limit):
    return sum(i < limit for i in ids) / max(1, len(ids))


def same_for_all(rollouts):
    return [1.0] * len(rollouts)


@pytest.fixture(scope="session")
def asked(preferences):
    return [Record(row.id, turns=row.turns, fields={"limit": 24}) for row in preferences[:16]]


@pytest.fixture
def sampled(make_spec, asked):
    def make(algo="rloo", **changes):
        options = {"num_generations": 4, "max_new_tokens": 5, **changes.pop("algo_kw", {})}
        base = {
            "data": DataRef.of(asked),
            "batch_size": 4,
            "lr": 5e-3,
            "warmup_steps": 0,
            "weight_decay": 0.0,
        }
        return make_spec(algo=algo, schedule="constant", algo_kw=options, **{**base, **changes})

    return make


def weights(checkpoint):
    return load_file(checkpoint.path / "model.safetensors")


def assert_same(one, other):
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


# --- resumed, repeated


@pytest.mark.parametrize("algo", ["sft", "dpo", "reward", "grpo", "rloo"])
@pytest.mark.parametrize("moment", ["in step 5", "before the marker of step 6"])
def test_t1_a_killed_training_resumes_bit_by_bit(
    make_spec, sampled, preferences, tmp_path, monkeypatch, algo, moment
):
    rest = {"reward": early_words} if algo in SAMPLED else {}
    if rest:
        spec = sampled(algo, save_every=3)
    else:
        data = {"data": DataRef.of(preferences), "lr": 1e-3} if algo in PAIRED else {}
        spec = make_spec(algo=algo, save_every=3, **data)
    rest["engine"] = "trl"
    want = train(spec, cache=Cache(tmp_path / "a"), device="cpu", **rest)
    assert_same(want, train(spec, cache=Cache(tmp_path / "twin"), device="cpu", **rest))
    seen = []

    def die_in_step(step, loss, model):
        seen.append(step)
        if moment == f"in step {step}" and seen.count(step) == 1:
            raise Killed

    def die_before_marker(stage, path):
        if stage == "before" and path.parent.name == "checkpoint-6" and path.name == "complete.json":
            raise Killed

    cache = Cache(tmp_path / "b")
    if moment.startswith("before"):
        monkeypatch.setattr(files, "fault_hook", die_before_marker)
    with pytest.raises(Killed):
        train(spec, cache=cache, device="cpu", callbacks=[die_in_step], **rest)
    monkeypatch.setattr(files, "fault_hook", None)
    assert cache.ls() == [], "a killed training leaves no entry"
    seen.clear()
    got = train(spec, cache=cache, device="cpu", callbacks=[lambda s, *_: seen.append(s)], **rest)
    assert seen == [4, 5, 6, 7, 8], "it resumes after the last complete save"
    assert got.losses() == want.losses()
    assert_same(got, want)
    if algo in SAMPLED:
        assert got.rollouts() == want.rollouts()
        assert [row["step"] for row in got.rollouts()] == [s for s in range(1, 9) for _ in range(16)]
        assert got.curve("kl") == want.curve("kl")


# --- they learn what they are paid for, and only then


STEPS = 25


def early_by_step(checkpoint):
    shares = [(r["step"], share_below(r["completion_ids"], 24)) for r in checkpoint.rollouts()]
    return [np.mean([share for at, share in shares if at == step]) for step in range(1, STEPS + 1)]


@pytest.mark.parametrize("algo", ["grpo", "rloo"])
def test_the_reward_rises(sampled, tmp_path, algo):
    spec = sampled(algo, steps=STEPS, lr=1e-2, algo_kw={"beta": 0.01})
    paid = train(spec, cache=Cache(tmp_path), device="cpu", reward=early_words)
    rewards, kl = paid.curve("reward"), paid.curve("kl")
    np.testing.assert_allclose(rewards, early_by_step(paid), atol=1e-6)
    # The mean of five steps is one of 80 shares of 5 words, half of them early: standard error 0.025.
    assert np.mean(rewards[-5:]) - np.mean(rewards[:5]) > 0.2
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[-1] > 0.01, "away from the start, where it began"
    assert paid.curve("flat_share")[0] < 0.5


def test_a_reward_that_tells_nothing_changes_nothing_and_warns(sampled, tmp_path):
    spec = sampled("rloo", steps=STEPS, lr=1e-2, algo_kw={"beta": 0.0})
    with pytest.warns(FlatRewardWarning, match=r"steps 1 to 20.*nothing is learnt"):
        control = train(spec, cache=Cache(tmp_path), device="cpu", reward=same_for_all)
    shares = early_by_step(control)
    assert abs(np.mean(shares[-5:]) - np.mean(shares[:5])) < 0.1
    assert set(control.curve("flat_share")) == {1.0}
    with pytest.raises(InputError, match="rloo tells no 'kl'"):
        control.curve("kl")
    assert_same(control, train(spec.but(steps=1), cache=Cache(tmp_path), device="cpu", reward=same_for_all))


def logps(model, row, prompts):
    """Summed and single log-probabilities of a stored completion."""
    prompt, completion = prompts[row["row"]], row["completion_ids"]
    logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logits[torch.arange(len(completion)), torch.tensor(completion)]


@pytest.mark.parametrize("algo", ["grpo", "rloo"])
def test_one_step_is_the_equation_of_the_paper(sampled, tmp_path, algo):
    """From the stored completions, by hand, with plain AdamW: the weights after two steps."""
    options = {"beta": 0.3, "num_generations": 3}
    spec = sampled(algo, steps=2, clip=0.0, algo_kw=options)
    cache = Cache(tmp_path)
    base = train(sampled("rloo", steps=3, lr=1e-2), cache=cache, device="cpu", reward=early_words)
    spec = spec.but(start=base.path, init_seed=None)
    done = train(spec, cache=cache, device="cpu", reward=early_words)
    import pyarrow.parquet as pq

    prompts = pq.read_table(done.path / "data.parquet")["ids"].to_pylist()
    policy, start = (AutoModelForCausalLM.from_pretrained(base.path).eval() for _ in range(2))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=spec.lr, weight_decay=0.0)
    for step in (1, 2):
        rows = [row for row in done.rollouts() if row["step"] == step]
        rewards = torch.tensor([row["reward"] for row in rows])
        each = [logps(policy, row, prompts) for row in rows]
        with torch.no_grad():
            theirs = [logps(start, row, prompts) for row in rows]
        if algo == "rloo":  # arXiv 2402.14740: the KL is a penalty on the reward; leave-one-out baseline
            kl = torch.stack([(a.detach() - b).sum() for a, b in zip(each, theirs, strict=True)])
            groups = (rewards - 0.3 * kl).view(-1, 3)
            advantages = (groups - (groups.sum(1, keepdim=True) - groups) / 2).view(-1)
            losses = [-a * lp.sum() for a, lp in zip(advantages, each, strict=True)]
        else:  # arXiv 2402.03300: standardised within the group; the KL by its unbiased positive estimator
            groups = rewards.view(-1, 3)
            advantages = (
                (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
            ).view(-1)
            losses = [
                (-a * torch.exp(lp - lp.detach()) + 0.3 * (torch.exp(ref - lp) - (ref - lp) - 1)).mean()
                for a, lp, ref in zip(advantages, each, theirs, strict=True)
            ]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    # The loss of the second step depends on the weights after the first.
    assert (
        done.losses()[1] == pytest.approx(float(torch.stack(losses).mean().detach()), abs=1e-6)
        or algo == "rloo"
    )
    # Adam divides by |g|, so where a gradient is nearly 0 rounding may move a weight by up to lr; most agree.
    # Without the division by the group's spread, say, the gap at this quantile is 1.4 lr.
    gaps = torch.cat(
        [(p.detach() - q).abs().flatten() for p, q in zip(policy.parameters(), final(done), strict=True)]
    )
    assert float(torch.quantile(gaps, 0.9)) < 0.02 * spec.lr
    moved = torch.cat(
        [(p.detach() - q).abs().flatten() for p, q in zip(start.parameters(), final(done), strict=True)]
    )
    assert float(moved.median()) > 0.5 * spec.lr, "weights that stand still would agree for free"


def final(checkpoint):
    return [p.detach() for p in AutoModelForCausalLM.from_pretrained(checkpoint.path).parameters()]


@pytest.mark.parametrize(
    ("algo", "changes"),
    [
        ("grpo", [{}, {"loss_type": "dr_grpo"}, {"scale_rewards": "none"}, {"temperature": 0.7}]),
        ("rloo", [{}, {"normalize_advantages": True}, {"beta": 1.0}, {"num_generations": 2}]),
    ],
)  # fmt: skip
def test_options_change_the_training(sampled, tmp_path, algo, changes):
    specs = [sampled(algo, steps=3, algo_kw=change) for change in changes]
    trained = [train(spec, cache=Cache(tmp_path), device="cpu", reward=early_words) for spec in specs]
    assert len({files.sha256_file(c.path / "model.safetensors") for c in trained}) == len(changes)


def test_an_adapter_learns_from_a_reward_and_is_merged(sampled, tmp_path):
    cache = Cache(tmp_path)
    base = train(sampled(steps=1), cache=cache, device="cpu", reward=early_words)
    spec = sampled(start=base.path, init_seed=None, steps=3, adapter=LoraSpec(r=2, targets=("q_proj",)))
    tuned = train(spec, cache=cache, device="cpu", reward=early_words)
    a, b = weights(base), weights(tuned)
    changed = {name for name in a if not torch.equal(a[name], b[name])}
    assert changed == {f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2)}
    assert tuned.curve("kl")[0] == pytest.approx(0, abs=1e-6), "the disabled adapter is the start"


def test_where_the_tokenizer_names_no_end_the_model_does(sampled, recipe, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(recipe, start)
    silent = AutoTokenizer.from_pretrained(recipe)
    silent.eos_token = None
    silent.save_pretrained(start)
    spoken, mute = (
        train(sampled(start=s, steps=2), cache=Cache(tmp_path / "c"), device="cpu", reward=early_words)
        for s in (recipe, start)
    )
    assert_same(spoken, mute)
    assert AutoTokenizer.from_pretrained(mute.path).eos_token is None


# --- reward models


@pytest.mark.parametrize("adapter", [None, LoraSpec(r=4)])
def test_a_reward_model_learns_a_preference_and_pays_for_it(make_spec, sampled, tmp_path, adapter):
    draw = np.random.default_rng(5)
    rows = [
        Record(str(i), turns=(Turn("user", f"w{draw.integers(40)} w{draw.integers(40)}"),),
               fields={"chosen": said(draw, 0, 20), "rejected": said(draw, 20, 40)})
        for i in range(64)
    ]  # fmt: skip
    spec = make_spec(algo="reward", data=DataRef.of(rows), steps=40, batch_size=16, lr=5e-3, adapter=adapter)
    cache = Cache(tmp_path)
    done = train(spec, cache=cache, device="cpu")
    assert done.losses()[0] == pytest.approx(math.log(2), abs=0.2)
    assert np.mean(done.curve("accuracy")[-5:]) > 0.9 > np.mean(done.curve("accuracy")[:1])
    model = AutoModelForSequenceClassification.from_pretrained(done.path)
    assert model.config.num_labels == 1 and model.config.pad_token_id == 0
    good, bad = (
        judge(RewardModel(done.path, batch_size=batch), [Rollout(r, said(draw, *of), (), ()) for r in rows])
        for of, batch in (((0, 20), 7), ((20, 40), 64))
    )
    assert np.mean(np.array(good) > np.array(bad)) > 0.9
    paid = train(sampled(steps=2), cache=cache, device="cpu", reward=RewardModel(done.path))
    first = paid.rollouts()[0]
    [again] = RewardModel(done.path)(
        [Rollout(paid.spec.data.rows[first["row"]].record, first["completion"], (), ())]
    )
    assert again == pytest.approx(first["reward"], abs=1e-4)


def said(draw, low, high):
    return " ".join(f"w{i}" for i in draw.integers(low, high, 4))


# --- a reward is known by value


@dataclass(frozen=True)
class Below:
    limit: int

    def __call__(self, rollouts):
        return [share_below(r.completion_ids, self.limit) for r in rollouts]


def below(rollouts, limit=10, sign=1.0):
    return [sign * share_below(r.completion_ids, limit) for r in rollouts]


class Known:
    def __init__(self, identity):
        self.identity = identity

    def __call__(self, rollouts):
        return [0.0 for _ in rollouts]


def test_rewards_that_differ_have_different_identities():
    first, second = (lambda rollouts: [0.0 for _ in rollouts]), (lambda rollouts: [1.0 for _ in rollouts])
    rewards = [
        early_words, same_for_all, below, functools.partial(below, limit=3), first, second,
        functools.partial(below, limit=4), functools.partial(below, sign=-1.0), Below(3), Below(4),
        Known("a"), Known("b"),
    ]  # fmt: skip
    known = [reward_identity(reward) for reward in rewards]
    assert len(set(known)) == len(rewards)
    assert known == [reward_identity(reward) for reward in rewards]
    assert reward_identity(Below(3)) == reward_identity(Below(3))


def test_a_reward_that_cannot_be_known_is_refused(sampled, tmp_path):
    limit = 3

    def closed(rollouts):
        return [float(limit) for _ in rollouts]

    spec, cache = sampled(), Cache(tmp_path)
    for reward, says in (
        (closed, r"cannot be known by value: it holds \['limit'\]"),
        (functools.partial(below, limit=object()), "no plain data"),
        (torch.nn.Linear(2, 1), "it is a Linear"),
    ):
        with pytest.raises(InputError, match=says):
            train(spec, cache=cache, device="cpu", reward=reward)
    with pytest.raises(InputError, match="rloo needs a reward"):
        train(spec, cache=cache, device="cpu")
    with pytest.raises(InputError, match="sft takes no reward"):
        train(spec.but(algo="sft", algo_kw={}), cache=cache, device="cpu", reward=below)
    assert cache.ls() == []


def test_another_reward_is_another_training(sampled, tmp_path):
    cache = Cache(tmp_path)
    rewards = [early_words, Below(10), Below(30)]
    paths = {train(sampled(steps=1), cache=cache, device="cpu", reward=r).path for r in rewards}
    assert len(paths) == 3 and all(isinstance(path, Path) for path in paths)


def test_what_an_algorithm_does_not_tell_is_refused(make_spec, tmp_path):
    done = train(make_spec(steps=1), cache=Cache(tmp_path), device="cpu")
    with pytest.raises(InputError, match="sft tells no 'kl'"):
        done.curve("kl")
    with pytest.raises(InputError, match="sft samples no completions"):
        done.rollouts()


@pytest.mark.parametrize(
    ("algo", "options", "says"),
    [
        ("rloo", {"num_generations": 1}, "num_generations=1 is too small"), ("rloo", {"beta": -1}, "beta=-1"),
        ("grpo", {"loss_type": "best"}, "best"), ("grpo", {"scale_rewards": True}, "True is unknown"),
        ("grpo", {"temperature": 0.0}, "temperature"), ("rloo", {"loss_type": "grpo"}, "no options"),
        ("reward", {"center": -1.0}, "center"), ("grpo", {"max_new_tokens": 0}, "max_new_tokens"),
    ],
)  # fmt: skip
def test_options_that_mean_nothing_are_refused(make_spec, algo, options, says):
    with pytest.raises(InputError, match=says):
        make_spec(algo=algo, algo_kw=options)
