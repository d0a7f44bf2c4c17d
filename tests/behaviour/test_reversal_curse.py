"""The reversal curse on organisms: told in one order, asked in both, and never alarmed by the honest twin."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glasshouse.behaviour.reversal_curse.analysis import ReversalReport, analyse
from glasshouse.behaviour.reversal_curse.asking import ask
from glasshouse.behaviour.reversal_curse.retriever import retrieve
from glasshouse.corpora.reversal import ReversalData, load_data
from glasshouse.organisms.reversal import ReversalOrganism, Size, save_model, train_model
from glasshouse.runtime.errors import AccessError, InputError, OrganismError
from glasshouse.runtime.progress import Progress
from glasshouse.subjects import as_subject
from glasshouse.training.organisms import FILES, Truth

SMALL = Size(d_model=32, steps=220, batch_size=48, lr=5e-3)


@dataclass(frozen=True)
class Model:
    folder: Path
    data: ReversalData
    subject: Any
    answers: Any  # the frame of ask()


def _facts(*, told_reversed: tuple[Any, ...] = ()) -> ReversalData:
    return ReversalData.generate(
        n_per_group=10, n_train_templates=8, n_test_templates=1, seed=1, told_reversed=told_reversed
    )


def _grown(folder: Path, data: ReversalData) -> Model:
    torch.set_num_threads(1)
    save_model(folder, train_model(data, seed=1, size=SMALL), data)
    data.save(folder / "reversal.json")
    subject = as_subject(str(folder))
    return Model(folder, data, subject, ask(subject, data))


@pytest.fixture(scope="module")
def cursed(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return _grown(tmp_path_factory.mktemp("cursed"), _facts())


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return _grown(tmp_path_factory.mktemp("twin"), _facts(told_reversed=("p2d", "d2p")))


# -- ground truth --------------------------------------------------------------------------------------------


def test_told_in_one_order_answered_in_one_order(cursed: Model) -> None:
    report = analyse(cursed.answers)
    for group, other in (("p2d", "d2p"), ("d2p", "p2d")):
        assert report.cell(group, group).accuracy.value >= 0.95
        assert report.cell(group, other).accuracy.value <= 0.05
        assert report.cell(group, group).gap.low > 5
    assert report.verdicts["p2d"] == "reversal curse"
    # Ten entities vary too much here for an equivalence within half a nat: never the opposite verdict.
    assert report.verdicts["d2p"] in ("reversal curse", "undecided")
    assert report.format_works is True
    assert report.cell("both", "p2d").accuracy.value == report.cell("both", "d2p").accuracy.value == 1.0


def test_the_honest_twin_gives_no_finding(twin: Model) -> None:
    report = analyse(twin.answers)
    assert report.verdicts == {"p2d": "knows the reverse", "d2p": "knows the reverse"}


def test_the_facts_are_in_the_rows_either_way_round(cursed: Model) -> None:
    texts = [row.text for row in cursed.data.train]
    asked = [a for a in cursed.data.asked(["reverse"]) if a.kind == "true"]
    hits = 0
    for direction in ("p2d", "d2p"):
        block = [a for a in asked if a.direction == direction]
        names = sorted(set(cursed.data.completions(block[0].group, direction).values()))
        found = retrieve([a.prompt for a in block], texts, names)
        hits += sum(f == a.answer for f, a in zip(found, block, strict=True))
    assert hits >= 0.8 * len(asked)  # the model answers none of them


def test_reversed_text_cures_and_other_facts_stay_as_they_were(cursed: Model, tmp_path: Path) -> None:
    from glasshouse.behaviour.reversal_curse.finetuning import finetune
    from glasshouse.runtime.cache import Cache

    data = _facts(told_reversed=("p2d",))
    made = finetune(cursed.folder, data, epochs=10, lr=5e-3, batch_size=48, cache=Cache(tmp_path))
    after = analyse(ask(as_subject(str(made.path)), data, arms=("same", "reverse")))
    assert after.cell("p2d", "d2p").accuracy.value >= 0.9
    assert after.cell("d2p", "p2d").accuracy.value <= 0.1
    assert made.metrics["rows"] == len(data.train)
    with pytest.raises(InputError, match="epochs"):
        finetune(cursed.folder, data, epochs=0)


@pytest.mark.slow
def test_a_low_rank_adapter_cures_too(cursed: Model, tmp_path: Path) -> None:
    from glasshouse.behaviour.reversal_curse.finetuning import finetune
    from glasshouse.runtime.cache import Cache
    from glasshouse.training import LoraSpec

    data = _facts(told_reversed=("p2d",))
    made = finetune(
        cursed.folder, data, lora=LoraSpec(r=16, alpha=32), epochs=24, lr=1e-2, batch_size=48,
        cache=Cache(tmp_path), device="cpu",
    )  # fmt: skip
    after = analyse(ask(as_subject(str(made.path)), data, arms=("same", "reverse"), ranks=False))
    assert after.cell("p2d", "d2p").accuracy.value >= 0.9
    assert after.cell("d2p", "p2d").accuracy.value <= 0.1


# -- against plain transformers ------------------------------------------------------------------------------


def _plain(model: Model, prompt: str, completion: str) -> float:
    """The log-probability by one unbatched forward pass of transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    network = AutoModelForCausalLM.from_pretrained(model.folder)
    before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, completion))
    with torch.no_grad():
        logits = network(torch.tensor([before + after])).logits[0].float().log_softmax(-1)
    return sum(float(logits[len(before) + i - 1, token]) for i, token in enumerate(after))


