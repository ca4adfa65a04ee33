"""What changed between two runs, in words."""

import pytest

from dataprep.provenance import differences

CASES = [
    ({"seed": 0, "same": 1}, {"seed": 1, "same": 1}, ["seed was 0, is 1"]),
    ({"limit": None}, {"limit": 5}, ["limit was null, is 5"]),
    ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, ["a.b.1 was 2, is 3"]),
    ({"a": [1]}, {"a": [1, 2]}, ["a was 1 entries, is 2 entries"]),
    ({"a": "x" * 99}, {"a": "y"}, [f'a was "{"x" * 56}..., is "y"']),
    (
        {"inputs": [{"file": "a", "sha256": "1"}, {"file": "b", "sha256": "2"}]},
        {"inputs": [{"file": "a", "sha256": "3"}, {"file": "c", "sha256": "2"}]},
        ['inputs.a.sha256 was "1", is "3"', "inputs.c was null, is there", "inputs.b was there, is null"],
    ),
    (
        {"inputs": [{"file": "a"}, {"file": "b"}]},
        {"inputs": [{"file": "b"}, {"file": "a"}]},
        ["the order of inputs was a, b, is b, a"],
    ),
    (
        {"sources": [{"file": "a", "max": 1}, {"file": "a", "max": 2}]},
        {"sources": [{"file": "a", "max": 1}, {"file": "a", "max": 3}]},
        ["sources.1.max was 2, is 3"],
    ),
    ({"a": {"x": 1, "y": 2}}, {"a": {"y": 2, "x": 1}}, []),
    ({"inputs": []}, {"inputs": [{"file": "a"}]}, ["inputs was 0 entries, is 1 entries"]),
]


@pytest.mark.parametrize(("before", "now", "said"), CASES)
def test_each_change_is_named_with_both_values(before, now, said):
    assert list(differences(before, now)) == said
