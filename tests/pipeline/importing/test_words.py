"""The report of an import."""

from dataclasses import replace
from pathlib import Path

from pipeline.importing.categories import COCO_NAMES
from pipeline.importing.convert import convert
from pipeline.importing.detectron2_source import DETECTRON2
from pipeline.importing.files import Checkpoint
from pipeline.importing.words import profile_in_words, whole_report
from tests.pipeline.importing.made import checkpoint


def test_the_report_lists_everything(detectron2):
    found = replace(convert(checkpoint(detectron2), DETECTRON2), checkpoint=Checkpoint(
        Path("a.pkl"), detectron2, ["__author__"], "f" * 64))  # fmt: skip
    text = whole_report(found)
    assert all(f"<- {name} " in text for name in detectron2)
    assert all(f" {name}\n" in text for name in COCO_NAMES.values())
    assert "'__author__'" in text and "sha256 " + "f" * 64 in text
    assert (
        len(profile_in_words(found.model)) == 12 and "RoIAlign: aligned=true, sampling ratio adaptive" in text
    )
