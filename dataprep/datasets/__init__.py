"""Raw dataset to conversations: one file a dataset, and the table of them."""

from dataprep.datasets import chartqa, json_file
from dataprep.datasets.base import Dataset

#: A new dataset is a file beside this one and a line here.
DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        chartqa.DATASET,
        json_file.DATASET,
    )
}
