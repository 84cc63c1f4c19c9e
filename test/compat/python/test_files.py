"""Files and the tree through the synchronous API."""

import hashlib
import io
import time

import httpx
import pytest
from e2b import (
    AuthenticationException,
    FileNotFoundException,
    FileType,
    InvalidArgumentException,
    SandboxException,
)
from support import NEW

EVERY_BYTE = bytes(range(256))


def pattern(size):
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def sha(data):
    return hashlib.sha256(data).hexdigest()


def test_text(box):
    info = box.files.write("notes.txt", "grüße\n")
    assert (info.name, info.type, info.path, info.metadata) == ("notes.txt", FileType.FILE, "/home/user/notes.txt", None)
    assert box.files.read("notes.txt") == "grüße\n"
    assert box.commands.run("cat notes.txt").stdout == "grüße\n"


def test_read_formats(box):
    box.files.write("bin", EVERY_BYTE)
    got = box.files.read("bin", format="bytes")
    assert isinstance(got, bytearray)
    assert bytes(got) == EVERY_BYTE
    assert b"".join(box.files.read("bin", format="stream")) == EVERY_BYTE
    assert bytes(box.files.read("bin", format="bytes", gzip=True)) == EVERY_BYTE


def test_empty_file(box):
    box.files.write("empty", "")
    assert box.files.read("empty") == ""
    assert bytes(box.files.read("empty", format="bytes")) == b""
    assert b"".join(box.files.read("empty", format="stream")) == b""
    assert box.files.get_info("empty").size == 0


def test_write_forms(box):
    data = pattern(300_000)
    for opts in ({}, {"use_octet_stream": True}, {"gzip": True}):
        for source in (data, io.BytesIO(data)):
            assert box.files.write("dir/data", source, **opts).path == "/home/user/dir/data"
            assert box.commands.run("sha256sum dir/data").stdout.split()[0] == sha(data)
    box.files.write("text", io.StringIO("grüße"))
    assert box.files.read("text") == "grüße"
    box.files.write("text", "short")
    assert box.files.read("text") == "short"


@pytest.mark.skipif(not NEW, reason="iterables came later")
def test_write_iterables(box):
    box.files.write("chunks", (pattern(70_000) for _ in range(8)))
    assert sha(bytes(box.files.read("chunks", format="bytes"))) == sha(pattern(70_000) * 8)


def test_sizes(box):
    for size in (1, 8_193, 18_001, 65_537, 1_048_577, 16_000_000):
        data = pattern(size)
        box.files.write("sized", data)
        assert box.files.get_info("sized").size == size
        assert sha(bytes(box.files.read("sized", format="bytes"))) == sha(data), size


def test_several_files(box):
    infos = box.files.write_files(
        [{"path": "one.txt", "data": "1"}, {"path": "deep/er/two", "data": EVERY_BYTE}, {"path": "/tmp/three", "data": io.BytesIO(b"3")}]
    )
    assert [i.path for i in infos] == ["/home/user/one.txt", "/home/user/deep/er/two", "/tmp/three"]
    assert bytes(box.files.read("deep/er/two", format="bytes")) == EVERY_BYTE
    assert box.files.write_files([]) == []


def test_580_files(box):
    entries = [{"path": f"tree/{i % 10}/file-{i}.txt", "data": f"content {i}\n"} for i in range(580)]
    started = time.monotonic()
    infos = box.files.write_files(entries, use_octet_stream=False)
    assert time.monotonic() - started < 8
    assert len(infos) == 580
    assert box.commands.run("find tree -type f | wc -l").stdout.strip() == "580"
    assert box.files.read("tree/9/file-579.txt") == "content 579\n"


def test_names(box):
    for name in ("with space", "ünïcödé-文件", "a+b&c=d?e#f", "%41", "it's"):
        info = box.files.write(f"names/{name}", name)
        assert (info.name, info.path) == (name, f"/home/user/names/{name}")
        assert box.files.read(f"names/{name}") == name


