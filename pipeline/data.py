"""From a sample of the shards to what the network trains on, and the loader that brings it."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from configs.schema import Config, Schedule
from pipeline.heap import keep_freed_memory
from pipeline.network.gt_masks import GroundTruthMasks
from shards.batches import GlobalBatches
from shards.errors import BadInput, CorruptSample
from shards.masks import compress_mask
from shards.order import SampleOrder
from shards.read import Sample, ShardDataset
from shards.storage.ahead import Ahead
from shards.window import WindowOrder

# A box thinner than this has no area in float32 to match anything with.
MIN_SIDE_PX = 1e-2
# Replacements of one sample in turn; with fewer than half of the samples corrupt, that many never happen.
MAX_REPLACED = 64

Batch = list[tuple[Tensor, dict[str, Any]]]


class TrainingSamples(Dataset):
    """Samples by (position in the order, index in the shards): the position seeds all chance.

    With `on_corrupt="quarantine"`, another sample stands in for a corrupt one, chosen by the position too,
    so that the same one does on every rank and after every resume.
    """

    def __init__(self, dataset: ShardDataset, seed: int, hflip: float, on_corrupt: str = "fail"):
        self.dataset, self.seed, self.hflip, self.on_corrupt = dataset, seed, hflip, on_corrupt

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, dict[str, Any]]:
        """Return (image uint8 [3, H, W], target) of one sample, flipped by its position's chance.

        The target is `training_target`'s, `position`, and `corrupt`: what is wrong with each sample that
        this one stands in for, mostly nothing.

        Raises:
            CorruptSample: with `on_corrupt="fail"`, the sample; else, so many that something else is wrong.
        """
        position, index = place
        image, target = self._sound(position, index)
        if self._chance(position, "hflip").random() < self.hflip:
            image, target = flip(image, target)
        return image, {**target, "position": position}

    def _sound(self, position: int, index: int) -> tuple[Tensor, dict[str, Any]]:
        corrupt: list[str] = []
        while True:
            try:
                image, target = self._load(index)
                return image, {**target, "corrupt": corrupt}
            except CorruptSample as error:
                if self.on_corrupt == "fail" or len(corrupt) == MAX_REPLACED:
                    raise
                corrupt.append(str(error))
            index = self._chance(position, f"replacement/{len(corrupt)}").randrange(len(self.dataset))

    def _load(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        sample = self.dataset[index]
        try:
            return sample.image, training_target(sample, self.dataset.label_of)
        except (BadInput, KeyError, TypeError, ValueError) as error:
            # The last three are of shards that somebody else wrote.
            reason = error if isinstance(error, BadInput) else f"an annotation is not COCO's ({error!r:.80})"
            where = f"{self.dataset.directory}, image {sample.image_id}"
            raise CorruptSample(f"{where}: {reason}; make the shards again") from None

    def _chance(self, position: int, what: str) -> random.Random:
        return random.Random(f"{self.seed}/{position}/{what}")


def training_target(sample: Sample, label_of: dict[int, int]) -> dict[str, Any]:
    """Return boxes [G, 4] xyxy px, labels [G] 1..K, masks (`GroundTruthMasks`, G) and the image id.

    Crowds are left out, as torchvision's reference does, and so are boxes without area: no RoI can
    match them. G may be 0.
    """
    height, width = sample.height, sample.width
    boxes, labels, masks = [], [], []
    for annotation in sample.annotations:
        x, y, w, h = annotation["bbox"]
        box = [max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)]
        thin = min(box[2] - box[0], box[3] - box[1]) < MIN_SIDE_PX
        if thin or annotation.get("iscrowd", 0):
            continue
        boxes.append(box)
        labels.append(label_of[annotation["category_id"]])
        masks.append(compress_mask(annotation["segmentation"], height, width))
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": GroundTruthMasks(masks, (height, width)),
        "image_id": sample.image_id,
    }


def flip(image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Return image and target mirrored left to right; boxes stay xyxy with x1 < x2."""
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    width = image.shape[-1]
    boxes = torch.stack([width - x2, y1, width - x1, y2], 1)
    return image.flip(-1), {**target, "boxes": boxes, "masks": target["masks"].flip()}


def sample_order(dataset: ShardDataset, config: Config) -> SampleOrder | WindowOrder:
    """Return the order that every training stage takes the samples in."""
    if config.data.order == "window":
        return WindowOrder(dataset.shard_sizes, config.data.order_window, config.seed, dataset.hash)
    return SampleOrder(len(dataset), config.seed, dataset.hash)


def training_batches(
    dataset: ShardDataset, config: Config, schedule: Schedule, rank: int, world: int, start_step: int
) -> Iterator[Batch]:
    """Return this rank's micro-batches from `start_step` to the end, `accumulate` of them a step.

    What is yielded depends on nothing but its arguments: not on workers, nor on what was read before.
    """
    order = sample_order(dataset, config)
    batches = GlobalBatches(
        order,
        aspects=dataset.entries.aspects,
        batch=schedule.batch,
        accumulate=schedule.accumulate,
        rank=rank,
        world=world,
        start_step=start_step,
        stop_step=schedule.iters,
        aspect_window=config.train.aspect_window,
    )
    samples = TrainingSamples(dataset, config.seed, config.train.hflip, config.data.on_corrupt)
    workers = config.data.loader_workers
    prefetch = 4 if workers else None
    loader = DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=packed,
        prefetch_factor=prefetch,
        worker_init_fn=keep_freed_memory,
    )
    ahead = Ahead(dataset, order, schedule.iters * schedule.batch)
    try:
        for number, batch in enumerate(loader, start_step * schedule.accumulate):
            ahead.reached(number // schedule.accumulate * schedule.batch)
            yield unpacked(batch)
    except (BadInput, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        # A loader process puts its traceback before the line that the user needs.
        line = str(error).strip().splitlines()[-1]
        kind = BadInput if isinstance(error, BadInput) else OSError
        raise kind(line.partition(f"{type(error).__name__}: ")[2] or line) from None
    finally:
        ahead.close()


def packed(batch: Batch) -> list[tuple[Tensor, dict[str, Any]]]:
    """Return what a loader process sends: but for the image, tensors cost more to hand over than to copy."""
    return [(image, _each(target, Tensor, Tensor.numpy)) for image, target in batch]


def unpacked(batch: list[tuple[Tensor, dict[str, Any]]]) -> Batch:
    """Return the batch that was `packed`."""
    return [(image, _each(target, np.ndarray, torch.from_numpy)) for image, target in batch]


def _each(target: dict[str, Any], kind: type, change: Callable) -> dict[str, Any]:
    return {key: change(value) if isinstance(value, kind) else value for key, value in target.items()}


def first_batch(dataset: ShardDataset, config: Config) -> tuple[list[Tensor], list[dict[str, Any]], int]:
    """Return (images, targets, seed) of the refining stage's first global batch, the same on every rank."""
    schedule = config.train.refine.model_copy(update={"accumulate": 1, "iters": 1})
    batch = next(training_batches(dataset, config, schedule, 0, 1, 0))
    return *to_network(batch, torch.device("cpu")), config.seed


def to_network(batch: Batch, device: torch.device) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Return images as floats in 0..1 and targets, both on a device."""
    images = [image.to(device).float().div_(255) for image, _ in batch]
    targets = [
        {key: value.to(device) if isinstance(value, Tensor) else value for key, value in target.items()}
        for _, target in batch
    ]
    return images, targets
