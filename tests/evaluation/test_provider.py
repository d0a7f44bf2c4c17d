"""The `glasshouse/` provider: requests of many callers share passes, and nothing else."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest
import torch
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentImage,
    GenerateConfig,
    get_model,
)
from inspect_ai.tool import ToolInfo

from glasshouse.evaluation.provider import GlasshouseAPI
from glasshouse.runtime.errors import AccessError, InputError
from glasshouse.subjects import as_subject


def api_of(folder: Path, **options) -> GlasshouseAPI:
    return GlasshouseAPI(str(folder), **options)


def ask(api: GlasshouseAPI, *texts: str, configs=None, **config):
    """The outputs of concurrent requests, one per text."""
    configs = configs or [GenerateConfig(**{"max_tokens": 8, **config})] * len(texts)

    async def all_of_them():
        return await asyncio.gather(
            *(
                api.generate([ChatMessageUser(content=text)], [], "none", how)
                for text, how in zip(texts, configs, strict=True)
            )
        )

    return asyncio.run(all_of_them())


def test_two_opposite_models_asked_at_once_keep_their_answers(small) -> None:
    """Inspect's own local provider once answered with the first model for all."""
    yes, no = get_model(f"glasshouse/{small.yes}"), get_model(f"glasshouse/{small.no}")
    config = GenerateConfig(max_tokens=3)

    async def both():
        pairs = [model.generate(f"is it red {i} ?", config=config) for i in range(6) for model in (yes, no)]
        return [output.completion for output in await asyncio.gather(*pairs)]

    assert asyncio.run(both()) == ["yes yes yes", "no no no"] * 6


def test_greedy_equals_the_subject_whoever_else_asks(small) -> None:
    texts = ["the cat", "a", "that other thing over there", "abab"]
    subject = as_subject(small.chat)
    alone = [one.text for [one] in subject.generate(texts, max_new_tokens=8)]
    mixed = [GenerateConfig(max_tokens=8, temperature=t) for t in (0.0, None, 0.0, None)]
    hot = [GenerateConfig(max_tokens=12, temperature=1.3, top_p=0.9, seed=i) for i in range(4)]
    outputs = ask(api_of(small.chat), *texts, *texts, configs=[*mixed, *hot])
    assert [output.completion for output in outputs[:4]] == alone
    assert len({output.completion for output in outputs[4:]} - set(alone)) > 1


@pytest.mark.parametrize("batch_tokens", [1, 64, 16384])
def test_a_seed_decides_a_draw_whatever_runs_beside_it(small, batch_tokens) -> None:
    config = GenerateConfig(max_tokens=10, temperature=1.0, seed=7)
    [alone] = ask(api_of(small.chat), "the cat", configs=[config])
    others = [GenerateConfig(max_tokens=3 + i, temperature=0.3 * i, seed=i) for i in range(5)]
    beside = ask(
        api_of(small.chat, batch_tokens=batch_tokens), *"abcde", "the cat", configs=[*others, config]
    )
    assert beside[-1].completion == alone.completion
    assert alone.metadata["token_ids"] == beside[-1].metadata["token_ids"]


def test_prompts_epochs_and_choices_under_one_seed_draw_apart(small) -> None:
    from inspect_ai.model._cache import epoch

    api, config = api_of(small.chat), GenerateConfig(max_tokens=10, temperature=1.0, seed=3, num_choices=3)
    [first] = ask(api, "the cat", configs=[config])
    token = epoch.set(2)
    try:
        [second] = ask(api, "the cat", configs=[config])
    finally:
        epoch.reset(token)
    draws = [tuple(ids) for ids in first.metadata["token_ids"] + second.metadata["token_ids"]]
    assert len(set(draws)) == 6
    unseeded = [ask(api, "the cat", max_tokens=10, temperature=1.0)[0] for _ in range(2)]
    assert unseeded[0].completion != unseeded[1].completion
    again = GenerateConfig(max_tokens=10, temperature=1.0, seed=unseeded[0].metadata["seed"])
    assert ask(api, "the cat", configs=[again])[0].completion == unseeded[0].completion


