"""Sources and targets by URL: the same bytes as in a local folder, whole objects only, in the right order."""

import errno
import json
import subprocess
import sys
import uuid
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from shards.errors import BadInput
from shards.storage import remote
from shards.storage.folder import folder_at
from shards.write import write_shards
from tests.shards.coco_case import Case
from tests.shards.http_folder import served


@pytest.fixture
def store(case: Case):
    """The data set in an object store of its own: its URL."""
    url = f"memory://{uuid.uuid4().hex}"
    case.json.write_text(json.dumps(case.tree))
    system, root = fsspec.core.url_to_fs(url)
    system.put(str(case.images), f"{root}/images", recursive=True)
    system.put(str(case.json), f"{root}/instances.json")
    yield url
    system.rm(root, recursive=True)


def objects(url: str) -> dict[str, bytes]:
    """Return what lies under a URL, but the report, which names the source."""
    system, root = fsspec.core.url_to_fs(url)
    found = {path.rsplit("/", 1)[1]: system.cat_file(path) for path in system.find(root)}
    return {name: content for name, content in found.items() if name != "report.json"}


def shard(store: str, out: str = "out", **options):
    return write_shards(f"{store}/images", f"{store}/instances.json", f"{store}/{out}", **options)


def test_a_store_gets_the_bytes_that_a_folder_gets(case, store):
    local = case.shard()
    assert shard(store) == local
    assert objects(f"{store}/out") == objects(str(case.out))
    assert shard(store) == local, "finished, and found so"


def test_a_file_url_is_the_local_folder_and_has_its_lock(case):
    case.json.write_text(json.dumps(case.tree))
    write_shards(f"file://{case.images}", f"file://{case.json}", f"file://{case.out}")
    with folder_at(case.out).locked(), pytest.raises(BadInput, match="another process is writing there"):
        write_shards(f"file://{case.images}", f"file://{case.json}", f"file://{case.out}")
    assert (case.out / "dataset.json").is_file()


@pytest.mark.usefixtures("a_shard_an_image")
def test_wherever_the_store_fails_an_index_means_its_shard_and_the_same_call_completes(store, monkeypatch):
    shard(store, "undisturbed")
    undisturbed = objects(f"{store}/undisturbed")
    call, failed = 0, True
    while failed:
        call, failed = call + 1, False
        with monkeypatch.context() as patch:
            failing_at(patch, call)
            try:
                shard(store, f"out-{call}")
            except OSError as error:
                failed = True
                assert str(error.filename).startswith(f"{store}/out-{call}/")
        left = objects(f"{store}/out-{call}")
        assert ("dataset.json" in left) == (not failed)
        for name in left.keys() & undisturbed.keys():
            assert left[name] == undisturbed[name]
            assert not name.endswith(".index.json") or name.replace(".index.json", ".tar") in left
        shard(store, f"out-{call}")
        assert objects(f"{store}/out-{call}") == undisturbed
    assert call > 10


def failing_at(monkeypatch, call: int) -> None:
    """Let uploads fail from one on, before the object is there, as a broken connection does."""
    calls = []
    monkeypatch.setattr(remote, "TRIES", 1)

    def failing(upload):
        def wrapped(*arguments, **options):
            calls.append(arguments)
            if len(calls) >= call:
                raise OSError("connection lost")
            return upload(*arguments, **options)

        return wrapped

    for name in ("pipe_file", "put_file"):
        monkeypatch.setattr(MemoryFileSystem, name, failing(getattr(MemoryFileSystem, name)))


