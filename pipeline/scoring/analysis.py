"""What a comparison needs of one evaluated network, worked out once: resamples, curve, single images.

Reports of many rows are then made in seconds, and any two rows on the same images can be paired.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.scoring.bootstrap import Resampled, resample
from pipeline.scoring.coco_ap import evaluate_countings
from pipeline.scoring.evaluators import Annotations, Kind
from pipeline.scoring.huddled import huddledness, ids_from
from pipeline.scoring.matches import image_precisions, match_countings
from shards.boxes import HUDDLED_IOU
from shards.storage.files import write_atomic

RESAMPLES = 500
KINDS: tuple[Kind, ...] = ("bbox", "segm")
# (name, huddled only, kind)
MEASURES = (
    ("box AP", False, "bbox"),
    ("mask AP", False, "segm"),
    ("huddled box AP", True, "bbox"),
    ("huddled mask AP", True, "segm"),
)
# Huddledness from which an instance counts; at 0.3 the curve is `huddled` AP.
LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
Tree = dict[str, Any]


def analyse(coco: Tree, results: Annotations, resamples: int = RESAMPLES) -> Tree:
    """Return the analysis of COCO results as plain JSON.

    `resampled`: measure -> AP of the whole set and of its resamples; `huddledness`: per level the AP of
    instances at least that huddled, and how many count; `images`: image id -> mask AP of the image alone.

    Args:
        coco: ground truth from `coco_ap.prepare_annotations`; neither it nor `results` is changed.
        results: COCO results.
        resamples: of the images, the same ones for every result on them.
    """
    overlaps = huddledness(coco["annotations"])
    countings = {False: None, True: ids_from(overlaps, HUDDLED_IOU)}
    resampled, images = {}, {}
    for kind in KINDS:
        matches = dict(
            zip(countings, match_countings(coco, results, kind, [*countings.values()]), strict=True)
        )
        for measure, huddled, of_kind in MEASURES:
            if of_kind == kind and coco["categories"]:
                resampled[measure] = _packed(resample(matches[huddled], resamples))
        if kind == "segm":
            ids = sorted(image["id"] for image in coco["images"])
            images = {str(i): ap for i, ap in zip(ids, image_precisions(matches[False]), strict=False)}
    return {"resampled": resampled, "huddledness": _curve(coco, results, overlaps), "images": images}


def save_analysis(path: Path, tree: Tree) -> None:
    """Write an analysis, wholly or not at all."""
    write_atomic(path, json.dumps(tree, allow_nan=False).encode() + b"\n")


def resampled_of(analysis: Tree, measure: str) -> Resampled:
    """Return a measure's resamples, ready to be paired with another row's."""
    packed = analysis["resampled"][measure]
    drawn = [np.nan if value is None else value for value in packed["drawn"]]
    return Resampled(packed["whole"], np.array(drawn), packed["seed"])


def _packed(found: Resampled) -> Tree:
    drawn = [None if np.isnan(value) else float(value) for value in found.drawn]
    return {"whole": found.whole, "drawn": drawn, "seed": found.seed}


def _curve(coco: Tree, results: Annotations, overlaps: dict[int, float]) -> list[Tree]:
    countings = [ids_from(overlaps, level) for level in LEVELS]
    crowds = {annotation["id"] for annotation in coco["annotations"] if annotation["iscrowd"]}
    found = {kind: evaluate_countings(coco, results, kind, [*countings]) for kind in KINDS}
    return [
        {
            "least": level,
            "instances": len(counted - crowds),
            **{kind: found[kind][place][0]["AP"] for kind in KINDS},
        }
        for place, (level, counted) in enumerate(zip(LEVELS, countings, strict=True))
    ]
