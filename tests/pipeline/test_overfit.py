"""M13: on one image the whole recipe learns, and refinement does not undo it."""

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from configs.schema import Refine, Sara, Test
from pipeline.model import build_model
from tests.pipeline.tiny import CLASSES, MODEL, tiny_base, tiny_target, total

TEST = Test(score=0.05, topk=20)


def scene():
    """Return an image on which every object of the target has its own colour."""
    target = tiny_target(11, 3)
    image = torch.full((3, 96, 96), 0.4)
    for mask, label in zip(target["masks"], target["labels"], strict=True):
        image[:, mask.bool()] = torch.eye(3)[label - 1][:, None]
    return image, target


def fit(model, image, target, steps, lr):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr, momentum=0.9)
    model.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 20)
        optimizer.zero_grad()
        total(model([image], [{**target, "position": step}], 0)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    return model.eval()


def average_precision(model, image, target):
    found = model([image])[0]
    truth = {"images": [{"id": 1, "height": 96, "width": 96}], "info": {}}
    truth["categories"] = [{"id": label} for label in range(1, CLASSES)]
    rows = zip(target["boxes"], target["labels"], target["masks"], strict=True)
    truth["annotations"] = [
        {**entry(b, label, m), "id": i + 1, "iscrowd": 0, "area": int(m.sum())}
        for i, (b, label, m) in enumerate(rows)
    ]
    rows = zip(found["boxes"], found["labels"], found["masks"], found["scores"], strict=True)
    results = [{**entry(b, label, m), "score": float(score)} for b, label, m, score in rows]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def entry(box, label, mask):
    x1, y1, x2, y2 = box.tolist()
    encoded = rle.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return {
        "image_id": 1,
        "category_id": int(label),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "segmentation": encoded,
    }


@pytest.fixture
def one_thread():
    """Sums that do not depend on which tests ran before, or on how many cores there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_one_image_is_learnt_and_refinement_keeps_it(one_thread):
    image, target = scene()
    base = fit(tiny_base(TEST), image, target, 100, 0.02)
    before = average_precision(base, image, target)
    refined = build_model(MODEL, CLASSES, Refine(freeze_base=True), Sara(), TEST)
    refined.load_baseline(base.state_dict())
    fit(refined, image, target, 80, 0.01)
    after = average_precision(refined, image, target)
    print(before, after)
    assert before > 0.6
    assert after >= before - 0.02
