// The git module: a client of commands, with a git daemon inside the sandbox as
// the remote.
import assert from 'node:assert/strict';
import { eventually, fails, listening, sandbox, test } from './harness.mjs';

const author = { authorName: 'Ada', authorEmail: 'ada@example.com' };

async function repository(t) {
  const box = await sandbox(t);
  await box.git.init('/home/user/repo', { initialBranch: 'main' });
  await box.git.configureUser('Ada', 'ada@example.com');
  return { box, repo: '/home/user/repo' };
}

// daemon serves a bare repository from inside the sandbox.
async function daemon(t) {
  const { box, repo } = await repository(t);
  await box.git.init('/home/user/srv/remote.git', { bare: true, initialBranch: 'main' });
  await box.commands.run(
    'git daemon --reuseaddr --base-path=/home/user/srv --export-all --enable=receive-pack --listen=127.0.0.1 --port=9418 /home/user/srv',
    { background: true, timeoutMs: 0 },
  );
  const url = 'git://127.0.0.1/remote.git';
  await eventually(async () => {
    const probe = await box.commands.run(`git ls-remote ${url} >/dev/null 2>&1 && echo up || true`);
    return probe.stdout === 'up\n';
  }, { what: 'git daemon' });
  return { box, repo, url };
}

test('init, add, commit and status', async (t) => {
  const { box, repo } = await repository(t);
  await box.files.write('repo/a.txt', 'one');
  let status = await box.git.status(repo);
  assert.equal(status.currentBranch, 'main');
  assert.equal(status.hasUntracked, true);
  assert.deepEqual(status.fileStatus.map((f) => [f.name, f.status, f.staged]), [['a.txt', 'untracked', false]]);

  await box.git.add(repo);
  status = await box.git.status(repo);
  assert.deepEqual(status.fileStatus.map((f) => [f.name, f.status, f.staged]), [['a.txt', 'added', true]]);

  const commit = await box.git.commit(repo, "it's a \"message\"", { authorName: 'Bob', authorEmail: 'bob@example.com' });
  assert.equal(commit.exitCode, 0);
  status = await box.git.status(repo);
  assert.equal(status.isClean, true);
  assert.equal(status.totalCount, 0);
  const log = await box.commands.run(`git -C ${repo} log --format='%an <%ae> %s'`);
  assert.equal(log.stdout, `Bob <bob@example.com> it's a "message"\n`);

  await box.files.write('repo/a.txt', 'two');
  await box.files.write('repo/b.txt', 'new');
  await box.git.add(repo, { files: ['b.txt'] });
  status = await box.git.status(repo);
  assert.deepEqual(status.fileStatus.map((f) => [f.name, f.status, f.staged]).sort(), [
    ['a.txt', 'modified', false], ['b.txt', 'added', true],
  ]);
  await box.git.commit(repo, 'empty too', { ...author, allowEmpty: true });
  await fails(box.git.commit(repo, 'nothing staged', author), 'CommandExitError');
});

test('branches', async (t) => {
  const { box, repo } = await repository(t);
  await box.git.commit(repo, 'root', { ...author, allowEmpty: true });
  await box.git.createBranch(repo, 'feature/x');
  assert.deepEqual(await box.git.branches(repo), { branches: ['feature/x', 'main'], currentBranch: 'feature/x' });
  await box.git.checkoutBranch(repo, 'main');
  assert.equal((await box.git.branches(repo)).currentBranch, 'main');
  await box.git.deleteBranch(repo, 'feature/x');
  assert.deepEqual(await box.git.branches(repo), { branches: ['main'], currentBranch: 'main' });
  await fails(box.git.checkoutBranch(repo, 'nosuch'), 'CommandExitError');
});

test('reset and restore', async (t) => {
  const { box, repo } = await repository(t);
  await box.files.write('repo/f', 'committed');
  await box.git.add(repo);
  await box.git.commit(repo, 'first', author);
  await box.files.write('repo/f', 'changed');
  await box.git.add(repo);
  await box.git.reset(repo, { paths: ['f'] });
  assert.equal((await box.git.status(repo)).hasStaged, false);
  assert.equal(await box.files.read('repo/f'), 'changed');
  await box.git.restore(repo, { paths: ['f'] });
  assert.equal(await box.files.read('repo/f'), 'committed');
  await box.git.commit(repo, 'second', { ...author, allowEmpty: true });
  await box.git.reset(repo, { mode: 'hard', target: 'HEAD~1' });
  assert.equal((await box.commands.run(`git -C ${repo} rev-list --count HEAD`)).stdout, '1\n');
  await fails(box.git.reset(repo, { mode: 'wild' }), 'InvalidArgumentError');
});

