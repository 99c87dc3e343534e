"""What can happen to files and JSON trees, drawn from a random number generator."""

import io
import random
import struct
import zlib
from pathlib import Path

from PIL import Image


def deep(levels: int) -> list:
    tree: list = []
    for _ in range(levels):
        tree = [tree]
    return tree


# What a broken exporter may put anywhere.
JUNK = [
    *(None, True, False, 0, 1, -1, 7, 12, 40, 41, 2, 0.5, -0.0, 1e-9, 1e9, 1e308, 2**31, 2**63, 10**400),
    *(float("nan"), float("inf"), float("-inf")),
    *(
        "",
        "x",
        "7",
        "a.jpg",
        "A.JPG",
        "../a.jpg",
        "/a.jpg",
        "a\0.jpg",
        "\ud800.jpg",
        "\x1b[2J\n.png",
        "x" * 500,
    ),
    *([], {}, [[]], [{}], [None], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7], [[0, 0, 9, 0, 9, 9]], deep(200)),
    *({"size": [30, 40], "counts": [1200]}, {"size": [30, 40], "counts": "]`1"}, {"counts": []}),
    *({"size": [30, 40], "counts": "b'P0'"}, {"size": [30, 40], "counts": "b'P`X1'"}, {"size": [30, 40]}),
    *([{"size": [30, 40], "counts": [1200]}], {"size": [30.0, 40.0], "counts": [0, 600.0, 600]}),
    *([0, 0, 9, 0, 9, 9], [[0, 0], [9, 0], [9, 9]], [[0, 0, 9, 0, 9, 9], [1, 2]]),
    *({"size": [30, 40], "counts": [0, 600, 600]}, {"size": [40, 30], "counts": "P0"}, {"id": 7}),
]


def places(tree: object) -> list[tuple]:
    """Return (container, key) of every value below a tree."""
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return [place for key in keys for place in [(tree, key), *places(tree[key])]]


def damage_tree(tree: dict, rng: random.Random) -> None:
    """Change one value somewhere: replaced, removed, doubled, moved, or taken from another place."""
    container, key = rng.choice(places(tree))
    other, other_key = rng.choice(places(tree))
    what = rng.choice(["junk", "junk", "junk", "remove", "double", "rename", "copy"])
    if what == "remove":
        del container[key]
    elif what == "double" and isinstance(container, list):
        container.insert(rng.randint(0, len(container)), container[key])
    elif what == "rename" and isinstance(container, dict):
        container[rng.choice(["id", "ID", "image_id", "bbox", "", "x"])] = container.pop(key)
    elif what == "copy" and not places(other[other_key]):
        container[key] = other[other_key]
    else:
        container[key] = rng.choice(JUNK)


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return a file as a bad disk, a bad copy or a bad editor leaves it."""
    start = rng.randrange(len(content) + 1)
    end = min(len(content), start + rng.choice([1, 1, 2, 16, 600]))
    what = rng.choice(["flip", "flip", "cut", "insert", "zero", "remove", "double", "noise", "tail"])
    if what == "flip" and start < len(content):
        return content[:start] + bytes([content[start] ^ 1 << rng.randrange(8)]) + content[start + 1 :]
    strange = [b"\0", b'"', b"[", b"}", b",", b"NaN", b"\xff\xd9", rng.randbytes(9)]
    between = {
        "insert": rng.choice(strange) + content[start:end],
        "zero": bytes(end - start),
        "double": 2 * content[start:end],
        "noise": rng.randbytes(end - start),
        "tail": content[start:end],
    }
    if what == "tail":
        return content + rng.randbytes(rng.choice([1, 100, 5000]))
    return content[:start] + between.get(what, b"") + (b"" if what == "cut" else content[end:])


def damage_pixels(content: bytes, rng: random.Random) -> bytes:
    """Return a PNG damaged before it was packed, or in one chunk: every checksum holds."""
    chunks, place = [], 8
    while place < len(content):
        size, kind = struct.unpack_from(">I4s", content, place)
        body = content[place + 8 : place + 8 + size]
        chunks.append((kind, zlib.decompress(body) if kind == b"IDAT" else body))
        place += 12 + size
    which = rng.randrange(len(chunks))
    chunks[which] = chunks[which][0], damage_bytes(chunks[which][1] or b"x", rng)
    packed = [(kind, zlib.compress(body) if kind == b"IDAT" else body) for kind, body in chunks]
    parts = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in packed]
    return content[:8] + b"".join(parts)


def damage_image(path: Path, rng: random.Random) -> None:
    """Damage an image file: its bytes, or what stands under its name."""
    what = rng.choice(["bytes"] * 8 + ["gone", "folder", "loop", "other", "empty", "gif", "size"])
    content = path.read_bytes()
    path.unlink()
    if what == "bytes":
        repacked = path.suffix == ".png" and rng.random() < 0.5
        path.write_bytes(damage_pixels(content, rng) if repacked else damage_bytes(content, rng))
    elif what == "folder":
        path.mkdir()
    elif what == "loop":
        path.symlink_to(path.name)
    elif what == "empty":
        path.touch()
    elif what in ("gif", "size", "other"):
        buffer = io.BytesIO()
        form = {"gif": "GIF", "size": "PNG", "other": "JPEG"}[what]
        Image.new("RGB", (40, 31 if what == "size" else 30)).save(buffer, form)
        path.write_bytes(buffer.getvalue())
