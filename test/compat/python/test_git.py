"""The git module, with a git daemon inside the sandbox as the remote."""

import pytest
from e2b import CommandExitException, GitAuthException, GitUpstreamException, InvalidArgumentException

REPO = "/home/user/repo"
AUTHOR = {"author_name": "Ada", "author_email": "ada@example.com"}


@pytest.fixture
def repo(box):
    box.git.init(REPO, initial_branch="main")
    box.git.configure_user("Ada", "ada@example.com")
    return box


def files(status):
    return sorted((f.name, f.status, f.staged) for f in status.file_status)


def test_commit_and_status(repo):
    repo.files.write("repo/a.txt", "one")
    status = repo.git.status(REPO)
    assert status.current_branch == "main"
    assert files(status) == [("a.txt", "untracked", False)]
    repo.git.add(REPO)
    assert files(repo.git.status(REPO)) == [("a.txt", "added", True)]
    repo.git.commit(REPO, "it's a \"message\"", author_name="Bob", author_email="bob@example.com")
    assert repo.git.status(REPO).is_clean is True
    log = repo.commands.run(f"git -C {REPO} log --format='%an <%ae> %s'")
    assert log.stdout == "Bob <bob@example.com> it's a \"message\"\n"
    repo.git.commit(REPO, "empty", allow_empty=True, **AUTHOR)
    with pytest.raises(CommandExitException):
        repo.git.commit(REPO, "nothing staged", **AUTHOR)


def test_branches(repo):
    repo.git.commit(REPO, "root", allow_empty=True, **AUTHOR)
    repo.git.create_branch(REPO, "feature/x")
    found = repo.git.branches(REPO)
    assert (found.branches, found.current_branch) == (["feature/x", "main"], "feature/x")
    repo.git.checkout_branch(REPO, "main")
    repo.git.delete_branch(REPO, "feature/x")
    found = repo.git.branches(REPO)
    assert (found.branches, found.current_branch) == (["main"], "main")


def test_reset_and_restore(repo):
    repo.files.write("repo/f", "committed")
    repo.git.add(REPO)
    repo.git.commit(REPO, "first", **AUTHOR)
    repo.files.write("repo/f", "changed")
    repo.git.add(REPO, files=["f"])
    repo.git.reset(REPO, paths=["f"])
    assert repo.git.status(REPO).has_staged is False
    repo.git.restore(REPO, paths=["f"])
    assert repo.files.read("repo/f") == "committed"
    repo.git.commit(REPO, "second", allow_empty=True, **AUTHOR)
    repo.git.reset(REPO, mode="hard", target="HEAD~1")
    assert repo.commands.run(f"git -C {REPO} rev-list --count HEAD").stdout == "1\n"
    with pytest.raises(InvalidArgumentException):
        repo.git.reset(REPO, mode="wild")


def test_configuration_and_remotes(repo):
    assert repo.git.get_config("user.name") == "Ada"
    repo.git.set_config("user.name", "Local", scope="local", path=REPO)
    assert repo.git.get_config("user.name", scope="local", path=REPO) == "Local"
    assert repo.git.get_config("no.such") is None
    repo.git.dangerously_authenticate("u", "p@ss", host="git.example.com")
    assert repo.files.read(".git-credentials") == "https://u:p%40ss@git.example.com\n"
    assert repo.git.remote_get(REPO, "origin") is None
    repo.git.remote_add(REPO, "origin", "https://git.example.com/a.git")
    repo.git.remote_add(REPO, "origin", "https://git.example.com/b.git", overwrite=True)
    assert repo.git.remote_get(REPO, "origin") == "https://git.example.com/b.git"


def test_push_clone_pull(repo, eventually):
    url = "git://127.0.0.1/remote.git"
    repo.git.init("/home/user/srv/remote.git", bare=True, initial_branch="main")
    repo.commands.run(
        "git daemon --reuseaddr --base-path=/home/user/srv --export-all --enable=receive-pack --listen=127.0.0.1 --port=9418 /home/user/srv",
        background=True,
        timeout=0,
    )
    eventually(lambda: repo.commands.run(f"git ls-remote {url} >/dev/null 2>&1 && echo up || true").stdout == "up\n")
    repo.files.write("repo/f", "v1")
    repo.git.add(REPO)
    repo.git.commit(REPO, "v1", **AUTHOR)
    repo.git.remote_add(REPO, "origin", url)
    with pytest.raises(GitUpstreamException):
        repo.git.push(REPO)
    with pytest.raises(GitUpstreamException):
        repo.git.pull(REPO)
    repo.git.push(REPO, remote="origin", branch="main")
    assert repo.git.status(REPO).upstream == "origin/main"
    repo.git.clone(url, path="/home/user/copy")
    repo.git.clone(url, path="/home/user/shallow", branch="main", depth=1)
    assert repo.files.read("copy/f") == repo.files.read("shallow/f") == "v1"
    repo.files.write("repo/f", "v2")
    repo.git.add(REPO)
    repo.git.commit(REPO, "v2", **AUTHOR)
    assert repo.git.status(REPO).ahead == 1
    repo.git.push(REPO)
    repo.git.pull("/home/user/copy")
    assert repo.files.read("copy/f") == "v2"


def test_credentials(box):
    box.files.write(
        "deny.py",
        """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Deny(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(401)
        self.send_header('WWW-Authenticate', 'Basic realm="git"')
        self.send_header('Content-Length', '0')
        self.end_headers()
HTTPServer(('127.0.0.1', 8099), Deny).serve_forever()
""",
    )
    box.commands.run("python3 deny.py", background=True, timeout=0)
    box.commands.run("for i in $(seq 200); do (exec 3<>/dev/tcp/127.0.0.1/8099) 2>/dev/null && exit 0; sleep 0.05; done; exit 1")
    with pytest.raises(GitAuthException):
        box.git.clone("http://127.0.0.1:8099/private.git")