def test_an_absent_object_is_a_finding_and_a_broken_connection_is_none(store, monkeypatch):
    system, root = fsspec.core.url_to_fs(store)
    system.rm(f"{root}/images/a.jpg")
    with pytest.raises(BadInput, match=f"{store}/images/a.jpg, image 7: cannot be read"):
        shard(store)
    shard(store, on_bad="skip")
    read = MemoryFileSystem.cat_file
    monkeypatch.setattr(remote, "PAUSE_S", 0)

    def fail(self, path, *arguments, **options):
        if path.endswith(".png"):
            raise OSError(errno.ETIMEDOUT, "timed out")
        return read(self, path, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", fail)
    with pytest.raises(OSError, match=r"timed out\): '.*c\.png'"):
        shard(store, "other", on_bad="skip")


def test_an_image_restored_in_a_store_is_taken_up_by_the_same_command(store):
    system, root = fsspec.core.url_to_fs(f"{store}/images/a.jpg")
    content = system.cat_file(root)
    system.pipe_file(root, content[:20] + bytes(200) + content[220:])
    assert shard(store, on_bad="skip")["images"] == 3
    system.pipe_file(root, content)
    assert shard(store, on_bad="skip")["images"] == 4


def test_a_web_server_without_a_list_of_files_is_told_from_a_wrong_folder(case):
    case.json.write_text(json.dumps(case.tree))
    with served(case.root) as server:
        server.answers["images"] = server.answers[""] = [404] * 9
        with pytest.raises(BadInput, match=rf"^{server.url}/images: is no folder, or its server lists none"):
            write_shards(f"{server.url}/images", case.json, case.out)
        with pytest.raises(BadInput, match=r"gone\.json: cannot be read \(no such file\); give"):
            write_shards(case.images, f"{server.url}/gone.json", case.out)


@pytest.mark.parametrize("url", ["nosuch://bucket/x", "memory-of-nothing://x"])
def test_a_url_that_nothing_reaches_is_refused_in_one_line(case, url):
    with pytest.raises(BadInput, match="Protocol not known"):
        write_shards(url, case.json, case.out)


@pytest.mark.parametrize("status", [401, 403])
def test_a_right_that_ends_while_images_are_read_leaves_none_out(case, monkeypatch, status):
    monkeypatch.setattr(remote, "PAUSE_S", 0)
    case.json.write_text(json.dumps(case.tree))
    with served(case.root) as server:
        server.answers["c.png"] = [status] * 9
        with pytest.raises((BadInput, OSError), match=r"c\.png"):
            write_shards(f"{server.url}/images", case.json, case.out, on_bad="skip")
    assert not (case.out / "report.json").exists()


def test_missing_sources_are_named(case, store):
    with pytest.raises(BadInput, match=f"{store}/nowhere: is no folder"):
        write_shards(f"{store}/nowhere", f"{store}/instances.json", case.out)
    with pytest.raises(BadInput, match=r"absent\.json: cannot be read"):
        write_shards(f"{store}/images", f"{store}/absent.json", case.out)


def test_an_upload_that_fails_once_is_tried_again(case, store, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE_S", 0)
    local, failed = case.shard(), set()

    def twice(upload):
        def wrapped(self, *arguments, **options):
            if str(arguments) not in failed:
                failed.add(str(arguments))
                raise OSError("connection lost")
            return upload(self, *arguments, **options)

        return wrapped

    for name in ("pipe_file", "put_file"):
        monkeypatch.setattr(MemoryFileSystem, name, twice(getattr(MemoryFileSystem, name)))
    assert shard(store) == local
    assert len(failed) == 6, "report, progress, shard, index, list of images, description"


def test_a_url_with_a_password_is_refused_and_not_shown(case, store):
    places = {"images": f"{store}/images", "annotations": f"{store}/instances.json", "out": f"{store}/out"}
    for name, url in places.items():
        secret = url.replace("://", "://me:secret@")
        with pytest.raises(BadInput, match="is given with a password") as raised:
            write_shards(**{**places, name: secret})
        assert "secret" not in str(raised.value)
    assert folder_at("memory://me@host").name_of("a.jpg") == "memory://host/a.jpg"


def test_local_paths_do_without_fsspec():
    imports = "import sys, shards.write; from shards.storage.folder import folder_at"
    code = f"{imports}; folder_at('.'); print(*sys.modules)"
    root = Path(__file__).parents[3]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert "fsspec" not in run.stdout.split() and "torch" not in run.stdout.split()


def test_a_web_server_gives_images_whatever_stands_in_their_names(case):
    names = ("a b.jpg", "sub/50%.jpg", "no#1.jpg", "why?.jpg")
    for image, name in zip(sorted(case.tree["images"], key=lambda image: image["id"]), names, strict=True):
        (case.images / image["file_name"]).rename(case.images / name)
        image["file_name"] = name
    Image.new("RGB", (40, 30)).save(case.images / names[2])  # was a PNG
    local = case.shard()
    with served(case.root) as server:
        there = write_shards(f"{server.url}/images", case.json, case.root / "from the web")
        images = folder_at(f"{server.url}/images")
        assert set(images.sizes([*names, "absent.jpg"])) == {None, -1}, "such a server lists no sizes"
    assert there["shards"] == local["shards"] and there["hash"] == local["hash"]
