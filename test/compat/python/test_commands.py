"""Commands and processes through the synchronous API."""

import threading
import time

import pytest
from e2b import (
    AuthenticationException,
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    Sandbox,
    SandboxException,
    TimeoutException,
)
from support import NEW

GONE = "sandbox was killed or reached its end of life"


def test_result(box):
    result = box.commands.run("echo out; echo err >&2")
    assert (result.exit_code, result.stdout, result.stderr, result.error) == (0, "out\n", "err\n", None)


def test_exit_code(box):
    with pytest.raises(CommandExitException) as caught:
        box.commands.run("echo out; echo err >&2; exit 3")
    err = caught.value
    assert (err.exit_code, err.stdout, err.stderr, err.error) == (3, "out\n", "err\n", "exit status 3")


def test_command_not_found(box):
    with pytest.raises(CommandExitException) as caught:
        box.commands.run("no-such-command-here")
    assert caught.value.exit_code == 127
    assert "no-such-command-here: command not found" in caught.value.stderr


def test_users(box):
    assert box.commands.run("whoami; pwd; sudo -n id -u").stdout == "user\n/home/user\n0\n"
    assert box.commands.run("id -u; echo $HOME:$USER", user="root").stdout == "0\n/root:root\n"
    with pytest.raises(AuthenticationException, match="invalid username: 'nosuchuser'"):
        box.commands.run("true", user="nosuchuser")


def test_environment(create):
    box = create(envs={"FROM_CREATE": "create", "BOTH": "create"})
    run = box.commands.run("echo $E2B_SANDBOX $E2B_SANDBOX_ID $FROM_CREATE $FROM_RUN $BOTH", envs={"FROM_RUN": "run", "BOTH": "run"})
    assert run.stdout == f"true {box.sandbox_id} create run run\n"


def test_working_directory(box):
    box.files.make_dir("project")
    assert box.commands.run("pwd", cwd="/usr/lib").stdout == "/usr/lib\n"
    assert box.commands.run("pwd", cwd="project").stdout == "/home/user/project\n"
    assert box.commands.run("pwd", cwd="~").stdout == "/home/user\n"
    with pytest.raises(InvalidArgumentException, match="cwd '/no/such/dir' does not exist"):
        box.commands.run("pwd", cwd="/no/such/dir")


def test_timeout_kills(box, eventually):
    started = time.monotonic()
    with pytest.raises(TimeoutException):
        box.commands.run("sleep 31.7", timeout=1)
    assert time.monotonic() - started < 4
    eventually(lambda: box.commands.run("pgrep -f 'sleep 31[.]7' || true").stdout == "", within=3)
    assert box.commands.run("sleep 0.3; echo done", timeout=0).stdout == "done\n"


def test_callbacks_come_while_it_runs(box):
    out, err, seen = [], [], []

    def on_stdout(text):
        seen.append(time.monotonic())
        out.append(text)

    result = box.commands.run("for i in 1 2 3; do echo o$i; echo e$i >&2; sleep 0.4; done", on_stdout=on_stdout, on_stderr=err.append)
    assert "".join(out) == result.stdout == "o1\no2\no3\n"
    assert "".join(err) == result.stderr == "e1\ne2\ne3\n"
    assert time.monotonic() - seen[0] > 0.8


def test_large_output(box):
    result = box.commands.run("seq 1 500000; head -c 1000000 /dev/zero | tr '\\0' e >&2")
    assert result.stdout == "".join(f"{i}\n" for i in range(1, 500_001))
    assert result.stderr == "e" * 1_000_000


def test_split_characters(box):
    out = []
    command = r"printf 'a\xe2'; sleep 0.3; printf '\x82'; sleep 0.3; printf '\xacb'"
    assert box.commands.run(command, on_stdout=out.append).stdout == "a€b"
    assert "".join(out) == "a€b"
    assert box.commands.run(r"printf 'x\xffy'").stdout == "x\ufffdy"


def test_background(box):
    started = time.monotonic()
    handle = box.commands.run("sleep 0.8; echo done", background=True)
    assert time.monotonic() - started < 0.8
    assert handle.pid > 1
    assert handle.wait().stdout == "done\n"


def test_iterating_a_handle(box):
    handle = box.commands.run("echo one; sleep 0.2; echo two >&2", background=True)
    events = [(out, err) for out, err, _ in handle]
    assert events == [("one\n", None), (None, "two\n")]
    assert handle.wait().exit_code == 0