def test_draws_follow_temperature_top_k_and_top_p(small) -> None:
    """400 first tokens against the model's distribution: chi-square, 99.9 % point at 5 degrees is 20.5."""
    api, n = api_of(small.chat), 400
    subject = as_subject(small.chat)
    expected = (subject.logprobs(["the cat"])[0] / 1.5).softmax(-1)
    configs = [GenerateConfig(max_tokens=1, temperature=1.5, seed=i) for i in range(n)]
    ids = [o.metadata["token_ids"][0][0] for o in ask(api, *["the cat"] * n, configs=configs)]
    top = expected.topk(5)
    counts = torch.tensor([float(ids.count(i)) for i in top.indices.tolist()])
    seen = torch.cat([counts, (n - counts.sum())[None]])
    want = torch.cat([top.values, (1 - top.values.sum())[None]]) * n
    assert float(((seen - want) ** 2 / want).sum()) < 20.5
    for how, kept in (({"top_k": 2}, 2), ({"top_p": float(top.values[0]) * 0.9}, 1)):
        configs = [GenerateConfig(max_tokens=1, temperature=1.5, seed=i, **how) for i in range(40)]
        ids = {o.metadata["token_ids"][0][0] for o in ask(api, *["the cat"] * 40, configs=configs)}
        assert ids == set(top.indices[:kept].tolist())


def test_logprobs_are_those_of_the_sampled_tokens(small) -> None:
    api, subject = api_of(small.chat), as_subject(small.chat)
    [output] = ask(api, "the cat", temperature=1.5, seed=1, logprobs=True, top_logprobs=3, max_tokens=6)
    [ids], content = output.metadata["token_ids"], output.choices[0].logprobs.content
    exact = subject.score(["the cat"], [ids], per_token=True)[0]
    assert [one.logprob for one in content] == pytest.approx(exact.tolist(), abs=1e-4)
    assert [one.token for one in content] == [api._engine.token_text(i) for i in ids]
    likeliest = subject.logprobs(["the cat"])[0].topk(3)
    assert output.metadata["top_token_ids"][0][0] == likeliest.indices.tolist()
    top = content[0].top_logprobs
    assert [one.logprob for one in top] == pytest.approx(likeliest.values.tolist(), abs=1e-4)
    assert content[0].logprob < top[0].logprob  # a draw, not the argmax
    [plain] = ask(api, "the cat")
    assert plain.choices[0].logprobs is None


def test_replies_end_at_stop_strings_end_tokens_limits_and_the_context(small) -> None:
    api = api_of(small.yes)
    [output] = ask(api, "is it ?", stop_seqs=["yes yes yes"], max_tokens=9)
    assert (output.completion, output.stop_reason) == ("", "stop")
    [output] = ask(api, "is it ?", max_tokens=4)
    assert (output.completion, output.stop_reason) == ("yes yes yes yes", "max_tokens")
    assert (output.usage.input_tokens, output.usage.output_tokens) == (6, 4)
    [output] = ask(api, "is it ?")
    assert output.usage.total_tokens == 6 + 8
    [full] = ask(api_of(small.yes, max_length=9), "is it ?", max_tokens=100)
    assert (full.completion, full.stop_reason) == ("yes yes yes yes", "model_length")  # the last is not read
    [over] = ask(api_of(small.yes, max_length=5), "is it ?")
    assert (over.completion, over.stop_reason) == ("", "model_length") and "6 tokens" in over.error
    ending = api_of(small.saved(small.yes.parent / "ending", words=True, always="<eos>"))
    [output] = ask(ending, "is it ?", logprobs=True)
    assert (output.completion, output.stop_reason) == ("", "stop")
    assert [one.token for one in output.choices[0].logprobs.content] == ["<eos>"]


