"""COCO's evaluation of one kind, by faster-coco-eval or by pycocotools: the same arrays from either.

What is laid out once (masks, IoUs) serves any number of countings, each of which ignores other ground truths.
"""

import contextlib
import io
from typing import Any, Literal

import faster_coco_eval as fast
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Kind = Literal["bbox", "segm"]
Scorer = Literal["faster_coco_eval", "pycocotools"]
Annotations = list[dict[str, Any]]


class FastEvaluator(fast.COCOeval_faster):
    """faster-coco-eval on a ground truth and results that `evaluator` copied for it."""

    counted: set[int] | None = None

    def __init__(self, coco: dict[str, Any], results: Annotations, kind: Kind):
        """Lay out the ground truth and the results."""
        truth = fast.COCO(coco)
        found = truth.loadRes(results)
        # Results that no ground truth is compared with: unpacking their masks would be most of the work.
        wanted = {(item["image_id"], item["category_id"]) for item in coco["annotations"]}
        self._idle = [item for item in results if (item["image_id"], item["category_id"]) not in wanted]
        found.dataset["annotations"] = [
            item for item in results if (item["image_id"], item["category_id"]) in wanted
        ]
        found.createIndex()
        super().__init__(truth, found, kind, rle_iou_max_workers=1)
        self._overlaps: dict[tuple[int, int], Any] = {}
        self._laid_out = False

    def score(self, counted: set[int] | None) -> tuple[np.ndarray, np.ndarray]:
        """Return precision [T, R, K, A, M] and recall [T, K, A, M], -1 where undefined."""
        self.counted = counted
        self.evaluate()
        self.accumulate()
        return self.eval["precision"], self.eval["recall"]

    def _prepare(self) -> None:
        if not self._laid_out:
            super()._prepare()
            known = set(self.params.catIds)
            for item in self._idle:
                if item["category_id"] in known:
                    self.dt_dataset.append_ref(item["image_id"], item["category_id"], item)
            self._laid_out = True
        ignore_uncounted(self.cocoGt.dataset["annotations"], self.counted)

    def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: N802, N803 (the library's names)
        """Return the IoUs of a pair, computed at its first asking."""
        if (imgId, catId) not in self._overlaps:
            self._overlaps[imgId, catId] = super().computeIoU(imgId, catId)
        return self._overlaps[imgId, catId]


class ReferenceEvaluator(COCOeval):
    """pycocotools itself, which defines what COCO's AP is; several times slower."""

    counted: set[int] | None = None

    def __init__(self, coco: dict[str, Any], results: Annotations, kind: Kind):
        """Lay out the ground truth and the results."""
        truth = COCO()
        truth.dataset = coco
        with contextlib.redirect_stdout(io.StringIO()):
            truth.createIndex()
            found = truth.loadRes(results) if results else _nothing(truth)
            super().__init__(truth, found, kind)

    def score(self, counted: set[int] | None) -> tuple[np.ndarray, np.ndarray]:
        """Return precision [T, R, K, A, M] and recall [T, K, A, M], -1 where undefined."""
        self.counted = counted
        with contextlib.redirect_stdout(io.StringIO()):
            self.evaluate()
            self.accumulate()
        return self.eval["precision"], self.eval["recall"]

    def _prepare(self) -> None:
        # It adds to what an earlier counting laid out.
        self._gts.clear()
        self._dts.clear()
        super()._prepare()
        ignore_uncounted(self.cocoGt.dataset["annotations"], self.counted)


EVALUATORS = {"faster_coco_eval": FastEvaluator, "pycocotools": ReferenceEvaluator}


def evaluator(
    coco: dict[str, Any], results: Annotations, kind: Kind, scorer: Scorer = "faster_coco_eval"
) -> FastEvaluator | ReferenceEvaluator:
    """Return an evaluator; neither the ground truth nor the results are changed.

    Args:
        coco: ground truth from `coco_ap.prepare_annotations`.
        results: COCO results, in the order in which ties are broken.
        kind: "bbox" or "segm".
        scorer: which library.
    """
    truth = {**coco, "annotations": [dict(annotation) for annotation in coco["annotations"]]}
    return EVALUATORS[scorer](truth, [dict(result) for result in results], kind)


def ignore_uncounted(annotations: Annotations, counted: set[int] | None) -> None:
    """Set `ignore` of prepared annotations: crowds, and what is not among the counted ids (None: all are).

    To be called after an evaluator's own preparation, which overwrites `ignore` with `iscrowd`.
    """
    for annotation in annotations:
        uncounted = counted is not None and annotation["id"] not in counted
        annotation["ignore"] = int(bool(annotation["iscrowd"]) or uncounted)


def _nothing(truth: COCO) -> COCO:
    # pycocotools' loadRes looks at the first result.
    empty = COCO()
    empty.dataset = {**truth.dataset, "annotations": []}
    empty.createIndex()
    return empty
