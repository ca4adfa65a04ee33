"""Cutting a JSON array into its elements, at every block size and with everything that may stand in a string."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataprep import json_stream
from dataprep.errors import CommandError
from dataprep.json_stream import array_elements, is_array

TEXT = st.text('ab"\\[]{},: \n\u2028é', max_size=12)
VALUES = st.recursive(
    TEXT | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=300)
@given(
    values=st.lists(VALUES, max_size=5),
    block=st.sampled_from([1, 2, 3, 5, 64, 1 << 20]),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
    bom=st.booleans(),
)
def test_the_elements_are_those_of_the_array(tmp_path_factory, values, block, indent, ascii_only, bom):
    path = tmp_path_factory.mktemp("array") / "a.json"
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only) + "\n"
    path.write_bytes(b"\xef\xbb\xbf" * bom + text.encode())
    json_stream.BLOCK_BYTES, before = block, json_stream.BLOCK_BYTES
    try:
        found = [json.loads(element) for element in array_elements(path)]
    finally:
        json_stream.BLOCK_BYTES = before
    assert found == values
    assert is_array(path)


def test_a_bad_element_costs_itself_alone(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"a": 1}, {"a": "\xff"}, {broken}, {"a": 2}]')
    assert list(array_elements(path)) == [b'{"a": 1}', b'{"a": "\xff"}', b"{broken}", b'{"a": 2}']


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a"', '[{"a": "', "[1, 2"])
def test_a_file_cut_short_is_said_to_be(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(CommandError, match=r"a\.json: the file ends inside the array"):
        list(array_elements(path))


def test_text_behind_the_array_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[1]\n[2]")
    with pytest.raises(CommandError, match="text follows the end of the array"):
        list(array_elements(path))


def test_a_jsonl_file_is_no_array(tmp_path):
    (tmp_path / "a").write_text('{"a": [1]}\n')
    assert not is_array(tmp_path / "a")