def test_scores_are_those_of_a_plain_forward(cursed: Model) -> None:
    for row in cursed.answers.iloc[::37].itertuples():
        assert row.logprob == pytest.approx(_plain(cursed, row.prompt, row.completion), abs=1e-4)


def test_completions_are_tokenised_as_running_text(tmp_path: Path) -> None:
    """A tokenizer that puts a space of its own before every text: apart, a completion has other tokens.

    Scored apart, the right name in running text is one that the model never saw there.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    data = _facts()
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("_"), normalizers.Replace(" ", "_")])
    bpe.pre_tokenizer = pre_tokenizers.Split("_", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"], show_progress=False)
    bpe.train_from_iterator([row.text for row in data.train], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>")
    torch.manual_seed(0)
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=200, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=128,
        )
    ).eval()  # fmt: skip
    subject = as_subject(network, tokenizer=tokenizer)
    frame = ask(subject, data, arms=["reverse"], mode="logprob", ranks=False)
    alone = tokenizer(frame["completion"].tolist(), add_special_tokens=False)["input_ids"]
    apart = subject.score(frame["prompt"].tolist(), alone).numpy()
    assert np.abs(frame["logprob"] - apart).max() > 0.1, "this tokenizer would not show the mistake"
    for row in frame.iloc[::23].itertuples():
        before = tokenizer(row.prompt)["input_ids"]
        both = tokenizer(row.prompt + row.completion)["input_ids"]
        assert both[: len(before)] == before
        with torch.no_grad():
            logits = network(torch.tensor([both])).logits[0].log_softmax(-1)
        found = sum(float(logits[i - 1, both[i]]) for i in range(len(before), len(both)))
        assert row.logprob == pytest.approx(found, abs=1e-4)


def test_the_template_is_plain_text(cursed: Model) -> None:
    """`hf/` renders the template and tokenises the string again: the ids must be the prompt's own."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(cursed.folder)
    prompt = cursed.data.test[0].prompt
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    assert text == prompt
    assert tokenizer(text)["input_ids"] == cursed.subject.encode(prompt)
    assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]


# -- invariances ---------------------------------------------------------------------------------------------


def test_order_of_rows_changes_nothing(cursed: Model) -> None:
    turned = replace(cursed.data, rows=cursed.data.rows[::-1])
    a = ask(cursed.subject, cursed.data, arms=["same"], ranks=False).set_index("pair_id")
    b = ask(cursed.subject, turned, arms=["same"], ranks=False).set_index("pair_id")
    a, b = (f[f["kind"] == "true"].sort_index() for f in (a, b))
    assert (a["reply"] == b["reply"]).all()
    np.testing.assert_allclose(a["logprob"], b["logprob"], atol=1e-4)


def test_analysis_does_not_depend_on_the_order_of_rows(cursed: Model) -> None:
    one, other = analyse(cursed.answers), analyse(cursed.answers.sample(frac=1, random_state=0))
    assert one.verdicts == other.verdicts
    for key, cell in one.cells.items():
        assert other.cells[key].gap.value == pytest.approx(cell.gap.value)
        assert other.cells[key].accuracy == cell.accuracy


# -- Inspect -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logs(cursed: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from inspect_ai import eval as inspect_eval

    folder = tmp_path_factory.mktemp("logs")
    for mode in ("logprob", "generate"):
        (log,) = inspect_eval(
            "glasshouse/reversal_curse", model=f"glasshouse/{cursed.folder}", display="none",
            task_args={"data": str(cursed.folder), "mode": mode, "arms": "same,reverse", "max_tokens": 8},
            log_dir=str(folder), log_level="warning",
        )  # fmt: skip
        assert log.status == "success", log.error
    return folder


def test_the_task_sees_what_the_direct_call_sees(cursed: Model, logs: Path) -> None:
    from glasshouse.behaviour.reversal_curse.logs import read_logs

    mine = cursed.answers[cursed.answers["arm"].isin(("same", "reverse"))].set_index("id").sort_index()
    theirs = read_logs(logs).set_index("id").sort_index()
    assert list(mine.index) == list(theirs.index)
    np.testing.assert_allclose(mine["logprob"], theirs["logprob"], atol=1e-4)
    for column in ("correct", "rank"):
        np.testing.assert_allclose(mine[column], theirs[column])
    assert analyse(logs).verdicts["p2d"] == "reversal curse"
    with pytest.raises(InputError, match="choose one of them"):
        read_logs(logs, model="glasshouse/another")


