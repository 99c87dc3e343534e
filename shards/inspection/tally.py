"""What is counted while the samples of a data set go by, one at a time."""

from array import array
from collections import Counter

import numpy as np

from shards.boxes import largest_overlap
from shards.masks import decode_mask

# COCO's bounds of small and medium instances.
SMALL_PX, MEDIUM_PX = 32**2, 96**2


class Tally:
    """Counts over samples; crowds are counted, and in none of the measures.

    Attributes:
        instances, crowds, empty: how many instances and crowds there are, and images without either.
        areas: px of each instance; of its mask where the source states none.
        overlaps: of each instance, the largest IoU of its box with another instance's in the image.
        categories: instances of each category id.
    """

    def __init__(self, names: dict[int, str]):
        self.names = names
        self.crowds = self.empty = 0
        # Eight bytes a number: there may be millions.
        self.areas, self.overlaps = array("d"), array("d")
        self.categories: Counter = Counter(dict.fromkeys(names, 0))

    @property
    def instances(self) -> int:
        """How many annotations are no crowds."""
        return len(self.areas)

    def add(self, sample: dict) -> None:
        """Count one sample: the content of its KEY.json."""
        annotations = sample["annotations"]
        self.empty += not annotations
        single = [not annotation.get("iscrowd", 0) for annotation in annotations]
        self.crowds += len(annotations) - sum(single)
        self.overlaps.extend(largest_overlap(annotations)[np.array(single, bool)])
        for annotation, counts in zip(annotations, single, strict=True):
            if counts:
                self.areas.append(_area(annotation, sample))
                self.categories[annotation["category_id"]] += 1

    def by_name(self) -> dict[str, int]:
        """Return the instances of each category name; two categories of one name are added up."""
        found: Counter = Counter()
        for category, name in self.names.items():
            found[name] += self.categories[category]
        return dict(found)


def _area(annotation: dict, sample: dict) -> float:
    stated = annotation.get("area")
    if stated is not None:
        return stated
    return float(decode_mask(annotation["segmentation"], sample["height"], sample["width"]).sum())
