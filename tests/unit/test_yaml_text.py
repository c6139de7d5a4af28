"""YAML that is read as JSON would be: what there is no JSON for is refused with its line."""

from __future__ import annotations

import pytest

from miniflow.yaml_text import BadYaml, has_key, read_yaml

LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))


def test_what_json_has_is_read_with_anchors_and_merged_keys() -> None:
    text = """
    base: &base {queue: slow, priority: 1}
    steps:
      - <<: *base
        priority: 2
        payload: {n: 1.5, none: null, on: "yes", flag: true, text: "${input.day}"}
    """
    assert read_yaml(text.replace("on:", '"on":')) == {
        "base": {"queue": "slow", "priority": 1},
        "steps": [
            {
                "queue": "slow",
                "priority": 2,
                "payload": {"n": 1.5, "none": None, "on": "yes", "flag": True, "text": "${input.day}"},
            }
        ],
    }
    assert read_yaml("# nothing\n") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nday: 2026-01-31", "line 2: a date, which JSON does not have; put it in quotes"),
        ("at: 2026-01-31T10:00:00Z", "line 1: a date"),
        ("a: !!binary aGk=", "binary data"),
        ("a: !!set {b}", "a set, which JSON does not have"),
        ("a: !!python/object/apply:os.system ['true']", "os.system"),
        ("a: !Ref b", "'!Ref', which JSON does not have"),
        ("on: 1", "the key 'on' is no text"),
        ("1: a", "the key '1' is no text"),
        ("[a]: b", "no text"),
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' stands here already"),
        ("at: 12:30:00", "12:30:00 is a number to the base of 60"),
        ("a: .inf", ".inf, which JSON does not have"),
        ("a: .nan", ".nan"),
        ("a: 36893488147419103232", "more than 64 bits"),
        ("a: !!int x", "'x' is no int"),
        ("a: [", "line 1: while parsing a flow node"),
        ("a: 1\n---\nb: 1", "line 3: a second document begins"),
        ("a: *b", "undefined alias"),
        ("a: &a [*a]", "nested too deep, or in itself"),
        ("<<: 1", "expected a mapping"),
        ("[" * 5000, "nested too deep"),
        (LAUGHS, "aliases make too much"),
        ("a: \x00", "special characters are not allowed"),
    ],
)
def test_what_json_has_not_is_refused_with_its_line(text: str, says: str) -> None:
    with pytest.raises(BadYaml) as told:
        read_yaml(text)
    assert says in str(told.value)
    assert "\n" not in str(told.value)


def test_whether_a_file_is_ours_is_seen_without_making_values_of_it() -> None:
    assert has_key("day: 2026-01-31\nsteps: []", "steps")
    assert not has_key("kind: a\n---\nkind: b", "steps")
    assert not has_key("- steps", "steps")
