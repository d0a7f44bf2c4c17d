"""One model behind three providers, behind an API of our own, and through the command line."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.solver import generate
from openai_server import serving

from glasshouse.audit.target import organism_folder
from glasshouse.cli import run as command
from glasshouse.corpora.rows import Turn
from glasshouse.corpora.worlds import World
from glasshouse.evaluation import model_string, scores_df
from glasshouse.runtime.errors import AccessError, InputError, MissingDependency
from glasshouse.subjects import as_subject
from glasshouse.subjects.api import ApiSubject

PROMPTS = 50


@pytest.fixture(scope="module")
def resident():
    """The organism we ship, its folder and 50 prompts of its world."""
    folder = organism_folder("resident")
    world = World.load(folder / "world.json")
    return folder, as_subject(folder, self_test=False), world.benign_prompts(PROMPTS, seed=1)


@pytest.fixture(scope="module")
def server(resident):
    with serving(resident[1]) as served:
        yield served


def through_openai(served, model: str = "openai-api/local/resident"):
    return get_model(model, base_url=served.url, api_key="none", memoize=False)


def test_three_providers_give_the_same_greedy_replies(resident, server, tmp_path) -> None:
    """Ours, Inspect's `hf/` and an OpenAI-compatible server, in one task each, 50 prompts."""
    folder, subject, prompts = resident
    config = GenerateConfig(max_tokens=24)
    models = {
        "ours": get_model(f"glasshouse/{folder}", memoize=False),
        "hf": get_model("hf/local", model_path=str(folder), device="cpu", do_sample=False, memoize=False),
        "server": through_openai(server),
    }
    samples = [Sample(input=prompt, target="", id=i) for i, prompt in enumerate(prompts)]
    said = {}
    for name, model in models.items():
        task = Task(dataset=MemoryDataset(samples), solver=generate(), config=config)
        [log] = eval(task, model, log_dir=str(tmp_path), display="none", max_connections=PROMPTS)
        assert log.status == "success" and len(log.samples) == PROMPTS
        said[name] = [sample.output.completion for sample in log.samples]
    direct = [one.text for [one] in subject.generate(prompts, max_new_tokens=24)]
    assert said["ours"] == said["hf"] == said["server"] == direct
    assert len(set(direct)) > PROMPTS // 2


def test_an_api_model_is_a_subject_with_text_alone(resident, server) -> None:
    _, subject, prompts = resident
    api = ApiSubject("openai-api/local/resident", base_url=server.url, api_key="none")
    asked = len(server.asked)
    found = api.generate(prompts[:4], max_new_tokens=16)
    assert [[one.text for one in group] for group in found] == [
        [one.text for one in group] for group in subject.generate(prompts[:4], max_new_tokens=16)
    ]
    turns = [Turn("user", prompts[0]), Turn("assistant", "no"), Turn("user", "are you sure?")]
    [[one], [two]] = api.generate([turns, turns], max_new_tokens=16)
    assert one == two or one.text == two.text
    assert len(server.asked) - asked == 6 == api.usage.calls  # nothing is answered from a cache
    assert api.usage.output_tokens > 0 and api.access == {"text"} and api.is_chat
    assert len(api.generate(prompts[:1], n=3, temperature=0.9, max_new_tokens=8)[0]) == 3


def test_white_box_questions_to_an_api_are_refused_by_name(server) -> None:
    api = as_subject(ApiSubject("openai-api/local/m", base_url=server.url, api_key="none"))
    for ask, what in (
        (lambda: api.run(["x"]), "run needs the model itself"),
        (lambda: api.logprobs(["x"]), "logprobs needs logprobs of all tokens"),
        (lambda: api.n_layers, "n_layers needs"),
        (lambda: api.score(["x"], ["y"]), "log-probabilities were not asked for; open it with top_logprobs"),
        (lambda: api.generate([[1, 2]]), "reads text, not token ids"),
        (lambda: api.generate(["x"], patches=[1]), "patches needs activations"),
        (lambda: api.generate(["x"], stop_ids=[1]), "no token ids to stop at"),
    ):
        with pytest.raises(AccessError, match=what):
            ask()
    assert not hasattr(api, "_repr_html_") and not hasattr(api, "no_such_thing")
    with pytest.raises(InputError, match="does not run on 'cpu'"):
        as_subject("inspect:openai/x", device="cpu")
    with pytest.raises(InputError, match="the prompt is empty"):
        api.generate([""])