def test_users(box):
    box.files.write("new/mine", "x")
    mine = box.files.get_info("new/mine")
    assert (mine.owner, mine.group, mine.mode, mine.permissions) == ("user", "user", 0o644, "-rw-r--r--")
    assert box.files.write("theirs", "x", user="root").path == "/root/theirs"
    assert box.files.get_info("theirs", user="root").owner == "root"
    for call in (
        lambda: box.files.read("/etc/hostname", user="nosuch"),
        lambda: box.files.write("x", "y", user="nosuch"),
        lambda: box.files.list("/", user="nosuch"),
    ):
        with pytest.raises(AuthenticationException):
            call()


def test_reading_what_cannot_be_read(box):
    for format in ("text", "bytes", "stream"):
        with pytest.raises(FileNotFoundException, match="path '/home/user/no/such' does not exist"):
            box.files.read("no/such", format=format)
        with pytest.raises(InvalidArgumentException):
            box.files.read("/tmp", format=format)


def test_writing_where_it_cannot_be_written(box):
    box.files.make_dir("adir")
    for opts in ({}, {"use_octet_stream": True}):
        with pytest.raises(InvalidArgumentException):
            box.files.write("adir", "x", **opts)
    with pytest.raises(InvalidArgumentException):
        box.files.write("~root/x", "x")


def test_metadata(box):
    want = {"author": "mish", "review-state": "done: 100%"}
    assert box.files.write("m", "x", metadata=want).metadata == want
    assert box.files.get_info("m").metadata == want
    assert box.files.rename("m", "moved").metadata == want
    box.files.write("moved", "y")
    assert box.files.get_info("moved").metadata is None
    with pytest.raises(InvalidArgumentException):
        box.files.write("m", "x", metadata={"bad key": "v"})


def test_list(box):
    box.commands.run("mkdir -p t/subdir1/subdir1_1 t/subdir2; touch t/file1.txt t/subdir1/file2 t/subdir1/subdir1_1/file3")
    assert [(e.name, e.type, e.path) for e in box.files.list("t")] == [
        ("file1.txt", FileType.FILE, "/home/user/t/file1.txt"),
        ("subdir1", FileType.DIR, "/home/user/t/subdir1"),
        ("subdir2", FileType.DIR, "/home/user/t/subdir2"),
    ]
    assert [e.name for e in box.files.list("t", depth=2)] == ["file1.txt", "subdir1", "file2", "subdir1_1", "subdir2"]
    assert [e.name for e in box.files.list("t", depth=9)] == ["file1.txt", "subdir1", "file2", "subdir1_1", "file3", "subdir2"]
    with pytest.raises(InvalidArgumentException):
        box.files.list("t", depth=0)
    with pytest.raises(FileNotFoundException):
        box.files.list("missing")
    with pytest.raises(InvalidArgumentException):
        box.files.list("t/file1.txt")


def test_info(box):
    box.files.write("f.txt", "four")
    box.commands.run("chmod 0750 f.txt; touch -d 2020-02-03T04:05:06.789Z f.txt")
    info = box.files.get_info("f.txt")
    assert (info.name, info.type, info.path, info.size) == ("f.txt", FileType.FILE, "/home/user/f.txt", 4)
    assert (info.mode, info.permissions, info.owner, info.group) == (0o750, "-rwxr-x---", "user", "user")
    assert info.modified_time.isoformat().startswith("2020-02-03T04:05:06.789")
    assert info.symlink_target is None
    with pytest.raises(FileNotFoundException):
        box.files.get_info("missing")


def test_symbolic_links(box):
    box.files.write("target", "x")
    box.commands.run("mkdir d; ln -s target link; ln -s d dirlink; ln -s nowhere broken")
    link, directory, broken = (box.files.get_info(name) for name in ("link", "dirlink", "broken"))
    assert (link.symlink_target, link.path) == ("/home/user/target", "/home/user/link")
    assert directory.symlink_target == "/home/user/d"
    # The newest SDK reads a member of its own for links; older ones see the
    # type of the target.
    assert link.type == (FileType.SYMLINK if NEW else FileType.FILE)
    assert directory.type == (FileType.SYMLINK if NEW else FileType.DIR)
    assert broken.type == FileType.SYMLINK


