"""The contract between the compiler and everything that trains: one file format, its writer and its reader.

Imports nothing of ours and only numpy, h5py and isal. The format is described in `README.md` beside this file.
"""

from dataprep.shards.layout import FEATURES, FORMAT_VERSION, Row, RowLayout, ShardError, StoredRow
from dataprep.shards.reader import ShardReader
from dataprep.shards.writer import ShardWriter, publish, sync_folder

__all__ = [
    "FEATURES",
    "FORMAT_VERSION",
    "Row",
    "RowLayout",
    "ShardError",
    "ShardReader",
    "ShardWriter",
    "StoredRow",
    "publish",
    "sync_folder",
]