def test_stdin(box):
    assert box.commands.run("cat; echo end").stdout == "end\n"
    handle = box.commands.run("while read -r l; do echo got $l; done; echo eof", background=True, stdin=True)
    box.commands.send_stdin(handle.pid, "one\n")
    handle.send_stdin(b"two\n")
    handle.close_stdin()
    assert handle.wait().stdout == "got one\ngot two\neof\n"
    closing = box.commands.run("cat >/dev/null; sleep 1", background=True, stdin=True)
    box.commands.close_stdin(closing.pid)
    box.commands.close_stdin(closing.pid)
    with pytest.raises(SandboxException):
        closing.send_stdin("late")
    assert closing.wait().exit_code == 0
    closed = box.commands.run("sleep 5", background=True)
    with pytest.raises(SandboxException):
        box.commands.send_stdin(closed.pid, "x")
    with pytest.raises(NotFoundException):
        box.commands.send_stdin(999_999, "x")


@pytest.mark.skipif(not NEW, reason="stream_input came later")
def test_streamed_stdin(box):
    handle = box.commands.run("sha256sum | cut -c1-8; echo end", background=True, stdin=True)
    box.commands.stream_input(handle.pid, (bytes([i % 256]) * 10_000 for i in range(40)))
    handle.close_stdin()
    import hashlib

    want = hashlib.sha256(b"".join(bytes([i % 256]) * 10_000 for i in range(40))).hexdigest()[:8]
    assert handle.wait().stdout == f"{want}\nend\n"
    with pytest.raises(NotFoundException):
        box.commands.stream_input(999_999, ["x"])


@pytest.mark.skipif(not NEW, reason="retain_output came later")
def test_output_that_is_not_kept(box):
    seen = []
    result = box.commands.run("seq 1 1000", on_stdout=seen.append, retain_output=False)
    assert result.stdout is None
    assert "".join(seen).splitlines()[-1] == "1000"


def test_list(box, eventually):
    assert box.commands.list() == []
    handle = box.commands.run("sleep 41", background=True, cwd="/tmp", envs={"A": "1"})
    (process,) = box.commands.list()
    assert (process.pid, process.cmd, process.args) == (handle.pid, "/bin/bash", ["-l", "-c", "sleep 41"])
    assert (process.envs, process.cwd, process.tag) == ({"A": "1"}, "/tmp", None)
    handle.kill()
    eventually(lambda: box.commands.list() == [])


def test_kill(box):
    handle = box.commands.run("sleep 60", background=True)
    assert box.commands.kill(handle.pid) is True
    with pytest.raises(CommandExitException) as caught:
        handle.wait()
    assert (caught.value.exit_code, caught.value.error) == (-1, "signal: killed")
    with pytest.raises(CommandExitException):
        box.commands.run(f"kill -0 {handle.pid}")
    assert box.commands.kill(handle.pid) is False
    assert handle.kill() is False


def test_connect(box):
    first = box.commands.run("read -r x; echo got $x; exit 6", background=True, stdin=True)
    second = Sandbox.connect(box.sandbox_id).commands.connect(first.pid)
    assert second.pid == first.pid
    second.send_stdin("hello\n")
    for handle in (first, second):
        with pytest.raises(CommandExitException) as caught:
            handle.wait()
        assert (caught.value.exit_code, caught.value.stdout) == (6, "got hello\n")
    with pytest.raises(NotFoundException):
        box.commands.connect(999_999)


def test_connect_after_the_end(box):
    handle = box.commands.run("exit 7", background=True)
    with pytest.raises(CommandExitException):
        handle.wait()
    time.sleep(0.5)
    with pytest.raises(CommandExitException) as caught:
        box.commands.connect(handle.pid).wait()
    assert caught.value.exit_code == 7


def test_disconnect_and_connect_again(box):
    handle = box.commands.run("read -r go; for i in $(seq 2000); do printf '%05d %90s\\n' $i x; done; echo last", background=True, stdin=True)
    handle.disconnect()
    assert [p.pid for p in box.commands.list()] == [handle.pid]
    again = box.commands.connect(handle.pid)
    again.send_stdin("go\n")
    lines = again.wait().stdout.splitlines()
    assert len(lines) == 2001
    assert lines[1999].startswith("02000 ")
    assert lines[2000] == "last"


def test_sandbox_killed_while_a_command_runs():
    box = Sandbox.create(timeout=60)
    handle = box.commands.run("echo before; sleep 60", background=True)
    killer = threading.Timer(0.5, box.kill)
    killer.start()
    started = time.monotonic()
    with pytest.raises(TimeoutException, match=GONE):
        handle.wait()
    assert time.monotonic() - started < 5
    killer.join()


def test_many_threads(box):
    results = [None] * 12

    def work(i):
        results[i] = box.commands.run(f"sleep 0.2; echo {i}").stdout

    threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [f"{i}\n" for i in range(12)]
