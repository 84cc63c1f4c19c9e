"""Snapshots and forks: what a copy has of its source, names, listing, deleting."""

import pytest
from e2b import AsyncSandbox, NotFoundException, Sandbox, SandboxException
from support import UNKNOWN_SANDBOX, async_box, unique

COUNT = "(i=0; while :; do i=$((i+1)); echo >> /tmp/n; sleep 0.05; done) >/dev/null 2>&1 & echo $!"
COUNTS = 'kill -0 {} && a=$(stat -c %s /tmp/n) && sleep 0.3 && [ "$(stat -c %s /tmp/n)" -gt "$a" ] && echo counts'


@pytest.fixture
def delete():
    """Deletes what is appended, last first, when the test ends."""
    made = []
    yield made
    for snapshot in reversed(made):
        Sandbox.delete_snapshot(snapshot.snapshot_id)


def items(pages):
    found = []
    while pages.has_next:
        found += pages.next_items()
    return found


def test_copy_goes_on(delete, create):
    box = create(envs={"KEPT": "source", "OVER": "source"})
    pid = box.commands.run(COUNT).stdout.strip()
    box.files.write("/home/user/f", "source")
    snapshot = box.create_snapshot()
    delete.append(snapshot)
    assert snapshot.snapshot_id.endswith(":default")
    assert box.commands.run(COUNTS.format(pid)).stdout == "counts\n"
    copy = create(snapshot.snapshot_id, envs={"OVER": "copy"})
    assert copy.files.read("/home/user/f") == "source"
    assert copy.commands.run("echo $KEPT $OVER; " + COUNTS.format(pid)).stdout == "source copy\ncounts\n"
    copy.files.write("/home/user/f", "copy")
    assert box.files.read("/home/user/f") == "source"
    with pytest.raises(SandboxException):
        Sandbox.delete_snapshot(snapshot.snapshot_id)
    copy.kill()
    assert Sandbox.delete_snapshot(snapshot.snapshot_id) is True
    assert Sandbox.delete_snapshot(snapshot.snapshot_id) is False
    with pytest.raises((NotFoundException, SandboxException)):
        Sandbox.create(snapshot.snapshot_id)


def test_names_and_listing(delete, create):
    name = unique("snap")
    box = create()
    box.commands.run("echo one > /home/user/f")
    first = box.create_snapshot(name=name)
    delete.append(first)
    assert first.snapshot_id.endswith(f"/{name}:default")
    assert first.names == [first.snapshot_id.removesuffix(":default")]
    box.commands.run("echo two > /home/user/f")
    assert box.create_snapshot(name=name).snapshot_id == first.snapshot_id
    assert create(name).files.read("/home/user/f") == "two\n"
    unnamed = Sandbox.create_snapshot(box.sandbox_id)
    delete.append(unnamed)
    assert [s.snapshot_id for s in items(box.list_snapshots())] == [unnamed.snapshot_id, first.snapshot_id]
    assert [s.snapshot_id for s in items(Sandbox.list_snapshots(sandbox_id=box.sandbox_id, limit=1))] == [
        unnamed.snapshot_id,
        first.snapshot_id,
    ]
    with pytest.raises(SandboxException):
        box.create_snapshot(name="no name")
    with pytest.raises((NotFoundException, SandboxException)):
        Sandbox.create_snapshot(UNKNOWN_SANDBOX)


def test_fork(create):
    box = create(envs={"GREETING": "hello"}, metadata={"suite": unique()})
    pid = box.commands.run(COUNT).stdout.strip()
    forks = box.fork(count=2, timeout=60)
    assert len(forks) == 2
    for fork in forks:
        assert isinstance(fork, Sandbox), fork
    try:
        for fork in forks:
            assert fork.sandbox_id != box.sandbox_id
            assert fork.commands.run("echo $GREETING; " + COUNTS.format(pid)).stdout == "hello\ncounts\n"
            assert fork.get_info().metadata == box.get_info().metadata
    finally:
        for fork in forks:
            fork.kill()
    assert box.commands.run(COUNTS.format(pid)).stdout == "counts\n"
    box.pause()
    with pytest.raises(SandboxException):
        box.fork()


async def test_async():
    async with async_box(timeout=60) as box:
        await box.files.write("/home/user/f", "source")
        snapshot = await box.create_snapshot()
        copy = await AsyncSandbox.create(snapshot.snapshot_id, timeout=60)
        assert await copy.files.read("/home/user/f") == "source"
        await copy.kill()
        forks = await box.fork(count=2, timeout=60)
        for fork in forks:
            assert await fork.files.read("/home/user/f") == "source"
            await fork.kill()
        assert await AsyncSandbox.delete_snapshot(snapshot.snapshot_id) is True
