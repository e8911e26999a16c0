"""YAML 1.2's core schema with places, and files that were made to hurt."""

from __future__ import annotations

import math

import pytest
import yaml

from surefoot.errors import UsageError
from surefoot.recipe.nodes import Broken, Refused, Scalar
from surefoot.recipe.yaml_source import decode, read_tree, resolve

# From the tables of https://yaml.org/spec/1.2.2/#103-core-schema, and where YAML 1.1 says otherwise.
SCALARS = [
    ("1e-3", 0.001),
    ("1E3", 1000.0),
    ("+.5", 0.5),
    ("5.", 5.0),
    ("-0", 0),
    ("012", 12),
    ("-7", -7),
    ("0o17", 15),
    ("0x1F", 31),
    ("1:30", "1:30"),
    ("1_000", "1_000"),
    ("0b11", "0b11"),
    ("no", "no"),
    ("yes", "yes"),
    ("On", "On"),
    ("y", "y"),
    ("true", True),
    ("FALSE", False),
    ("tRue", "tRue"),
    ("null", None),
    ("~", None),
    ("nULL", "nULL"),
    ("2024-01-02", "2024-01-02"),
    (".inf", math.inf),
    ("-.INF", -math.inf),
    (".", "."),
    ("1e", "1e"),
    ("e3", "e3"),
    ("٣", "٣"),
    ("-", "-"),
    ("=", "="),
]


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_plain_scalars_mean_what_yaml_1_2_says(text, value):
    found = resolve(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["epochs: 1e-3", "- no\n- 012", "a: {b: [1, 'x: y', \"\\u00e9\"]}\nc: |\n  two\n  lines\n"]
)
def test_the_tree_is_pyyaml_s_but_for_scalars(text):
    def strings(node):
        if isinstance(node, Scalar):
            return node.text
        if hasattr(node, "items"):
            return [strings(item) for item in node.items]
        return {key: strings(value) for key, value in node.entries.items()}

    assert strings(read_tree(text, "r", [])) == yaml.load(text, Loader=yaml.BaseLoader)


def test_quoted_and_tagged_scalars_keep_their_type():
    tree = read_tree("a: '1'\nb: !!str 1\nc: ! 1\nd: !!float 1\ne: !!int '7'", "r", [])
    assert [node.value for node in tree.entries.values()] == ["1", "1", "1", 1.0, 7]


def test_every_node_knows_its_line_and_column():
    tree = read_tree("a: 1\nb:\n  - é: [x,  y]\n", "r.yaml", [])
    inner = tree.entries["b"].items[0].entries["é"].items[1]
    assert str(inner.where) == "r.yaml:3:13"


