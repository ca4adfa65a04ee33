"""A folder of two shards, and a place of each test's own for what a node remembers."""

import signal
import tempfile

import pytest

from tests.dataprep.shards import made


@pytest.fixture
def layout():
    return made.a_layout()


@pytest.fixture
def folder(tmp_path):
    """Two shards with their manifest, as `to-h5` leaves them."""
    rows = made.rows(7)
    return made.write_folder(tmp_path / "shards", rows[:4], rows[4:])


@pytest.fixture(autouse=True)
def terminable():
    """A command run in this process leaves its own answer to SIGTERM, which forked workers would inherit."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(autouse=True)
def node(tmp_path_factory, monkeypatch):
    """The temporary folder of this node."""
    place = tmp_path_factory.mktemp("node")
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setenv("TMPDIR", str(place))
    return place
