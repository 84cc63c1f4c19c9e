"""Terminals through the synchronous API."""

import re

import pytest
from e2b import CommandExitException, NotFoundException, PtySize, SandboxException, TimeoutException
from support import NEW


def read_until(handle, pattern):
    """Reads terminal output until pattern shows; the test's limit ends a wait
    for what never comes."""
    text = ""
    for _, _, data in handle:
        text += data.decode(errors="replace")
        if re.search(pattern, text):
            return text
    raise AssertionError(f"terminal ended without {pattern}: {text!r}")


def test_shell(box):
    handle = box.pty.create(PtySize(rows=37, cols=101))
    box.pty.send_stdin(handle.pid, b"echo answer=$((40+2)) size=$(stty size | tr ' ' x) term=$TERM\n")
    read_until(handle, r"answer=42 size=37x101 term=xterm-256color")
    box.pty.resize(handle.pid, PtySize(rows=44, cols=133))
    box.pty.send_stdin(handle.pid, b"echo now=$(stty size | tr ' ' x) cols=$(tput cols)\n")
    read_until(handle, r"now=44x133 cols=133")
    box.pty.send_stdin(handle.pid, b"exit 5\n")
    with pytest.raises(CommandExitException) as caught:
        handle.wait()
    assert caught.value.exit_code == 5


def test_options(create):
    box = create(envs={"FROM_CREATE": "c"})
    handle = box.pty.create(PtySize(24, 80), user="root", cwd="/usr/lib", envs={"MINE": "m"})
    box.pty.send_stdin(handle.pid, b'echo "[$(whoami):$(pwd):$MINE:$FROM_CREATE]"\n')
    read_until(handle, r"\[root:/usr/lib:m:c\]")


def test_connect(box):
    handle = box.pty.create(PtySize(24, 80))
    box.pty.send_stdin(handle.pid, b"MARK=kept\n")
    handle.disconnect()
    again = box.pty.connect(handle.pid)
    assert again.pid == handle.pid
    box.pty.send_stdin(again.pid, b"echo mark=$MARK\n")
    read_until(again, "mark=kept")
    with pytest.raises(NotFoundException):
        box.pty.connect(999_999)


def test_kill(box):
    handle = box.pty.create(PtySize(24, 80))
    assert box.pty.kill(handle.pid) is True
    with pytest.raises(CommandExitException):
        handle.wait()
    assert box.pty.kill(handle.pid) is False


def test_timeout(box):
    with pytest.raises(TimeoutException):
        box.pty.create(PtySize(24, 80), timeout=1).wait()


def test_what_is_no_terminal(box):
    plain = box.commands.run("sleep 20", background=True, stdin=True)
    with pytest.raises(SandboxException):
        box.pty.send_stdin(plain.pid, b"x")
    with pytest.raises(SandboxException):
        box.pty.resize(plain.pid, PtySize(24, 80))


@pytest.mark.skipif(not NEW, reason="stream_input came later")
def test_streamed_input(box):
    handle = box.pty.create(PtySize(24, 80))
    box.pty.stream_input(handle.pid, [b"echo answer=", "$((40+2))", b"\n"])
    read_until(handle, "answer=42")