def refusal(text: str) -> str:
    """All that is told about a text: what is noted and what is raised."""
    problems: list = []
    try:
        read_tree(text, "r", problems)
    except Refused as error:
        problems.append(error)
    return "\n".join(map(str, problems))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "r:3:1: 'a' is given twice; it first stands at r:1:1"),
        ("a: !!python/object:os.system x", "r:1:4: the tag '!!python/object:os.system' is not supported"),
        ("a: !mine [1]", "r:1:4: the tag '!mine' is not supported"),
        ("a: !!int x", "r:1:4: 'x' is no !!int"),
        ("a: !!seq {}", "r:1:4: the tag '!!seq' is not supported"),
        ("x: &a {b: 1}\ny:\n  <<: *a", "r:3:3: merge keys (<<) are not in YAML 1.2; write the keys out"),
        ("1: 2", "r:1:1: the key 1 is not text; put it in quotation marks"),
        ("~: 2", "r:1:1: the key ~ is not text"),
        ("? [a]\n: 1", "r:1:3: a list or a mapping cannot be a key"),
        ("a: .nan", "r:1:4: .nan (not a number) is no setting"),
        ("a: " + "9" * 5000, "r:1:4: a number of 5000 digits is more than can be read"),
        ('a: "\\ud800"', "r:1:4: half of a surrogate pair is no character"),
        ("a: *.bias", "r:1:4: not valid YAML: a text that begins with * or & needs quotation marks"),
        ("a: *bias", "r:1:4: *bias names no &bias above it; a text that begins with * needs quotation marks"),
        ("a: &a [*a]", "r:1:8: *a stands inside the value that it names"),
        ("a:\n\tb: 1", "r:2:1: a tab stands where YAML wants spaces; indent with spaces"),
        ("a: b: c", "r:1:5: not valid YAML: a ':' that nothing expects"),
        ("a: 1\n b: 2", "r:2:3: not valid YAML: a ':' that nothing expects; look at the indentation here"),
        ("a:\n  b: 1\n c: 2", "r:3:2: not valid YAML: the indentation of this line matches no line above it"),
        ("a: [1, 2", "r:1:9: not valid YAML: while parsing a flow sequence, expected ',' or ']', but got 'the end"),
        ("a: [1,\n2\n", "while parsing a flow sequence that begins on line 1, expected"),
        ("a: 'x", "r:1:6: not valid YAML: while scanning a quoted scalar, found unexpected end of stream"),
        ("a: @x", "r:1:4: not valid YAML: found character '@' that cannot start any token; a text that begins so"),
        ('a: "\\UFFFFFFFF"', "not valid YAML after this"),
        ("%YAML 3.1\n---\na: 1", "r:1:1: not valid YAML: found incompatible YAML document"),
        ("a: 1\n---\nb: 2", "r:2:1: a second document begins here; a recipe is one"),
        ("a: \0", "r:1:4: the character U+0000 cannot stand in YAML"),
        ("a:\n- b\x07", "r:2:4: the character U+0007 cannot stand in YAML"),
    ],
)
def test_what_a_recipe_cannot_hold_is_refused_with_its_place(text, message):
    told = refusal(text)
    assert told.startswith(message) or (message in told and not message.startswith("r:")), told
    assert "Traceback" not in told and "yaml." not in told


def test_mistakes_that_leave_a_tree_are_told_together_and_the_rest_is_read():
    problems: list = []
    tree = read_tree("a: !x 1\na: 2\n3: 4\nb: 5", "r", problems)
    assert [str(p.where) for p in problems] == ["r:1:4", "r:2:1", "r:3:1"]
    assert isinstance(tree.entries["a"], Broken) and tree.entries["b"].value == 5


@pytest.mark.parametrize("text", ["", "# a comment\n", "---\n", "---\n...\n", "\n\n", "\ufeff"])
def test_a_text_without_a_document_is_none(text):
    assert read_tree(text, "r", []) is None


def test_anchors_and_aliases_stand_for_the_same_value():
    tree = read_tree("a: &x [1, 2]\nb: *x", "r", [])
    assert tree.entries["b"] is tree.entries["a"]


BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "values, counting each use of an alias"),
        ("[" * 500_000, "nested more than 50 deep"),
        ("{a: " * 200_000, "nested more than 50 deep"),
        ("- " * 200_000, "nested more than 50 deep"),
        ("? " * 200_000, "nested more than 50 deep"),
        ("[" + "1," * 60_000 + "]", "more than 50,000 values"),
    ],
    ids=["aliases", "brackets", "braces", "dashes", "questions", "values"],
)
def test_trees_made_to_hurt_are_refused_within_bounds(text, message):
    assert message in refusal(text)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"a: 1\nb: caf\xe9", "r:2:7: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        ("a: 1".encode("utf-16"), "r:1:1: the file is UTF-16; save it as UTF-8"),
    ],
)
def test_other_encodings_are_named(raw, message):
    with pytest.raises(UsageError) as caught:
        decode(raw, "r")
    assert str(caught.value) == message


def test_a_byte_order_mark_is_no_part_of_the_text():
    assert decode(b"\xef\xbb\xbfa: 1", "r") == "a: 1"
