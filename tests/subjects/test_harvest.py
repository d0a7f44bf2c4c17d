"""A harvest equals direct reads, in the order of the prompts, and goes on where a kill left it."""

import pytest
import torch

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, StaleError
from glasshouse.subjects.harvest import collect

SITES = ["resid_post.0", "z.1.2"]


def test_a_harvest_equals_direct_reads(any_subject, tiny, tmp_path) -> None:
    rows = tiny.rows(11)
    found = collect(any_subject, rows, SITES, tmp_path, positions=[0, -1], rows_per_shard=4, batch_tokens=20)
    assert len(found.shards) == 3
    for site in SITES:
        expected = torch.cat([any_subject.run([row], read=[site], positions=[0, -1])[site] for row in rows])
        torch.testing.assert_close(found.load(site), expected, rtol=1e-4, atol=1e-4)


def test_all_tokens_of_rows_of_different_lengths(any_subject, tiny, tmp_path) -> None:
    rows = tiny.rows(9)
    options = {"positions": None, "rows_per_shard": 4, "batch_tokens": 20}
    found = collect(any_subject, rows, SITES, tmp_path, **options)
    assert found.lengths().tolist() == [len(row) for row in rows]
    for site in SITES:
        alone = [any_subject.run([row], read=[site])[site][0] for row in rows]
        torch.testing.assert_close(found.load(site), torch.cat(alone), rtol=1e-4, atol=1e-4)
        for one, two in zip(found.rows(site), alone, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    before = [shard.stat().st_mtime_ns for shard in found.shards]
    again = collect(any_subject, rows, SITES, tmp_path, **options)
    assert [shard.stat().st_mtime_ns for shard in again.shards] == before
    with pytest.raises(StaleError, match="other positions"):
        collect(any_subject, rows, SITES, tmp_path, rows_per_shard=4)
    with pytest.raises(InputError, match=r"the pattern .* has no rows of tokens"):
        collect(any_subject, rows, ["pattern.0"], tmp_path / "patterns", positions=None)


def test_a_killed_harvest_goes_on(tiny, tmp_path, monkeypatch) -> None:
    subject, rows = tiny.subject("gpt2"), tiny.rows(10)
    whole = collect(subject, rows, SITES, tmp_path / "whole", rows_per_shard=3)

    def fail(stage, path) -> None:
        if stage == "before" and path.name == "shard-00002.safetensors":
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "fault_hook", fail)
    with pytest.raises(KeyboardInterrupt):
        collect(subject, rows, SITES, tmp_path / "killed", rows_per_shard=3)
    monkeypatch.setattr(files, "fault_hook", None)
    assert sorted(p.name for p in (tmp_path / "killed").iterdir())[1:] == [p.name for p in whole.shards[:2]]
    before = whole.shards[0].read_bytes()
    kept = (tmp_path / "killed" / "shard-00000.safetensors").stat().st_mtime_ns
    again = collect(subject, rows, SITES, tmp_path / "killed", rows_per_shard=3)
    assert again.shards[0].stat().st_mtime_ns == kept and again.shards[0].read_bytes() == before
    for site in SITES:
        assert torch.equal(again.load(site), whole.load(site))


def test_formats_and_refusals(tiny, tmp_path) -> None:
    subject, rows = tiny.subject("gpt2"), tiny.rows(3)
    found = collect(subject, rows, SITES, tmp_path / "a", dtype="bf16")
    assert torch.equal(torch.stack(list(found.rows("z.1.2"))), found.load("z.1.2"))
    with pytest.raises(InputError, match="only some positions"):
        found.lengths()
    assert found.load("z.1.2").dtype == torch.bfloat16 and found.load("z.1.2").shape == (3, 1, 8)
    with pytest.raises(InputError, match=r"resid_pre.0 was not collected; choose from resid_post.0, z.1.2"):
        found.load("resid_pre.0")
    with pytest.raises(StaleError, match="other dtype, rows;"):
        collect(subject, rows[:2], SITES, tmp_path / "a")
    with pytest.raises(StaleError, match="other subject;"):
        collect(tiny.subject("llama"), rows, SITES, tmp_path / "a", dtype="bf16")
    with pytest.raises(InputError, match="no prompts"):
        collect(subject, [], SITES, tmp_path / "b")
    with pytest.raises(InputError, match="'int8' is not a number format"):
        collect(subject, rows, SITES, tmp_path / "b", dtype="int8")
    with pytest.raises(InputError, match="a position lies outside its row"):
        collect(subject, [[1, 2]], SITES, tmp_path / "c", positions=[2])