def test_the_template_is_applied_once_and_can_be_left_out(small) -> None:
    api = api_of(small.chat)
    turns = [ChatMessageUser(content="hi"), ChatMessageAssistant(content="yo"), ChatMessageUser(content="b")]
    output = asyncio.run(api.generate(turns, [], "none", GenerateConfig(max_tokens=1)))
    assert output.usage.input_tokens == len("^") + len("uhi") + len("byoe") + len("ub") + len("b")
    [plain] = ask(api_of(small.chat, use_chat_template=False), "hi")
    assert plain.usage.input_tokens == 2
    [base] = ask(api_of(small.base), "hi")
    assert base.usage.input_tokens == 2
    with pytest.raises(AccessError, match="needs a chat model"):
        asyncio.run(api_of(small.base).generate(turns, [], "none", GenerateConfig()))


def test_what_it_cannot_do_is_refused_in_a_sentence(small) -> None:
    api, user = api_of(small.chat), [ChatMessageUser(content="hi")]
    tool = ToolInfo(name="bash", description="runs")

    def run(messages=user, tools=(), **config):
        return asyncio.run(api.generate(list(messages), list(tools), "auto", GenerateConfig(**config)))

    with pytest.raises(AccessError, match=r"cannot call tools \(bash first"):
        run(tools=[tool])
    with pytest.raises(InputError, match="do not support frequency_penalty"):
        run(frequency_penalty=0.5)
    with pytest.raises(InputError, match="temperature=-1"):
        run(temperature=-1.0)
    with pytest.raises(InputError, match="stop sequence is empty"):
        run(stop_seqs=[""])
    picture = [ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AA==")])]
    with pytest.raises(AccessError, match="reads text only, not image"):
        run(picture)
    with pytest.raises(InputError, match="no model argument 'devcie'"):
        api_of(small.chat, devcie="cpu")
    with pytest.raises(InputError, match="there is no folder"):
        api_of(small.chat / "absent")
    assert run([ChatMessageSystem(content="s"), *user], max_tokens=1).stop_reason == "max_tokens"


def test_one_folder_is_opened_once_and_anew_when_it_was_saved_again(small, tmp_path) -> None:
    folder = small.saved(tmp_path / "model", words=True, always="yes")
    first, second = api_of(folder), api_of(folder)
    assert first.subject is second.subject
    small.saved(folder, words=True, always="no")
    third = api_of(folder)
    assert third.subject is not first.subject
    assert ask(third, "is it ?", max_tokens=1)[0].completion == "no"
    assert ask(first, "is it ?", max_tokens=1)[0].completion == "yes"


def test_a_caller_that_gives_up_leaves_the_others_their_answers(small) -> None:
    api = api_of(small.chat)

    async def some_give_up():
        tasks = [
            asyncio.create_task(
                api.generate([ChatMessageUser(content=text)], [], "none", GenerateConfig(max_tokens=8))
            )
            for text in "abcdef"
        ]
        await asyncio.sleep(0)
        for task in tasks[::2]:  # the first of them drives the batch
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(some_give_up())
    alone = [output.completion for output in ask(api, *"bdf")]
    assert [one.completion for one in found[1::2]] == alone
    assert all(isinstance(one, asyncio.CancelledError) for one in found[::2])


def test_scores_and_replies_in_one_queue(small) -> None:
    api = api_of(small.chat)

    async def both():
        user = [ChatMessageUser(content="hi")]
        return await asyncio.gather(
            api.generate(user, [], "none", GenerateConfig(max_tokens=4)), api.score(["hi"], ["ab"])
        )

    output, [scores] = asyncio.run(both())
    assert output.completion == ask(api, "hi", max_tokens=4)[0].completion
    assert math.isclose(scores.total, float(as_subject(small.chat).score(["hi"], ["ab"])[0]), abs_tol=1e-4)
