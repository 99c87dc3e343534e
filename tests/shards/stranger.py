"""Shards that somebody else wrote: other content, and every checksum right."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

from shards.description import sealed

SHARD = "instances-000000"


def written_again(out: Path, key: str, change: Callable[[dict], dict]) -> None:
    """Change members of a sample, by extension, and make every checksum one of the new bytes."""
    with tarfile.open(out / f"{SHARD}.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    own = {name.split(".")[1]: content for name, content in members.items() if name.startswith(key)}
    members |= {f"{key}.{extension}": content for extension, content in change(own).items()}
    with tarfile.open(out / f"{SHARD}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with tarfile.open(out / f"{SHARD}.tar") as tar:
        offsets = {member.name: member.offset_data for member in tar}
    index = json.loads((out / f"{SHARD}.index.json").read_text())
    for entry in index:
        for extension, member in entry["members"].items():
            name = f"{entry['key']}.{extension}"
            sha256 = hashlib.sha256(members[name]).hexdigest()
            member |= {"offset": offsets[name], "size": len(members[name]), "sha256": sha256}
    indexed_again(out, json.dumps(index).encode())


def indexed_again(out: Path, index: bytes) -> None:
    """Write an index and a description that has its checksum, and that of the shard as it is now."""
    (out / f"{SHARD}.index.json").write_bytes(index)
    tree = json.loads((out / "dataset.json").read_text())
    shard = (out / f"{SHARD}.tar").read_bytes()
    tree["shards"][0] |= {
        "bytes": len(shard),
        "sha256": hashlib.sha256(shard).hexdigest(),
        "index_sha256": hashlib.sha256(index).hexdigest(),
    }
    (out / "dataset.json").write_text(json.dumps(sealed(tree)))
