"""The Template builder: steps, files, start commands, tags, logs, failures.

Everything stands on the template base, so that nothing needs the internet.
"""

import asyncio
import os
import urllib.error
import urllib.request

import pytest
from support import API_URL, NEW, unique

if not NEW:
    pytest.skip("the builder of the newest SDK only", allow_module_level=True)

from e2b import AsyncTemplate, Sandbox, Template, wait_for_port  # noqa: E402
from e2b.exceptions import BuildException  # noqa: E402


def delete_template(name):
    request = urllib.request.Request(
        f"{API_URL}/templates/{name}", method="DELETE", headers={"X-API-Key": os.environ["E2B_API_KEY"]}
    )
    try:
        urllib.request.urlopen(request, timeout=10).close()
    except urllib.error.HTTPError as err:
        assert err.code == 404, err.read()


@pytest.fixture
def name():
    """The name of a template that is deleted when the test ends."""
    chosen = unique("tmpl")
    yield chosen
    delete_template(chosen)


@pytest.fixture
def create_of(name, create):
    """Sandboxes that are killed before the template of name is deleted."""
    return create


def test_steps(name, create_of, tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "main.py").write_text("print('from a file')\n")
    (tmp_path / "src" / ".hidden").write_text("h")
    (tmp_path / "plain.txt").write_text("not gzipped")
    logs = []
    template = (
        Template(file_context_path=tmp_path)
        .from_template("base")
        .copy("src", "/app/src")
        .copy("plain.txt", "/app/", gzip=False, user="root", mode=0o600)
        .set_envs({"GREETING": "hello there"})
        .set_workdir("/app/src")
        .run_cmd(["python3 main.py > out.txt", "whoami >> out.txt"])
        .run_cmd("echo root > /etc/from-root", user="root")
    )
    info = Template.build(template, name, on_build_logs=logs.append)
    assert info.name == name
    assert any("RUN python3 main.py" in entry.message for entry in logs)
    assert any("Build finished" in entry.message for entry in logs)
    box = create_of(name)
    assert box.commands.run("pwd; cat out.txt .hidden").stdout == "/app/src\nfrom a file\nuser\nh"
    assert box.commands.run("echo $GREETING; cat /etc/from-root").stdout == "hello there\nroot\n"
    assert box.commands.run("sudo cat /app/plain.txt; stat -c '%U %a' /app/plain.txt").stdout == "not gzippedroot 600\n"
    again = []
    Template.build(template, name, on_build_logs=again.append)
    assert any("CACHED" in entry.message for entry in again)


def test_start_command(name, create_of):
    template = (
        Template()
        .from_template("base")
        .run_cmd("mkdir -p /home/user/www && echo served > /home/user/www/index.html")
        .set_workdir("/home/user/www")
        .set_start_cmd("python3 -m http.server 8124", wait_for_port(8124))
    )
    Template.build(template, name, cpu_count=1, memory_mb=512)
    box = create_of(name, envs={"MINE": "x"})
    assert box.commands.run("curl -sS http://localhost:8124/; echo $MINE").stdout == "served\nx\n"


def test_tags(name, create_of):
    assert Template.exists(name) is False
    template = Template().from_template("base").run_cmd("echo one > /home/user/v")
    first = Template.build(template, f"{name}:v1", tags=["stable"])
    assert sorted(first.tags) == ["stable", "v1"]
    assert Template.exists(name) and Template.exists(f"{name}:v1") and not Template.exists(f"{name}:v2")
    assert Template.assign_tags(f"{name}:v1", "default").build_id == first.build_id
    assert create_of(name).commands.run("cat v").stdout == "one\n"
    assert {t.tag for t in Template.get_tags(name)} == {"v1", "stable", "default"}
    Template.remove_tags(name, ["stable"])
    assert {t.tag for t in Template.get_tags(name)} == {"v1", "default"}


def test_failures(name):
    logs = []
    with pytest.raises(BuildException, match="failed to run command 'echo last words; exit 3'"):
        Template.build(
            Template().from_template("base").run_cmd("echo last words; exit 3"), name, on_build_logs=logs.append
        )
    assert any("last words" in entry.message for entry in logs)
    with pytest.raises(BuildException, match="invalid username: 'root123'"):
        Template.build(Template().from_template("base").run_cmd("whoami", user="root123"), name)
    with pytest.raises(BuildException, match="CPU count must be 1 or an even number"):
        Template.build(Template().from_template("base"), name, cpu_count=3)


async def test_background(name):
    info = await AsyncTemplate.build_in_background(Template().from_template("base").run_cmd("sleep 1"), name)
    assert (await AsyncTemplate.get_build_status(info)).status.value == "building"
    status = None
    for _ in range(400):
        status = await AsyncTemplate.get_build_status(info)
        if status.status.value != "building":
            break
        await asyncio.sleep(0.1)
    assert status.status.value == "ready"
    assert await AsyncTemplate.exists(name) is True
    box = Sandbox.create(name, timeout=60)
    try:
        assert box.commands.run("echo works").stdout == "works\n"
    finally:
        box.kill()
