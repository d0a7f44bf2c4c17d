"""Documents written by hand: plain data comes out, anything else is one sentence."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.runtime.documents import read_document
from glasshouse.runtime.errors import InputError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=30, deadline=None)
@given(value=st.dictionaries(st.text(max_size=5), PLAIN, max_size=4))
def test_json_comes_back(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("d") / "a.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    assert read_document(path) == value


def test_yaml_and_json_say_the_same(tmp_path):
    (tmp_path / "a.yaml").write_text("m: 3\nw: [1, 2.5]\nname: x\nnone: null\n")
    (tmp_path / "a.json").write_text('{"m": 3, "w": [1, 2.5], "name": "x", "none": null}')
    assert read_document(tmp_path / "a.yaml") == read_document(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.yaml", "- 1", "not one mapping"),
        ("a.yaml", "1: 2", "not one mapping"),
        ("a.yaml", "a: &x 1\nb: *x", "anchors"),
        ("a.yaml", "a: !!python/name:os.system", "not YAML"),
        ("a.yaml", "a: 1\nb: [", "a.yaml:2"),
        ("a.yaml", "a: " + "[" * 5000, "deeper than 50"),
        ("a.json", "{", "a.json:1"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.json", '{"a": "' + "x" * 1_000_001 + '"}', "longer than 1 MB"),
    ],
)
def test_refusals(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=says):
        read_document(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read"):
        read_document(tmp_path / "absent.yaml")