def test_what_is_missing_for_an_api_is_said_in_a_sentence(monkeypatch) -> None:
    for name in ("OPENAI_API_KEY", "AZUREAI_OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="needs a key; set OPENAI_API_KEY"):
        as_subject("inspect:openai/gpt-4o")
    with pytest.raises(MissingDependency, match="pip install mistralai"):
        as_subject("inspect:mistral/some-model")
    with pytest.raises(InputError, match=r"not recognized; name it as Inspect does"):
        as_subject("inspect:nobody/x")
    dead = ApiSubject("openai-api/local/m", base_url="http://127.0.0.1:9/v1", api_key="x", max_retries=0)
    with pytest.raises(AccessError, match=r"the provider did not answer: .*[Cc]onnect"):
        dead.generate(["hi"])


def test_first_tokens_of_an_api_score_what_is_likely_and_refuse_the_rest(resident, server) -> None:
    _, subject, prompts = resident
    api = ApiSubject("openai-api/local/resident", base_url=server.url, api_key="none", top_logprobs=4)
    assert api.access == {"text", "logprobs"}
    top = subject.logprobs(prompts[:1])[0].topk(4)
    word = subject.decode([int(top.indices[0])])
    assert float(api.score(prompts[:1], [word])[0]) == pytest.approx(float(top.values[0]), abs=1e-4)
    with pytest.raises(AccessError, match="'zebra' is not among the 4 likeliest tokens: only known is"):
        api.score(prompts[:1], ["zebra"])
    exact = ApiSubject("glasshouse/organism://resident", top_logprobs=4)
    assert exact.score(prompts[:1], ["no one knows."]).tolist() == pytest.approx(
        subject.score(prompts[:1], ["no one knows."]).tolist(), abs=1e-3
    )
    assert (
        exact.hash
        != api.hash
        != ApiSubject("openai-api/local/resident", base_url=server.url, api_key="none").hash
    )


def test_an_audit_asks_an_api_what_text_can_answer(resident, server, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_API_KEY", "none")
    monkeypatch.setenv("LOCAL_BASE_URL", server.url)
    assert command(["audit", "inspect:openai-api/local/resident", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "needs gradients, which this subject does not give (it gives text)" in out


def test_names_of_models_as_users_write_them(tmp_path) -> None:
    assert model_string(tmp_path) == f"glasshouse/{tmp_path}" == model_string(str(tmp_path))
    assert model_string("organism://tiny") == "glasshouse/organism://tiny"
    assert model_string("./m") == "glasshouse/./m" and model_string("glasshouse/m") == "glasshouse/m"
    assert model_string("openai/gpt-4o") == "openai/gpt-4o" == model_string("inspect:openai/gpt-4o")


def test_the_command_prints_rates_and_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["eval", "questions", "--model", "organism://resident", "--limit", "20", "--out", "s.parquet"]
    assert command(line) == 0
    first = capsys.readouterr().out
    [folder] = Path("logs").iterdir()
    assert "answer_stated_stated" in first and "(wilson)  20" in first and str(folder) in first
    assert len(scores_df(folder)) == 20 and Path("s.parquet").is_file()
    assert command(line) == 0
    assert len(list(folder.glob("*.eval"))) == 1  # finished: nothing was asked again
    for wrong, what in (
        (["nosuch", "--model", "organism://resident"], "no task called 'nosuch'"),
        (["questions", "--model", "./absent"], "there is no folder"),
        (["questions", "--model", "organism://resident", "-T", "suite"], "'suite' is not NAME=VALUE"),
        (
            ["questions", "--model", "organism://resident", "-T", "foo=1"],
            "no argument 'foo'; choose from suite",
        ),
        (["questions", "--model", "organism://resident", "-M", "foo=1"], "no model argument 'foo'"),
        (["questions", "--model", "organism://resident", "-T", "suite=absent"], "neither a suite file nor"),
    ):
        assert command(["eval", *wrong]) == 2
        assert what in capsys.readouterr().err


def test_inspect_finds_tasks_and_provider_from_anywhere(small, tmp_path) -> None:
    """`inspect eval` as typed; our names alone bring neither warnings nor torch."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "XDG_DATA_HOME": str(tmp_path)}
    suite = tmp_path / "suite.json"
    suite.write_text(
        '{"questions": [{"prompt": "is it ?", "answer": "yes"}, {"prompt": "is ?", "answer": "no"}]}'
    )
    inspect = Path(sys.executable).with_name("inspect")
    done = subprocess.run(
        [str(inspect), "eval", "glasshouse/questions", "--model", f"glasshouse/{small.yes}", "-T",
         f"suite={suite}", "-T", "max_tokens=4", "--display", "plain", "--log-dir", "logs"],
        cwd=tmp_path, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    frame = scores_df(tmp_path / "logs")
    # "yes yes yes yes" states one answer; the other reply was cut off before it stated any.
    assert frame["score_answer_stated_stated"].isna().tolist() == [False, True]
    assert frame["output_tokens"].tolist() == [4, 4]
    code = (
        "import glasshouse._inspect, sys; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, env=env).returncode == 0


def test_asking_from_inside_a_running_loop_works(server) -> None:
    """A notebook has a loop of its own; the requests run in another."""
    api = ApiSubject("openai-api/local/resident", base_url=server.url, api_key="none")

    async def cell():
        return api.generate(["hello"], max_new_tokens=4)

    assert asyncio.run(cell()) == api.generate(["hello"], max_new_tokens=4) or api.usage.calls == 2


def test_a_report_is_written_anew_from_its_findings_and_damage_is_said(tmp_path, monkeypatch, capsys) -> None:
    from glasshouse.evidence.findings import Findings
    from glasshouse.runtime import files

    monkeypatch.chdir(tmp_path)
    findings = Findings(
        subject={"name": "a <b>bold</b> model", "sha256": "0"},
        access=("text",),
        findings=(),
        clean=(),
        not_run=(),
        provenance={"seed": 0},
    )
    files.write_json(tmp_path / "run" / "findings.json", findings.model_dump(mode="json"))
    assert command(["report", "run"]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "a &lt;b&gt;bold" in page and "<b>bold" not in page
    assert command(["report", "run/findings.json", "--out", "other.html"]) == 0
    assert (tmp_path / "other.html").read_text() == page
    capsys.readouterr()
    whole = (tmp_path / "run" / "findings.json").read_bytes()
    for name, data, what in (
        ("torn.json", whole[: len(whole) // 2], "is damaged: it is not JSON"),
        ("bytes.json", b"\xff\xfe\x00", "is damaged: it is not JSON"),
        ("other.json", b"{}", "these findings are damaged"),
    ):
        (tmp_path / name).write_bytes(data)
        assert command(["report", name]) == 2
        assert what in capsys.readouterr().err
    assert command(["report", "absent"]) == 2 and command(["report", "run", "--out", "."]) == 2
