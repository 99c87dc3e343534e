"""Loading: samples ready for the network against decode and resize alone, and against CocoDetection."""

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.functional import pil_to_tensor

from configs.schema import Model
from pipeline.data import TrainingSamples, packed, unpacked
from pipeline.network.transform import build_transform
from shards.masks import decode_mask
from shards.read import ShardDataset

BATCH = 4
# Two decoders of JPEG may round a pixel differently: two steps of 255.
PIXEL_ERROR = 2.01 / 255
BOX_ERROR_PX = 0.01
THIN_PX = 0.01

# The masks that a network trains on are resized with the image; the second one leaves that to others.
PEERS = ("CocoDetection", "CocoDetection with masks as stored", "CocoDetection with masks")

RESIZE = build_transform(Model()).resize


class Ours(Dataset):
    """Samples of the shards, each byte verified, with image and target at the network's scale."""

    def __init__(self, shards: Path):
        self.shards = ShardDataset(shards)
        self.samples = TrainingSamples(self.shards, seed=0, hflip=0)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: int) -> tuple[Tensor, dict]:
        image, target = self.samples[place, place]
        return RESIZE(image.float().div_(255), target)


class DecodeAndResize(Dataset):
    """The floor: bytes that are in memory already, decoded and resized, nothing else."""

    def __init__(self, contents: list[bytes]):
        self.contents = [torch.from_numpy(np.frombuffer(content, np.uint8).copy()) for content in contents]

    def __len__(self) -> int:
        return len(self.contents)

    def __getitem__(self, place: int) -> Tensor:
        image = decode_image(self.contents[place], mode=ImageReadMode.RGB)
        return RESIZE(image.float().div_(255))[0]


def coco_detection(images: Path, annotations: Path, resize: Callable | None = None) -> CocoDetection:
    """Return torchvision's data set; its targets stay the annotations as they are in the file."""
    with contextlib.redirect_stdout(io.StringIO()):
        return CocoDetection(images, annotations, transforms=resize or _resize_image)


def rasterised(images: Path, annotations: Path, resize: Callable | None = None) -> Dataset:
    """Return the same with boxes, labels and whole masks, made by torchvision from every annotation."""
    keys = ("boxes", "labels", "masks")
    return wrap_dataset_for_transforms_v2(coco_detection(images, annotations, resize), target_keys=keys)


def _resize_image(image: Image, target: object) -> tuple[Tensor, object]:
    return RESIZE(pil_to_tensor(image).float().div_(255))[0], target


def _resize_both(image: Image, target: dict) -> tuple[Tensor, dict]:
    """Bring the target to the network's scale too; without annotations torchvision makes no boxes."""
    return RESIZE(pil_to_tensor(image).float().div_(255), target if "boxes" in target else None)


def alone(shards: Path, count: int) -> dict[str, Callable[[int], object]]:
    """Return what is timed on the first `count` samples in this process."""
    own = Ours(shards)
    floor = DecodeAndResize([own.shards.image_bytes(place) for place in range(count)])
    return {
        "ours": lambda turn: drain(own[place] for place in range(count)),
        "decode and resize": lambda turn: drain(floor[place] for place in range(count)),
    }


def under_a_loader(
    images: Path, annotations: Path, shards: Path, count: int, workers: int
) -> dict[str, Callable[[int], object]]:
    """Return what is timed on the first `count` samples under a DataLoader."""
    own = Ours(shards)
    peers = (
        coco_detection(images, annotations),
        rasterised(images, annotations),
        rasterised(images, annotations, _resize_both),
    )
    theirs = {
        f"{name}, DataLoader": lambda turn, peer=peer: drain(loader(peer, count, workers))
        for name, peer in zip(PEERS, peers, strict=True)
    }
    return {
        "ours, DataLoader": lambda turn: drain(map(unpacked, loader(own, count, workers, packed))),
        **theirs,
    }


def loader(dataset: Dataset, count: int, workers: int, collate: Callable = list) -> DataLoader:
    """Return the one DataLoader that all of them get; a batch is a list of samples."""
    return DataLoader(dataset, BATCH, sampler=range(count), num_workers=workers, collate_fn=collate)


def drain(samples: Iterator) -> None:
    """Read everything and keep nothing."""
    for _ in samples:
        pass


def check(images: Path, annotations: Path, shards: Path, count: int) -> None:
    """Refuse to time what does not give the same pixels, boxes and masks."""
    own, masked = Ours(shards), rasterised(images, annotations)
    plain = coco_detection(images, annotations)
    floor = DecodeAndResize([own.shards.image_bytes(place) for place in range(count)])
    for place in range(count):
        image, target = own[place]
        for other in (floor[place], plain[place][0], masked[place][0]):
            _same(image, other, PIXEL_ERROR, f"pixels of sample {place}")
        tree = own.shards.annotations(place)
        if plain[place][1] != tree["annotations"]:
            raise SystemExit(f"bench data: CocoDetection has other annotations of sample {place}")
        theirs = masked[place][1]
        if tree["annotations"]:
            decoded = [_mask(annotation, tree) for annotation in tree["annotations"]]
            _same(torch.stack(decoded), theirs["masks"], 0, f"masks of sample {place}")
            _same_boxes(target["boxes"], theirs["boxes"], tree, image.shape, place)


def _same_boxes(own: Tensor, theirs: Tensor, tree: dict, shape: torch.Size, place: int) -> None:
    """Compare boxes at the network's scale; torchvision keeps crowds and what has no area."""
    single = torch.tensor([not annotation.get("iscrowd", 0) for annotation in tree["annotations"]])
    limit = torch.tensor([tree["width"], tree["height"]]).repeat(2)
    boxes = theirs[single].clamp(min=0).minimum(limit)
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).amin(1) >= THIN_PX]
    scale = torch.tensor([shape[-1], shape[-2]]).repeat(2) / limit
    _same(own, boxes * scale, BOX_ERROR_PX, f"boxes of sample {place}")


def _mask(annotation: dict, tree: dict) -> Tensor:
    mask = decode_mask(annotation["segmentation"], tree["height"], tree["width"])
    return torch.from_numpy(np.ascontiguousarray(mask))


def _same(one: Tensor, other: Tensor, error: float, what: str) -> None:
    if one.shape != other.shape or not torch.allclose(one.float(), other.float(), rtol=0, atol=error):
        raise SystemExit(f"bench data: the contenders differ in the {what}")