def test_exists_make_rename_remove(box):
    assert box.files.exists("a") is False
    assert box.files.make_dir("a/b") is True
    assert box.files.make_dir("a/b") is False
    assert box.files.exists("a/b") is True
    box.files.write("a/b/f", "content")
    with pytest.raises(InvalidArgumentException):
        box.files.make_dir("a/b/f")
    moved = box.files.rename("a/b/f", "new/place")
    assert (moved.name, moved.type, moved.path, moved.size) == ("place", FileType.FILE, "/home/user/new/place", 7)
    assert box.files.read("new/place") == "content"
    with pytest.raises(FileNotFoundException):
        box.files.rename("missing", "x")
    box.files.remove("new")
    assert box.files.exists("new") is False
    box.files.remove("new")


def test_paths_with_nul(box):
    for call in (
        lambda: box.files.read("a\0b"),
        lambda: box.files.write("a\0b", "x", use_octet_stream=True),
        lambda: box.files.get_info("a\0b"),
        lambda: box.files.list("a\0b"),
        lambda: box.files.make_dir("a\0b"),
        lambda: box.files.remove("a\0b"),
        lambda: box.files.rename("a\0b", "c"),
    ):
        with pytest.raises(InvalidArgumentException):
            call()


def test_links(box, eventually):
    box.files.write("hello world.txt", "hello")
    assert httpx.get(box.download_url("hello world.txt")).text == "hello"
    assert httpx.get(box.download_url("hello world.txt", use_signature_expiration=60)).text == "hello"
    assert httpx.get(box.download_url("hello world.txt", use_signature_expiration=-10)).status_code == 401
    short = box.download_url("hello world.txt", user="user", use_signature_expiration=2)
    assert httpx.get(short).status_code == 200
    eventually(lambda: httpx.get(short).status_code == 401)
    sent = httpx.post(box.upload_url("up/load"), files={"file": ("ignored", b"sent")})
    assert sent.status_code == 200
    assert sent.json() == [{"name": "load", "path": "/home/user/up/load", "type": "file"}]
    assert box.files.read("up/load") == "sent"
    assert httpx.get(box.download_url("up/load").replace("load", "other")).status_code == 401


def test_watch(box, eventually):
    from e2b import FilesystemEventType as Event

    box.files.make_dir("w")
    handle = box.files.watch_dir("w")
    seen = []

    def has(kind, name):
        def probe():
            seen.extend(handle.get_new_events())
            return any(e.type == kind and e.name == name for e in seen)

        return probe

    box.files.write("w/f", "x")
    eventually(has(Event.CREATE, "f"))
    eventually(has(Event.WRITE, "f"))
    box.commands.run("chmod 700 w/f")
    eventually(has(Event.CHMOD, "f"))
    box.files.rename("w/f", "w/g")
    eventually(has(Event.RENAME, "f"))
    eventually(has(Event.CREATE, "g"))
    box.files.remove("w/g")
    eventually(has(Event.REMOVE, "g"))
    assert handle.get_new_events() == []
    handle.stop()
    with pytest.raises(SandboxException, match="already stopped"):
        handle.get_new_events()


def test_watch_recursive_with_entries(box, eventually):
    from e2b import FilesystemEventType as Event

    box.files.make_dir("w")
    handle = box.files.watch_dir("w", recursive=True, include_entry=True)
    seen = []

    def created(name):
        seen.extend(handle.get_new_events())
        return next((e for e in seen if e.type == Event.CREATE and e.name == name), None)

    box.files.write("w/sub/deep", "four")
    event = eventually(lambda: created("sub/deep"))
    assert (event.entry.path, event.entry.type) == ("/home/user/w/sub/deep", FileType.FILE)
    handle.stop()


def test_what_cannot_be_watched(box):
    box.files.write("f", "x")
    with pytest.raises(FileNotFoundException):
        box.files.watch_dir("missing")
    with pytest.raises(InvalidArgumentException):
        box.files.watch_dir("f")