test('configuration', async (t) => {
  const { box, repo } = await repository(t);
  assert.equal(await box.git.getConfig('user.name'), 'Ada');
  await box.git.setConfig('user.name', 'Local', { scope: 'local', path: repo });
  assert.equal(await box.git.getConfig('user.name', { scope: 'local', path: repo }), 'Local');
  assert.equal(await box.git.getConfig('user.email', { scope: 'global' }), 'ada@example.com');
  assert.equal(await box.git.getConfig('no.such'), undefined);
  await box.git.dangerouslyAuthenticate({ username: 'u', password: 'p@ss', host: 'git.example.com' });
  assert.equal(await box.files.read('.git-credentials'), 'https://u:p%40ss@git.example.com\n');
});

test('remotes', async (t) => {
  const { box, repo } = await repository(t);
  assert.equal(await box.git.remoteGet(repo, 'origin'), undefined);
  await box.git.remoteAdd(repo, 'origin', 'https://git.example.com/a.git');
  assert.equal(await box.git.remoteGet(repo, 'origin'), 'https://git.example.com/a.git');
  await fails(box.git.remoteAdd(repo, 'origin', 'https://git.example.com/b.git'), 'CommandExitError');
  await box.git.remoteAdd(repo, 'origin', 'https://git.example.com/b.git', { overwrite: true });
  assert.equal(await box.git.remoteGet(repo, 'origin'), 'https://git.example.com/b.git');
});

test('push, clone and pull over a git daemon', async (t) => {
  const { box, repo, url } = await daemon(t);
  await box.files.write('repo/f', 'v1');
  await box.git.add(repo);
  await box.git.commit(repo, 'v1', author);
  await box.git.remoteAdd(repo, 'origin', url);
  await fails(box.git.push(repo), 'GitUpstreamError');
  await fails(box.git.pull(repo), 'GitUpstreamError');
  await box.git.push(repo, { remote: 'origin', branch: 'main' });
  assert.equal((await box.git.status(repo)).upstream, 'origin/main');

  await box.git.clone(url, { path: '/home/user/copy' });
  assert.equal(await box.files.read('copy/f'), 'v1');
  await box.git.clone(url, { path: '/home/user/shallow', branch: 'main', depth: 1 });
  assert.equal((await box.commands.run('git -C shallow rev-list --count HEAD')).stdout, '1\n');

  await box.files.write('repo/f', 'v2');
  await box.git.add(repo);
  await box.git.commit(repo, 'v2', author);
  assert.equal((await box.git.status(repo)).ahead, 1);
  await box.git.push(repo);
  assert.equal((await box.git.status(repo)).ahead, 0);
  await box.git.pull('/home/user/copy');
  assert.equal(await box.files.read('copy/f'), 'v2');
  // The daemon's words for what is not there are "access denied".
  await fails(box.git.clone('git://127.0.0.1/nosuch.git'), 'GitAuthError');
});

test('a remote that asks for credentials', async (t) => {
  const box = await sandbox(t);
  await box.files.write('deny.py', `
from http.server import BaseHTTPRequestHandler, HTTPServer
class Deny(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(401)
        self.send_header('WWW-Authenticate', 'Basic realm="git"')
        self.send_header('Content-Length', '0')
        self.end_headers()
HTTPServer(('127.0.0.1', 8099), Deny).serve_forever()
`);
  await box.commands.run('python3 deny.py', { background: true, timeoutMs: 0 });
  await listening(box, 8099);
  await fails(box.git.clone('http://127.0.0.1:8099/private.git'), 'GitAuthError');
  await fails(box.git.clone('http://127.0.0.1:8099/private.git', { username: 'u', password: 'wrong' }), 'GitAuthError');
});