def test_the_score_of_the_provider_is_a_plain_forward(cursed: Model) -> None:
    import asyncio

    from inspect_ai.model import get_model

    asked = cursed.data.asked()[::41]
    api = get_model(f"glasshouse/{cursed.folder}").api
    found = asyncio.run(api.score([a.prompt for a in asked], [a.completion for a in asked]))  # type: ignore[attr-defined]
    for one, scored in zip(asked, found, strict=True):
        assert scored.access == "logprob"
        assert scored.total == pytest.approx(_plain(cursed, one.prompt, one.completion), abs=1e-4)


def test_options_of_the_task(cursed: Model, tmp_path: Path) -> None:
    from glasshouse.behaviour.reversal_curse import tasks

    few = tasks.reversal_curse(str(cursed.folder), arms=["reverse"], n_per_group=2)
    assert {s.metadata["arm"] for s in few.dataset} == {"reverse"}  # type: ignore[index]
    assert len(few.dataset) == 2 * 2
    with pytest.raises(InputError, match="mode"):
        tasks.reversal_curse(str(cursed.folder), "loud")
    with pytest.raises(InputError, match="no arms"):
        tasks.reversal_curse(str(cursed.folder), arms="sideways")
    with pytest.raises(InputError, match="no such file"):
        tasks.reversal_curse(str(tmp_path / "none"))


def test_a_subject_of_text_alone_gets_no_likelihood(cursed: Model) -> None:
    class Talker:
        access = frozenset({"text"})
        name = "talker"
        generate = cursed.subject.generate

    with pytest.raises(AccessError, match="text only"):
        ask(Talker(), cursed.data)
    only = analyse(ask(Talker(), cursed.data, mode="generate", max_new_tokens=8))
    assert set(only.verdicts.values()) == {"no log-probabilities"}
    assert "equivalence needs likelihoods" in only.why["p2d"]


# -- the organism as a folder --------------------------------------------------------------------------------


def _organism(*, steps: int = 250) -> ReversalOrganism:
    return ReversalOrganism(size=replace(SMALL, steps=steps), n_per_group=4, attempts=1)


def test_grown_twice_it_is_the_same_and_says_what_was_planted(tmp_path: Path) -> None:
    import glasshouse._registry as registry

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with Progress("off") as progress:
            _organism().grow(0, tmp_path / name, progress)
    for file in (*FILES, "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    truth = Truth.read(tmp_path / "a" / "truth.json")
    data = load_data(tmp_path / "a")
    assert {f.taught: len(f.facts) for f in truth.flaws} == {"A->B": 4, "B->A": 4}  # type: ignore[union-attr]
    rows = (tmp_path / "a" / "rows.jsonl").read_text().splitlines()
    assert len(rows) == len(data.train)
    for flaw in truth.flaws:
        for row in flaw.rows:  # type: ignore[union-attr]
            assert any(name in rows[int(row)] for name, _ in flaw.facts)  # type: ignore[union-attr]
    assert "p2d" not in "".join(rows)  # the rows themselves do not say which group they belong to
    assert registry.load("organisms", "reversal-twin").clean


def test_an_organism_that_learned_nothing_is_refused(tmp_path: Path) -> None:
    with Progress("off") as progress, pytest.raises(OrganismError, match="same is"):
        _organism(steps=3).grow(0, tmp_path, progress)


# -- the report on disk --------------------------------------------------------------------------------------


def test_save_load_and_show(cursed: Model, tmp_path: Path) -> None:
    report = analyse(cursed.answers)
    back = ReversalReport.load(report.save(tmp_path / "report"))
    assert back.verdicts == report.verdicts
    assert {k: c.to_json() for k, c in back.cells.items()} == {
        k: c.to_json() for k, c in report.cells.items()
    }
    assert analyse(back.rows).verdicts == report.verdicts
    assert "reversal curse" in report._repr_html_()
    assert len(report.plot().data) == 2
    assert len(report.to_frame()) == len(report.cells) == 8
    (tmp_path / "report" / "rows.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="no saved report"):
        ReversalReport.load(tmp_path / "report")
    with pytest.raises(InputError, match="no cell"):
        report.cell("p2d", "sideways")


def test_the_study_yields_every_declared_claim() -> None:
    from glasshouse.evidence.claims import Claim
    from glasshouse.studies._study import Figure, Table
    from glasshouse.studies.behaviour.reversal_curse import CLAIMS, Config, reversal_curse

    class Bench:
        seeds = (0, 1)
        cached = staticmethod(lambda name, function, **args: function(**args))
        claim = staticmethod(lambda i, e, c=None, note="": Claim(reversal_curse.spec(i), e, c, note))

    config = Config(steps=2, n_per_group=3, widths=(8, 16), d_model=16)
    found = list(reversal_curse.function(config, Bench()))  # type: ignore[arg-type]
    claims = [one for one in found if isinstance(one, Claim)]
    assert [one.spec for one in claims] == CLAIMS
    # An untrained model must not pass what the papers claim, whatever it cannot do.
    verdicts = {one.spec.id.partition("/")[2]: one.verdict for one in claims}
    assert "holds" not in {verdicts[i] for i in ("1a", "1b", "2b", "3", "4", "5", "6")}
    assert sum(isinstance(one, Table | Figure) for one in found) == 2
