"""The asynchronous API: every method once, and what only it does (callbacks
from a running loop, streamed watching)."""

import asyncio
import hashlib
import io

import pytest
from e2b import (
    AsyncSandbox,
    AuthenticationException,
    CommandExitException,
    FileNotFoundException,
    FilesystemEventType as Event,
    FileType,
    InvalidArgumentException,
    NotFoundException,
    PtySize,
    SandboxException,
    SandboxNotFoundException,
    SandboxQuery,
    SandboxState,
    TimeoutException,
)
from support import NEW, UNKNOWN_SANDBOX, WRONG_KEY, async_box, seconds, unique

GONE = "sandbox was killed or reached its end of life"


class Events:
    """Collects callback values and waits for one of them."""

    def __init__(self):
        self.items = []
        self._changed = asyncio.Event()

    def __call__(self, item):
        self.items.append(item)
        self._changed.set()

    async def until(self, match, within=10.0):
        async with asyncio.timeout(within):
            while not any(match(item) for item in self.items):
                self._changed.clear()
                await self._changed.wait()
        return next(item for item in self.items if match(item))


async def test_lifecycle():
    metadata = {"run": unique(), "a b": "x&y"}
    async with async_box(timeout=90, metadata=metadata, envs={"A": "1"}) as box:
        info = await box.get_info()
        assert (info.sandbox_id, info.state, info.metadata) == (box.sandbox_id, SandboxState.RUNNING, metadata)
        assert seconds(info) == pytest.approx(90, abs=1)
        assert await box.is_running() is True
        assert (await box.commands.run("echo $A")).stdout == "1\n"
        other = await AsyncSandbox.connect(box.sandbox_id, timeout=300)
        assert other.sandbox_id == box.sandbox_id
        assert await box.connect() is box
        assert seconds(await box.get_info()) > 290
        await box.set_timeout(60)
        assert seconds(await box.get_info()) < 90
        paginator = AsyncSandbox.list(query=SandboxQuery(metadata=metadata), limit=1)
        assert [i.sandbox_id for i in await paginator.next_items()] == [box.sandbox_id]
        assert paginator.has_next is False
        assert box.get_host(80) == f"80-{box.sandbox_id}.{box.sandbox_domain}"
        assert await box.kill() is True
        assert await box.is_running() is False
        assert await box.kill() is False


async def test_create_errors():
    with pytest.raises(AuthenticationException):
        await AsyncSandbox.create(api_key=WRONG_KEY)
    with pytest.raises(SandboxException, match="^404: "):
        await AsyncSandbox.create(unique("nosuch"))
    with pytest.raises(SandboxNotFoundException):
        await AsyncSandbox.connect(UNKNOWN_SANDBOX)


async def test_expiry():
    box = await AsyncSandbox.create(timeout=2)
    handle = await box.commands.run("sleep 60", background=True)
    async with asyncio.timeout(10):
        with pytest.raises(TimeoutException, match=GONE):
            await handle.wait()
    assert await box.is_running() is False
    with pytest.raises(SandboxNotFoundException):
        await box.get_info()


async def test_network():
    async with async_box(network={"allow_out": ["203.0.113.7"], "deny_out": ["0.0.0.0/0"]}) as box:
        assert (await box.get_info()).network["allow_out"] == ["203.0.113.7"]
        await box.update_network({"deny_out": ["198.51.100.0/24"]})
        network = (await box.get_info()).network
        assert (network.get("allow_out") or [], network["deny_out"]) == ([], ["198.51.100.0/24"])


async def test_commands():
    async with async_box() as box:
        result = await box.commands.run("echo out; echo err >&2")
        assert (result.exit_code, result.stdout, result.stderr) == (0, "out\n", "err\n")
        with pytest.raises(CommandExitException) as caught:
            await box.commands.run("exit 3")
        assert (caught.value.exit_code, caught.value.error) == (3, "exit status 3")
        assert (await box.commands.run("whoami", user="root")).stdout == "root\n"
        with pytest.raises(AuthenticationException, match="invalid username: 'nosuch'"):
            await box.commands.run("true", user="nosuch")
        with pytest.raises(InvalidArgumentException, match="cwd '/no/such' does not exist"):
            await box.commands.run("true", cwd="/no/such")
        with pytest.raises(TimeoutException):
            await box.commands.run("sleep 30", timeout=1)
        results = await asyncio.gather(*(box.commands.run(f"sleep 0.2; echo {i}") for i in range(20)))
        assert [r.stdout for r in results] == [f"{i}\n" for i in range(20)]


