"""ShareGPT4V's SFT records for the test of mutations."""

import json

from tests.dataprep.datasets.samples.mix665k import good, marker

__all__ = ["good", "marker", "write"]


def write(folder, records):
    """Write the raw layout."""
    folder.mkdir(parents=True)
    (folder / "sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.json").write_text(
        json.dumps(records, default=str), "utf-8"
    )
