"""Which class row stands for which category: the data's own order, or that of the weights to start from."""

from pathlib import Path
from typing import Any

from pipeline.network.weights import is_safetensors, load_meta
from shards.read import ShardDataset


def adopt_labels(dataset: ShardDataset, weights: str | Path | None) -> None:
    """Give a data set the labels of the weights that training starts from, where those know more categories.

    torchvision's COCO model has 91 rows, of which the data's 80 categories use 80. Its softmax is over all of
    them, so the rows stay, and the data's labels become theirs. Weights that do not hold every category of
    the data, by id and name, change nothing; loading them then says what is wrong.
    """
    if weights is None or not is_safetensors(weights):
        return
    rows = load_meta(weights).get("categories", [])
    if not _contains(rows, dataset.categories) or len(rows) == len(dataset.categories):
        return
    dataset.categories = [{"id": row["id"], "name": row["name"]} for row in rows]
    dataset.category_of = [0, *(row["id"] for row in rows)]
    dataset.label_of = {row["id"]: label for label, row in enumerate(rows, 1)}


def _contains(rows: list[dict[str, Any]], categories: list[dict[str, Any]]) -> bool:
    known = {row["id"]: row["name"] for row in rows}
    return all(known.get(category["id"]) == category["name"] for category in categories)
