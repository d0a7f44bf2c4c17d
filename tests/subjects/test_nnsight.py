"""Our site names as nnsight's envoys: the same value read, the same edit made, on every family."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from glasshouse.runtime.errors import AccessError, InputError, MissingDependency
from glasshouse.subjects import Site
from glasshouse.subjects.nnsight import Envoy, edit_site, envoy, read_site, to_nnsight
from glasshouse.subjects.patches import Patch

with_nnsight = pytest.mark.skipif(find_spec("nnsight") is None, reason="the extra [nnsight] is not installed")
IDS = torch.tensor([[5, 9, 33, 2, 7], [8, 8, 1, 250, 3]])
KINDS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_act", "z", "q", "k", "v")


def sites(subject) -> list[str]:
    kinds = [kind for kind in KINDS if kind != "resid_mid" or subject.parts.has_mid]
    return [f"{kind}.1" for kind in kinds] + [
        "z.0.2",
        "k.1.1",
        "embed",
        "final_norm_in",
        "final_norm_out",
        "logits",
    ]


def test_paths_name_the_modules_of_each_family(any_subject):
    modules = dict(any_subject.model.named_modules())
    for site in sites(any_subject):
        found = envoy(any_subject, site)
        assert found.module in modules and found.side in ("input", "output")
    assert envoy(any_subject, "resid_pre.1").module == envoy(any_subject, "resid_post.1").module
    assert envoy(any_subject, "resid_pre.1").side == "input"


def test_a_path_can_be_written_down(tiny):
    assert str(envoy(tiny.subject("llama"), "mlp_out.1")) == "model.layers[1].mlp.output"
    assert str(envoy(tiny.subject("gpt2"), Site("z", 0))) == "transformer.h[0].attn.c_proj.input"
    assert envoy(tiny.subject("llama"), "pattern.0") == Envoy("model.layers.0.self_attn", "output", 1)
    with pytest.raises(InputError, match="has 2 layers"):
        envoy(tiny.subject("llama"), "mlp_out.2")
    with pytest.raises(AccessError, match="read the same residual"):
        envoy(tiny.subject("gptj"), "resid_mid.0")


@pytest.mark.skipif(find_spec("nnsight") is not None, reason="the extra [nnsight] is installed")
def test_without_nnsight_the_fix_is_named(tiny):
    with pytest.raises(MissingDependency, match=r"pip install 'glasshouse\[nnsight\]'"):
        to_nnsight(tiny.subject("llama"))


@with_nnsight
@pytest.mark.filterwarnings("ignore")  # nnsight's own
def test_reads_equal_ours(any_subject):
    model = to_nnsight(any_subject)
    wanted = sites(any_subject)
    ours = any_subject.run(IDS.tolist(), read=wanted)
    for site in wanted:
        with torch.no_grad(), model.trace(input_ids=IDS):
            theirs = read_site(model, any_subject, site).save()
        torch.testing.assert_close(theirs.reshape(ours[site].shape), ours[site], rtol=1e-5, atol=1e-5)


@with_nnsight
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("site", ["mlp_out.0", "z.1.2", "resid_pre.1", "k.0.1", "attn_out.1"])
def test_edits_equal_ours(any_subject, site):
    model = to_nnsight(any_subject)
    plain = any_subject.run(IDS.tolist()).logits
    ours = any_subject.run(
        IDS.tolist(), patches=[Patch(Site.parse(site), "fn", lambda x: x * x.abs())]
    ).logits
    with torch.no_grad(), model.trace(input_ids=IDS):
        value = read_site(model, any_subject, site)
        edit_site(model, any_subject, site, value * value.abs())  # no norm undoes it, as it would a factor
        theirs = model.output.logits.save()
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    assert (theirs - plain).abs().max() > 1e-3
    with pytest.raises(AccessError, match="not edited"):
        edit_site(model, any_subject, "pattern.0", torch.zeros(1))
