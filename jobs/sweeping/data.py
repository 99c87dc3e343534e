"""The data of a sweep: the preset's synthetic set, and every source as shards that the rows share."""

import os
import shutil
from pathlib import Path

from configs.schema import CocoSource, Data, Source
from configs.sweep import Preset
from jobs.console import say
from jobs.inputs import file_hash
from jobs.ledger import hash_of
from jobs.summary import showing_findings
from shards.storage.remote import absolute


def synthetic_dir(root: Path, preset: Preset | None) -> Path | None:
    """Return where a preset's synthetic data set belongs, None where it has none."""
    made = preset and preset.synthetic
    return root / "data" / f"synthetic-{made.images}-{made.seed}" if made else None


def make_data(folder: Path | None, preset: Preset | None) -> None:
    """Draw a preset's synthetic data set unless it is there; it has its name only once it is whole."""
    if folder is None or folder.exists():
        return
    from shards.synthetic.synth import write_synthetic

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    say(f"data: drawing {preset.synthetic.images} training images of huddled shapes")
    write_synthetic(partial, preset.synthetic.images, preset.synthetic.seed)
    os.rename(partial, folder)


def shards_of_source(root: Path, data: Data, source: Source) -> str:
    """Return where the shards of a source are, after writing them unless they are there."""
    if not isinstance(source, CocoSource):
        return absolute(source)
    from shards.write import write_shards

    options = data.model_dump(include={"on_bad", "repair", "max_pixels", "shard_size_mb"})
    inputs = {"annotations": file_hash(source.annotations), "images": source.images, **options}
    out = root / "shards" / f"{Path(source.annotations).stem}-{hash_of(inputs)[:12]}"
    if not (out / "dataset.json").is_file():
        say(f"shards: writing {out}")
        with showing_findings(out):
            write_shards(source.images, source.annotations, out, workers=os.cpu_count() or 1, **options)
    return str(out)