async def test_callbacks():
    async with async_box() as box:
        out, err = Events(), []

        async def on_stderr(text):
            await asyncio.sleep(0)
            err.append(text)

        handle = await box.commands.run("echo one; read -r x; echo two $x; echo e >&2", background=True, stdin=True, on_stdout=out, on_stderr=on_stderr)
        await out.until(lambda text: text == "one\n")
        assert handle.exit_code is None
        await handle.send_stdin("in\n")
        result = await handle.wait()
        assert result.stdout == handle.stdout == "one\ntwo in\n"
        assert "".join(err) == result.stderr == "e\n"
        assert handle.exit_code == 0


async def test_processes():
    async with async_box() as box:
        assert await box.commands.list() == []
        handle = await box.commands.run("read -r x; echo got $x; cat; exit 6", background=True, stdin=True)
        (process,) = await box.commands.list()
        assert (process.pid, process.cmd) == (handle.pid, "/bin/bash")
        out = Events()
        second = await box.commands.connect(handle.pid, on_stdout=out)
        await box.commands.send_stdin(handle.pid, "hello\n")
        await box.commands.close_stdin(handle.pid)
        for each in (handle, second):
            with pytest.raises(CommandExitException) as caught:
                await each.wait()
            assert caught.value.exit_code == 6
        assert "".join(out.items) == "got hello\n"
        sleeper = await box.commands.run("sleep 60", background=True)
        await sleeper.disconnect()
        assert [p.pid for p in await box.commands.list()] == [sleeper.pid]
        assert await box.commands.kill(sleeper.pid) is True
        assert await box.commands.kill(sleeper.pid) is False
        with pytest.raises(NotFoundException):
            await box.commands.connect(999_999)


@pytest.mark.skipif(not NEW, reason="stream_input came later")
async def test_streamed_stdin():
    async with async_box() as box:
        out = Events()
        handle = await box.commands.run("while read -r l; do echo got $l; done", background=True, stdin=True, on_stdout=out)
        # Input must arrive while the request body is still open.
        async with box.commands.stream_input(handle.pid) as stdin:
            await stdin.send("one\n")
            await out.until(lambda text: "got one" in text)
            await stdin.send(b"two\n")
            await out.until(lambda text: "got two" in text)
        await handle.close_stdin()
        assert (await handle.wait()).stdout == "got one\ngot two\n"


async def test_killed_while_a_command_runs():
    async with async_box() as box:
        out = Events()
        handle = await box.commands.run("echo before; sleep 60", background=True, on_stdout=out)
        await out.until(lambda text: text == "before\n")
        assert await box.kill() is True
        async with asyncio.timeout(5):
            with pytest.raises(TimeoutException, match=GONE):
                await handle.wait()


async def test_files():
    async with async_box() as box:
        data = bytes(range(256)) * 4_000
        info = await box.files.write("dir/f", data)
        assert (info.name, info.type, info.path) == ("f", FileType.FILE, "/home/user/dir/f")
        assert bytes(await box.files.read("dir/f", format="bytes")) == data
        assert b"".join([chunk async for chunk in await box.files.read("dir/f", format="stream")]) == data
        for opts in ({"use_octet_stream": True}, {"gzip": True}):
            await box.files.write("dir/g", io.BytesIO(data), **opts)
            digest = (await box.commands.run("sha256sum dir/g")).stdout.split()[0]
            assert digest == hashlib.sha256(data).hexdigest()
        infos = await box.files.write_files([{"path": "a", "data": "1"}, {"path": "b", "data": b"2"}])
        assert [i.path for i in infos] == ["/home/user/a", "/home/user/b"]
        assert await box.files.read("a") == "1"
        assert await box.files.exists("a") is True
        assert await box.files.make_dir("d") is True
        assert await box.files.make_dir("d") is False
        assert (await box.files.rename("a", "d/a")).path == "/home/user/d/a"
        assert [e.name for e in await box.files.list("d")] == ["a"]
        assert (await box.files.get_info("d/a")).size == 1
        await box.files.remove("d")
        assert await box.files.exists("d") is False
        with pytest.raises(FileNotFoundException):
            await box.files.read("missing")
        with pytest.raises(FileNotFoundException):
            await box.files.get_info("missing")
        with pytest.raises(InvalidArgumentException):
            await box.files.read("/tmp")
        written = await box.files.write("m", "x", metadata={"author": "mish"})
        assert written.metadata == {"author": "mish"}


