"""The other codec: a Connect client that speaks binary protobuf, with the
generated clients that the SDK ships but uses with JSON only."""

import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from e2b.envd.filesystem import filesystem_connect, filesystem_pb
from e2b.envd.process import process_connect, process_pb
from protobuf import Oneof
from support import SANDBOX_URL


PLAIN = {"send_compression": None, "accept_compression": ()}


def headers(box):
    return box.connection_config.sandbox_headers


def test_unary(box):
    client = filesystem_connect.FilesystemClientSync(SANDBOX_URL, **PLAIN)
    box.files.write("f", "four")
    entry = client.stat(filesystem_pb.StatRequest(path="f"), headers=headers(box)).entry
    assert (entry.name, entry.size, entry.mode, entry.owner) == ("f", 4, 0o644, "user")
    with pytest.raises(ConnectError) as caught:
        client.stat(filesystem_pb.StatRequest(path="missing"), headers=headers(box))
    assert caught.value.code == Code.NOT_FOUND


def test_stream(box):
    client = process_connect.ProcessClientSync(SANDBOX_URL, **PLAIN)
    request = process_pb.StartRequest(process=process_pb.ProcessConfig(cmd="/bin/sh", args=["-c", "printf '\\377'; exit 3"]), stdin=False)
    events = [message.event.event for message in client.start(request, headers=headers(box))]
    assert [event.field for event in events] == ["start", "data", "end"]
    assert events[1].value.output == Oneof("stdout", b"\xff")
    assert events[2].value.exit_code == 3
