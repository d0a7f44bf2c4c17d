"""A model's folder read without a tensor, a pickle or the network; cards round trip from it."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from glasshouse.governance import (
    CardError,
    from_hf_repo,
    from_markdown,
    open_repo,
    read_card,
    read_folder,
    to_markdown,
    validate,
    write_card,
)
from glasshouse.governance._hub import read_header
from glasshouse.governance._spdx import license_of_text

APACHE = Path("/usr/share/common-licenses/Apache-2.0")
STORIES = Path(__file__).parents[2].parent / "shared" / "data" / "stories260K"


def weights(path: Path, shapes: dict[str, list[int]], dtype: str = "F32") -> None:
    """A safetensors file whose tensors are zeros of 4 bytes."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    root.mkdir()
    weights(root / "a.safetensors", {"w": [4, 5], "b": [5]})
    weights(root / "b.safetensors", {"v": [7]}, dtype="BF16")
    (root / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "hidden_size": 4}')
    (root / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: base/one\n---\n# Mine\n")
    (root / "training_args.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    return root


def test_folder_to_card_to_markdown_and_back(folder: Path) -> None:
    card = from_hf_repo(folder)
    weights_cell = card.components["deployment.data.weights"]
    assert weights_cell.value.level == "D5" and weights_cell.value.license == "Apache-2.0"
    assert "32 parameters (F32 25, BF16 7)" in weights_cell.note
    assert card.subject.base_models == ["base/one"] and card.subject.name == "model"
    assert all(
        one.status == "unknown" for name, one in card.components.items() if name != "deployment.data.weights"
    )
    assert from_markdown(to_markdown(card)) == card
    path = write_card(folder / "README.md", card)
    assert read_card(path) == card and path.read_text().startswith(
        "---\nlicense: apache-2.0\nbase_model: base/one\n"
    )
    lint = validate(path)
    assert [issue.code for issue in lint.errors] == [] and "W-BASE-MISSING" in {i.code for i in lint.warnings}


def test_what_is_not_there_stays_unknown(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    card = from_hf_repo(tmp_path)
    assert {one.status for one in card.components.values()} == {"unknown"}
    rlhf = from_hf_repo(tmp_path, kind="rlhf")
    assert {one.status for _, one in rlhf.fields()} == {"unknown"}
    assert from_hf_repo(tmp_path, kind="challenges").evidence == {}


def test_gated_weights_are_not_d5(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\nextra_gated_prompt: please\n---\n")
    assert from_hf_repo(folder).components["deployment.data.weights"].value.level == "D4"


def test_an_unknown_licence_gives_no_level(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: my-own-terms\n---\n")
    cell = from_hf_repo(folder).components["deployment.data.weights"]
    assert cell.value is None and "LicenseRef-my-own-terms" in cell.note


@pytest.mark.skipif(not APACHE.is_file(), reason="the licence texts of Debian are not on this machine")
def test_a_licence_text_against_the_stated_licence(folder: Path) -> None:
    (folder / "LICENSE").write_text(f"Copyright 2025 Somebody\n\n{APACHE.read_text()}")
    assert license_of_text((folder / "LICENSE").read_text()) == "Apache-2.0"
    assert validate(_with_cards(folder)).errors == ()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert [issue.code for issue in validate(_with_cards(folder)).errors] == ["E-LIC-CONFLICT"]


def _with_cards(folder: Path) -> Path:
    return write_card(folder / "card.json", from_hf_repo(folder))


def test_broken_front_matter_names_the_line(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\nbase: [one\n---\n")
    with pytest.raises(CardError, match=r"README\.md: line 4"):
        from_hf_repo(folder)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 10) + b"not json!!",
        struct.pack("<Q", 4) + b"[[]]",
        struct.pack("<Q", 44) + b'{"w": {"dtype": "F32", "shape": [-1, "x"]}}  ',
    ],
)
def test_a_damaged_safetensors_is_a_clear_error(data: bytes, folder: Path) -> None:
    (folder / "a.safetensors").write_bytes(data)
    with pytest.raises(CardError, match=r"a\.safetensors"):
        read_folder(folder)


def test_a_header_is_read_without_the_tensors(folder: Path) -> None:
    """A sparse file of 20 GB: only its first bytes exist."""
    path = folder / "a.safetensors"
    with path.open("r+b") as handle:
        handle.truncate(20_000_000_000)
    assert set(read_header(path)) == {"w", "b"}


def test_an_id_is_not_fetched_unasked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CardError, match="not in the local cache"):
        open_repo("nobody/nothing-here")


def test_many_folders_are_read_by_their_headers_alone(folder: Path) -> None:
    found = read_folder(folder)
    assert found.weights is not None and found.weights.parameters == 32
    assert "training_args.bin" in found.names


@pytest.mark.skipif(not STORIES.is_dir(), reason="the stories260K checkpoint is not on this machine")
def test_a_real_checkpoint_fills_what_its_files_tell(tmp_path: Path) -> None:
    card = from_hf_repo(STORIES)
    assert "260,032 parameters (F32 260,032)" in card.components["deployment.data.weights"].note
    assert {one.status for one in card.components.values()} == {"unknown"}, (
        "its README states no licence as data"
    )
    assert validate(card, base=STORIES).issues == ()


def test_importing_the_wing_is_light() -> None:
    code = (
        "import sys, glasshouse.governance.openness, glasshouse.governance.rlhf_disclosure\n"
        "import glasshouse.governance.foundational_challenges\n"
        "from glasshouse.governance import to_card, validate, to_yaml\n"
        "card = to_card({'card_type': 'rlhf', 'subject': {'name': 'x'}})\n"
        "validate(card); to_card({'card_type': 'openness', 'subject': {'name': 'x'}})\n"
        "heavy = ('torch', 'numpy', 'pandas', 'scipy', 'transformers', 'huggingface_hub', 'duckdb')\n"
        "print(*(m for m in heavy if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0 and done.stdout.split() == [], done.stdout + done.stderr