@pytest.mark.skipif(not NEW, reason="iterables came later")
async def test_write_async_iterable():
    async def chunks():
        for i in range(20):
            yield bytes([i]) * 50_000

    async with async_box() as box:
        await box.files.write("streamed", chunks())
        assert bytes(await box.files.read("streamed", format="bytes")) == b"".join(bytes([i]) * 50_000 for i in range(20))


async def test_watch():
    async with async_box() as box:
        await box.files.make_dir("w/old")
        events, exits = Events(), Events()
        handle = await box.files.watch_dir("w", events, on_exit=exits, recursive=True, include_entry=True)
        await box.files.write("w/old/f", "four")
        created = await events.until(lambda e: e.type == Event.CREATE and e.name == "old/f")
        assert created.entry.path == "/home/user/w/old/f"
        await events.until(lambda e: e.type == Event.WRITE and e.name == "old/f")
        await box.files.write("w/new/g", "x")
        await events.until(lambda e: e.type == Event.CREATE and e.name == "new/g")
        await box.files.rename("w/new/g", "w/h")
        await events.until(lambda e: e.type == Event.RENAME and e.name == "new/g")
        await events.until(lambda e: e.type == Event.CREATE and e.name == "h")
        await box.files.remove("w/h")
        await events.until(lambda e: e.type == Event.REMOVE and e.name == "h")
        await handle.stop()
        assert exits.items == [None]
        with pytest.raises(FileNotFoundException):
            await box.files.watch_dir("missing", events)
        with pytest.raises(InvalidArgumentException):
            await box.files.watch_dir("w/old/f", events)


async def test_watch_ends_with_the_sandbox():
    async with async_box() as box:
        exits = Events()
        await box.files.watch_dir(".", lambda event: None, on_exit=exits)
        await box.kill()
        err = await exits.until(lambda item: True)
        assert isinstance(err, TimeoutException)
        assert GONE in str(err)


async def test_pty():
    async with async_box() as box:
        shown = []
        seen = Events()

        def on_data(data):
            shown.append(data)
            seen(b"".join(shown))

        handle = await box.pty.create(PtySize(rows=37, cols=101), on_data)
        await box.pty.send_stdin(handle.pid, b"echo size=$(stty size | tr ' ' x)\n")
        await seen.until(lambda text: b"size=37x101" in text)
        await box.pty.resize(handle.pid, PtySize(rows=44, cols=133))
        await box.pty.send_stdin(handle.pid, b"echo now=$(stty size | tr ' ' x)\n")
        await seen.until(lambda text: b"now=44x133" in text)
        other = Events()
        second = await box.pty.connect(handle.pid, other)
        await box.pty.send_stdin(handle.pid, b"exit 5\n")
        for each in (handle, second):
            with pytest.raises(CommandExitException) as caught:
                await each.wait()
            assert caught.value.exit_code == 5
        third = await box.pty.create(PtySize(24, 80), on_data)
        assert await box.pty.kill(third.pid) is True
        assert await box.pty.kill(third.pid) is False


async def test_git():
    async with async_box() as box:
        await box.git.init("repo", initial_branch="main")
        await box.git.configure_user("Ada", "ada@example.com")
        await box.files.write("repo/f", "x")
        await box.git.add("repo")
        await box.git.commit("repo", "first")
        assert (await box.git.status("repo")).is_clean is True
        await box.git.create_branch("repo", "next")
        assert (await box.git.branches("repo")).current_branch == "next"
        await box.git.clone("/home/user/repo", path="copy")
        assert await box.files.read("copy/f") == "x"
