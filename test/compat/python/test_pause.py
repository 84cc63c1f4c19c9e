"""Pause and resume: what is kept, on request, on timeout and by traffic."""

import time

import pytest
from e2b import AsyncSandbox, Sandbox, SandboxException, SandboxNotFoundException, SandboxQuery, SandboxState
from support import NEW, async_box, unique

COUNT = "(i=0; while :; do i=$((i+1)); echo >> /tmp/n; sleep 0.05; done) >/dev/null 2>&1 & echo $!"
COUNTS = 'kill -0 {} && a=$(stat -c %s /tmp/n) && sleep 0.3 && [ "$(stat -c %s /tmp/n)" -gt "$a" ] && echo counts'


def wait_for_state(sandbox_id, state, within=10):
    end = time.monotonic() + within
    while (got := Sandbox.get_info(sandbox_id).state) != state:
        assert time.monotonic() < end, f"still {got}"
        time.sleep(0.1)


def test_memory_is_kept(create):
    box = create(envs={"GREETING": "hello"}, metadata={"suite": unique()})
    pid = box.commands.run(COUNT).stdout.strip()
    box.files.write("/home/user/kept.txt", "content")
    assert box.pause() is True
    assert box.pause() is False
    assert box.is_running() is False
    info = box.get_info()
    assert info.state == SandboxState.PAUSED
    listed = Sandbox.list(query=SandboxQuery(metadata=info.metadata, state=[SandboxState.PAUSED])).next_items()
    assert [i.sandbox_id for i in listed] == [box.sandbox_id]

    again = Sandbox.connect(box.sandbox_id, timeout=60)
    assert again.files.read("/home/user/kept.txt") == "content"
    assert again.commands.run("echo $GREETING; " + COUNTS.format(pid)).stdout == "hello\ncounts\n"
    assert box.commands.run("echo old").stdout == "old\n"


def test_files_only(create):
    box = create()
    box.commands.run(COUNT)
    box.files.write("/home/user/kept.txt", "content")
    assert box.pause(**({"mode": "filesystem"} if NEW else {"keep_memory": False})) is True
    box.connect()
    assert box.files.read("/home/user/kept.txt") == "content"
    assert box.commands.run("ps -eo args | grep '[s]leep 0.05' || echo fresh").stdout == "fresh\n"


def test_static_calls(create):
    box = create()
    assert Sandbox.pause(box.sandbox_id) is True
    assert Sandbox.connect(box.sandbox_id).commands.run("echo awake").stdout == "awake\n"
    Sandbox.pause(box.sandbox_id)
    assert Sandbox.kill(box.sandbox_id) is True
    with pytest.raises(SandboxNotFoundException):
        Sandbox.connect(box.sandbox_id)
    with pytest.raises(SandboxNotFoundException):
        Sandbox.pause(box.sandbox_id)


@pytest.mark.skipif(not NEW, reason="the older SDK has no strict pause")
def test_strict(create):
    box = create()
    assert box.pause(strict=True) is True


def test_pause_on_timeout(create):
    box = create(timeout=2, lifecycle={"on_timeout": "pause"})
    pid = box.commands.run(COUNT).stdout.strip()
    wait_for_state(box.sandbox_id, SandboxState.PAUSED)
    box.connect(timeout=60)
    assert box.commands.run(COUNTS.format(pid)).stdout == "counts\n"


def test_traffic_wakes(create):
    box = create(lifecycle={"on_timeout": "pause", "auto_resume": True})
    pid = box.commands.run(COUNT).stdout.strip()
    box.pause()
    assert box.commands.run(COUNTS.format(pid)).stdout == "counts\n"


def test_no_memory_and_auto_resume():
    for action in ({"action": "pause", "mode": "filesystem"}, {"action": "pause", "keep_memory": False}):
        if not NEW and "mode" in action:
            continue
        with pytest.raises((SandboxException, ValueError)):
            Sandbox.create(lifecycle={"on_timeout": action, "auto_resume": True})


async def test_async():
    async with async_box(timeout=60) as box:
        pid = (await box.commands.run(COUNT)).stdout.strip()
        assert await box.pause() is True
        again = await AsyncSandbox.connect(box.sandbox_id)
        assert (await again.commands.run(COUNTS.format(pid))).stdout == "counts\n"
