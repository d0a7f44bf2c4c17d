"""Cards in every format: lossless both ways, inert whatever they say, refused when they are bombs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rlhf_cards import release

from glasshouse.governance import (
    CardError,
    from_markdown,
    read_card,
    to_card,
    to_csv,
    to_html,
    to_json,
    to_markdown,
    to_yaml,
    validate,
    write_card,
)
from glasshouse.governance._exports import export
from glasshouse.governance._files import read_data
from glasshouse.governance._markdown import BEGIN, END, split_readme
from glasshouse.governance._plain import MAX_BYTES, dump_yaml, parse_json, parse_yaml

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
NASTY = (
    '"><script>alert(1)</script><img src=x onerror=alert(1)>[x](javascript:alert(1)) `a` | b\n---\n'
    f"{BEGIN}\n{END}\n{{{{ 7*7 }}}} =cmd|' /C calc'!A0 \u202e https://evil.example"
)


@st.composite
def rlhf(draw: Any) -> Any:
    """A card with drawn texts in every kind of place."""
    text = TEXT.filter(bool)
    source = st.fixed_dictionaries(
        {"kind": st.sampled_from(["url", "doi", "file"]), "ref": text, "quote": TEXT}
    )
    field = st.fixed_dictionaries(
        {"value": TEXT, "status": st.just("disclosed"), "sources": st.lists(source, max_size=2), "note": TEXT}
    )
    unknown = st.fixed_dictionaries({"status": st.sampled_from(["unknown", "undisclosed"]), "note": TEXT})
    number = st.floats(-1e9, 1e9)
    quantity = st.fixed_dictionaries({"value": number, "unit": text})
    data = {
        "card_type": "rlhf",
        "subject": {"name": draw(text), "base_models": draw(st.lists(text, max_size=2))},
        "issuer": draw(TEXT),
        "statements": [{"text": draw(TEXT)}],
        "pretraining": {"data": draw(field | unknown), "process": draw(field)},
        "policy": {"final_kl": {"value": draw(quantity), "status": "disclosed"}},
        "quality": {"flagged_raters": {"value": draw(st.lists(text, max_size=3)), "status": "disclosed"}},
    }
    return to_card(data)


@QUICK
@given(card=rlhf())
def test_formats_keep_the_card_id(card: Any) -> None:
    by_yaml = to_card(parse_yaml(to_yaml(card)))
    by_md = from_markdown(to_markdown(by_yaml))
    by_json = to_card(parse_json(to_json(by_md)))
    assert by_yaml == by_md == by_json == card
    assert by_json.card_id == card.card_id


@QUICK
@given(data=PLAIN)
def test_yaml_says_what_json_says(data: Any) -> None:
    assert parse_yaml(dump_yaml({"x": data}))["x"] == data


@QUICK
@given(
    front=st.dictionaries(TEXT.filter(lambda k: bool(k) and k != "glasshouse"), PLAIN, max_size=4),
    body=TEXT,
    card=rlhf(),
)
def test_a_readme_keeps_its_own_words(front: dict[str, Any], body: str, card: Any) -> None:
    readme = f"---\n{dump_yaml(front)}# a comment\n---\n{body}" if front else body
    if BEGIN in body or END in body or (not front and body.startswith("---")):
        return
    once = to_markdown(card, readme)
    twice = to_markdown(card, once)
    found = split_readme(once)
    assert once == twice, "writing the same card again changes nothing"
    assert {k: v for k, v in found.data.items() if k in front} == front
    assert not front or "# a comment\n" in (found.front or "")
    assert found.body.startswith(body) and from_markdown(once) == card


def test_two_cards_live_in_one_readme(tmp_path: Path) -> None:
    rlhf_card = to_card(release(tmp_path))
    openness = to_card({"card_type": "openness", "subject": {"name": "m", "base_models": ["b"]}})
    path = tmp_path / "README.md"
    path.write_text("---\nlicense: mit   # ours\n---\n# Model\n")
    write_card(path, rlhf_card)
    write_card(path, openness)
    assert read_card(path, "rlhf") == rlhf_card and read_card(path, "openness") == openness
    text = path.read_text()
    assert text.count(BEGIN) == 1 and "license: mit   # ours\n" in text and "base_model: example-base" in text
    with pytest.raises(CardError, match="these cards: openness, rlhf"):
        read_card(path)


def test_text_in_every_field_is_inert(tmp_path: Path) -> None:
    data = release(tmp_path)
    data["subject"]["name"] = data["issuer"] = NASTY[:300]
    data["statements"] = [{"text": NASTY, "by": NASTY[:300]}]

    def poison(node: Any) -> None:
        for key, value in list(node.items()):
            if isinstance(value, dict) and "status" in value:
                value["note"] = NASTY
                value["sources"] = [{"kind": "url", "ref": "javascript:alert(1)", "quote": NASTY[:300]}]
                if isinstance(value.get("value"), str) and key not in (
                    "kind",
                    "objective",
                    "disagreement",
                    "algorithm",
                ):
                    value["value"] = NASTY[:300]
            elif isinstance(value, dict):
                poison(value)

    poison(data)
    card = to_card(data)
    page = to_html(card)
    assert (
        "<script>alert" not in page
        and "<img" not in page
        and "javascript:" not in page.replace("[x](javascript:", "")
    )
    assert (
        "default-src 'none'" in page
        and 'href="http' not in page
        and "src=" not in page.replace("img src=x", "")
    )
    readme = to_markdown(card)
    body = split_readme(readme).body
    assert body.count(BEGIN) == body.count(END) == 1 and "<script" not in body and "](javascript" not in body
    assert not any(line.startswith("---") for line in body.splitlines())
    assert "https://" not in body, "a bare address would become a link"
    assert from_markdown(readme) == card
    assert not any(
        line.split(",")[1].startswith(("=", "+", "@"))
        for line in to_csv(card).splitlines()
        if line.count(",") > 4
    )
    assert {issue.code for issue in validate(card, level=3, base=tmp_path).warnings} >= {"W-URL"}


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("bomb.yaml", BOMB, "E-ALIAS"),
        ("loop.yaml", "a: &a\n  - *a\n", "E-ALIAS"),
        ("tag.yaml", "a: !!python/object/apply:os.system ['true']\n", "E-TAG"),
        ("deep.json", "[" * 100_000, "E-DEPTH"),
        ("deep.yaml", "[" * 1000 + "]" * 1000, "E-DEPTH"),
        ("twice.json", '{"a": 1, "a": 2}', "E-PARSE"),
        ("twice.yaml", "a: 1\na: 2\n", "E-PARSE"),
        ("nan.json", '{"a": NaN}', "E-NAN"),
        ("nan.yaml", "a: .nan\n", "E-NAN"),
        ("digits.json", '{"a": ' + "9" * 5000 + "}", "E-PARSE"),
        ("torn.json", '{"a": ', "E-PARSE"),
        ("tab.yaml", "a:\n\t- b\n", "E-PARSE"),
        ("open.md", "---\na: 1\n", "E-PARSE"),
        ("none.md", "# nothing\n", "E-READ"),
        ("list.json", "[]", "E-PARSE"),
        ("half.json", '{"a": "\\ud800"}', "E-ENCODING"),
        ("what.txt", "{}", "E-READ"),
    ],
)
def test_hostile_files_are_refused_with_a_code(name: str, content: str, code: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    lint = validate(path)
    assert [issue.code for issue in lint.issues] == [code] and lint.exit_code() == 2
    with pytest.raises(CardError) as error:
        read_data(path)
    assert error.value.code == code


def test_a_file_of_50_mb_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with path.open("wb") as handle:
        handle.truncate(50_000_000)
    assert [issue.code for issue in validate(path).issues] == ["E-SIZE"]
    assert MAX_BYTES == 5_000_000


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    path.write_bytes(b"\xff\xfe{}")
    assert [issue.code for issue in validate(path).issues] == ["E-ENCODING"]


@QUICK
@given(content=st.binary(max_size=300), suffix=st.sampled_from([".json", ".yaml", ".md"]))
def test_any_bytes_give_a_lint(content: bytes, suffix: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    path.write_bytes(content)
    assert validate(path).issues


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.dictionaries(
        st.sampled_from(["card_type", "subject", "policy", "issued", "statements", "x"]), PLAIN
    )
)
def test_any_data_gives_a_lint(data: dict[str, Any]) -> None:
    for kind in ("openness", "rlhf", "challenges"):
        lint = validate({**data, "card_type": kind}, level=3)
        assert isinstance(lint.exit_code(), int)


def test_yaml_means_what_json_means() -> None:
    """No dates, no `no` for false, no octal surprises in keys."""
    assert parse_yaml("a: no\nb: 2025-01-01\nc: on\nd: true\ne: ~\n") == {
        "a": "no",
        "b": "2025-01-01",
        "c": "on",
        "d": True,
        "e": None,
    }


def test_exports_of_others_say_only_what_is_disclosed(tmp_path: Path) -> None:
    card = to_card(release(tmp_path))
    spdx = json.loads(export(card, "spdx"))
    kinds = [element["type"] for element in spdx["@graph"]]
    assert kinds.count("ai_AIPackage") == 1 and "SpdxDocument" in kinds
    cyclone = json.loads(export(card, "cyclonedx"))
    assert cyclone["specVersion"] == "1.6" and cyclone["components"][0]["name"] == "example-chat"
    assert cyclone["components"][0]["pedigree"]["ancestors"][0]["name"] == "example-base"
    with pytest.raises(CardError, match="did you mean 'yaml'"):
        export(card, "yml")
