"""Theorem: for a summed loss, sum over b, t of g a^T is the weight gradient autograd computes, on every kind
of module, however often it is called. If it failed, every
attribution score would be built on a wrong gradient.
"""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from glasshouse.runtime.errors import InputError, NumericalError, ReductionError, UntrackedModuleError
from glasshouse.subjects.capture import Capture, as_matrix, as_parameters, describe_modules


class Sequence(nn.Module):
    """Embedding, Conv1D and one Linear called twice on [B, T] ids."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.conv = Conv1D(6, 6)
        self.shared = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.conv(self.embed(ids)))
        return self.head(torch.tanh(self.shared(torch.tanh(self.shared(h)))))


def image_model(padding_mode: str = "zeros", padding: object = 1) -> nn.Module:
    conv = nn.Conv2d(2, 4, 3, padding=padding, padding_mode=padding_mode)
    return nn.Sequential(
        conv,
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 3, (3, 2), stride=2, dilation=(1, 2), bias=False),
        nn.Flatten(),
        nn.LazyLinear(5),
    )


def padded_embedding() -> nn.Module:
    return nn.Sequential(nn.Embedding(7, 4, padding_idx=0), nn.Linear(4, 2))


def cases():
    ids = torch.tensor([[1, 2, 3], [4, 0, 1]])
    images = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    yield "sequence", Sequence(), ["embed", "conv", "shared", "head"], ids
    yield "vector", nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)), ["0", "2"], torch.randn(4, 5)
    yield "image", image_model(), ["0", "2", "4"], images
    yield "circular", image_model("circular"), ["0", "2", "4"], images
    yield "same", image_model("reflect", "same"), ["0", "2", "4"], images
    yield "padding_idx", padded_embedding(), ["0", "1"], ids


@pytest.mark.parametrize(
    "name,model,names,inputs", list(cases()), ids=lambda v: v if isinstance(v, str) else " "
)
def test_pairs_reproduce_weight_gradients(name, model, names, inputs) -> None:
    model(inputs)  # materialise lazy layers
    (model(inputs) ** 2).sum().backward()
    with Capture(model, names) as capture:
        pairs = capture.gradients((model(inputs) ** 2).sum())
    for module_name in names:
        module = model.get_submodule(module_name)
        found = as_parameters(module, pairs[module_name].gradient().sum(0))
        for key, parameter in module.named_parameters(recurse=False):
            torch.testing.assert_close(found[key], parameter.grad, rtol=1e-5, atol=1e-5)
        grads = {key: parameter.grad for key, parameter in module.named_parameters(recurse=False)}
        matrix = as_matrix(module, grads["weight"], grads.get("bias"))
        torch.testing.assert_close(matrix, pairs[module_name].gradient().sum(0), rtol=1e-5, atol=1e-5)


def test_each_example_has_its_own_gradient() -> None:
    model, ids = Sequence(), torch.tensor([[1, 2, 3], [4, 0, 1], [9, 9, 9]])
    with Capture(model, ["conv", "shared"]) as capture:
        together = capture.gradients(model(ids).pow(2).sum())
        alone = [capture.gradients(model(row[None]).pow(2).sum()) for row in ids]
    for name, pair in together.items():
        expected = torch.cat([one[name].gradient() for one in alone])
        torch.testing.assert_close(pair.gradient(), expected, rtol=1e-5, atol=1e-6)


def test_language_models_of_each_family(any_model) -> None:
    ids = torch.tensor([[5, 6, 7, 8], [9, 3, 2, 1]])
    names = [module.name for module in describe_modules(any_model) if module.selected]
    any_model(input_ids=ids).logits.pow(2).sum().backward()
    with Capture(any_model, names) as capture:
        pairs = capture.gradients(any_model(input_ids=ids).logits.pow(2).sum())
    for name in names:
        module = any_model.get_submodule(name)
        found = as_parameters(module, pairs[name].gradient().sum(0))
        for key, parameter in module.named_parameters(recurse=False):
            torch.testing.assert_close(found[key], parameter.grad, rtol=1e-4, atol=1e-5)
    any_model.zero_grad()
    assert not any(module.selected for module in describe_modules(any_model) if module.kind == "embedding")


def test_what_is_selected_in_each_family(any_family, tiny) -> None:
    """Every linear map of the blocks; embeddings, norms and a tied head are left out for a stated reason."""
    model = tiny.model(any_family)
    described = {module.name: module for module in describe_modules(model)}
    linear = {name for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    tied = {name for name in linear if described[name].why.startswith("its weight is shared")}
    assert tied == ({"lm_head"} if model.config.tie_word_embeddings else set())
    assert {name for name, module in described.items() if module.selected} == linear - tied
    assert all(module.why for module in described.values() if not module.selected)


@pytest.mark.parametrize("family,name", [("opt", "model.decoder.embed_positions"), ("gemma2", "embed")])
def test_embeddings_with_a_forward_pass_of_their_own(tiny, family, name) -> None:
    """Their inputs are not indices into the weight, or their outputs not its rows."""
    model = tiny.model(family)
    if family == "gemma2":  # alone, so that it is not refused for being tied
        model = nn.ModuleDict({"embed": model.model.embed_tokens})
    with pytest.raises(UntrackedModuleError, match="computes something of its own"):
        Capture(model, [name])


def test_rows_flattened_around_a_layer_are_still_rows(tiny) -> None:
    """OPT gives its MLP [B*T, d]; tracked alone, its tokens must not pass for examples."""
    model, ids = tiny.model("opt"), torch.tensor([[5, 6, 7, 8], [9, 3, 2, 1]])
    name = "model.decoder.layers.0.fc1"
    with Capture(model, [name]) as capture:
        pair = capture.gradients(model(input_ids=ids).logits.pow(2).sum())[name]
        alone = [capture.gradients(model(input_ids=row[None]).logits.pow(2).sum())[name] for row in ids]
        inputs = capture.activations(lambda: model(input_ids=ids))[name]
    assert pair.a.shape == (2, 4, 33) and pair.g.shape == (2, 4, 48)
    expected = torch.cat([one.gradient() for one in alone])
    torch.testing.assert_close(pair.gradient(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(inputs, pair.a)


def test_no_parameter_gradient_is_left_and_requires_grad_is_restored() -> None:
    model = Sequence()
    model.conv.weight.requires_grad_(False)
    with Capture(model, ["conv"]) as capture:
        capture.gradients(model(torch.tensor([[1, 2]])).sum())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["conv.weight"]


def test_the_same_pass_can_be_differentiated_twice() -> None:
    model, ids = Sequence(), torch.tensor([[1, 2]])
    with Capture(model, ["head", "conv"]) as capture:
        out = model(ids)
        first = capture.gradients(out[..., 0].sum(), retain_graph=True)
        second = capture.gradients(out[..., 1].sum())
    assert torch.equal(first["head"].a, second["head"].a)
    assert not torch.allclose(first["conv"].g, second["conv"].g)


def test_a_branch_the_loss_ignores_has_gradient_zero() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "spare": nn.Linear(2, 2)})
    x = torch.ones(1, 2)
    with Capture(model, ["used", "spare"]) as capture:
        model["spare"](x)
        pairs = capture.gradients(model["used"](x).sum())
    assert float(pairs["spare"].g.abs().max()) == 0.0 < float(pairs["used"].g.abs().max())


def test_activations_alone_equal_those_of_the_gradient_pass() -> None:
    model, ids = Sequence(), torch.tensor([[1, 2, 3]])
    with Capture(model, ["conv", "shared"]) as capture:
        alone = capture.activations(lambda: model(ids))
        pairs = capture.gradients(model(ids).sum())
    for name, a in alone.items():
        assert torch.equal(a, pairs[name].a)
        assert bool((a[..., -1] == 1).all())


def test_a_pass_without_gradients_is_not_recorded() -> None:
    model, ids = Sequence(), torch.tensor([[1, 2, 3]])
    with Capture(model, ["conv"]) as capture:
        with torch.no_grad():
            model(ids)
        assert capture.gradients(model(ids).sum())["conv"].a.shape[:2] == (1, 3)


def test_bf16_pairs_keep_the_model_dtype() -> None:
    model = Sequence().to(torch.bfloat16)
    with Capture(model, ["conv", "embed"]) as capture:
        pairs = capture.gradients(model(torch.tensor([[1, 2]])).float().sum())
    assert {t.dtype for pair in pairs.values() for t in (pair.a, pair.g)} == {torch.bfloat16}


def test_selection_by_glob_regex_and_name() -> None:
    model = Sequence()

    def chosen(modules) -> list[str]:
        return [module.name for module in describe_modules(model, modules) if module.selected]

    assert chosen("auto") == ["conv", "shared", "head"]
    assert chosen(["s*"]) == ["shared"]
    assert chosen("re:conv|head") == ["conv", "head"]
    assert chosen(["embed", "head"]) == ["embed", "head"]


def tied() -> nn.Module:
    model = Sequence()
    model.head = nn.Linear(6, 11, bias=False)
    model.head.weight = model.embed.weight
    return model


def test_tied_weights_are_left_out_and_refused_by_name() -> None:
    model = tied()
    assert [m.name for m in describe_modules(model) if m.selected] == ["conv", "shared"]
    with pytest.raises(UntrackedModuleError, match="shared with embed"):
        Capture(model, ["head"])


@pytest.mark.parametrize(
    "names,message",
    [
        (["nope"], "matches no module"),
        (["2"], "BatchNorm1d has no outer"),
        (["0"], "grouped"),
        (["1"], "no weights"),
    ],
)
def test_modules_that_cannot_be_tracked(names, message) -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1, groups=2), nn.Flatten(), nn.BatchNorm1d(2), nn.Linear(2, 2))
    with pytest.raises(UntrackedModuleError, match=message):
        describe_modules(model, names)


def test_a_module_that_was_not_called_is_named() -> None:
    model = Sequence()
    with (
        Capture(model, ["conv"]) as capture,
        pytest.raises(UntrackedModuleError, match=r"'conv'.*did not call"),
    ):
        capture.gradients(torch.zeros((), requires_grad=True))


def test_refusals() -> None:
    model, ids = Sequence(), torch.tensor([[1, 2]])
    with Capture(model, ["conv"]) as capture:
        with pytest.raises(InputError, match="already being captured"), Capture(model, ["conv"]):
            pass
        with pytest.raises(ReductionError, match="shape"):
            capture.gradients(model(ids))
        with pytest.raises(NumericalError, match="nan"):
            capture.gradients(model(ids).sum() * float("nan"))
    noisy = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1), nn.BatchNorm1d(2))
    with pytest.raises(InputError, match=r": 1, 2; call model.eval"), Capture(noisy, ["0"]):
        pass
    with Capture(noisy.eval(), ["0"]):
        pass
