// Pause and resume through the SDK: what is kept, who may wake a sandbox, and
// what repeated and concurrent calls answer.
import assert from 'node:assert/strict';
import { Sandbox, api, apiError, eventually, rawSandbox, sandbox, test } from './harness.mjs';

const count = '(i=0; while :; do i=$((i+1)); echo >> /tmp/n; sleep 0.05; done) >/dev/null 2>&1 & echo $!';
const counts = (pid) => `kill -0 ${pid} && a=$(stat -c %s /tmp/n) && sleep 0.3 && [ "$(stat -c %s /tmp/n)" -gt "$a" ] && echo counts`;

test('pause and connect keep processes, files and variables', async (t) => {
  const box = await sandbox(t, { envs: { GREETING: 'hello' }, metadata: { keep: 'me' } });
  const { stdout: pid } = await box.commands.run(count);
  await box.files.write('/home/user/kept.txt', 'content');
  assert.equal(await box.pause(), true);
  assert.equal(await box.pause(), false, 'a second pause says that nothing changed');
  assert.equal(await box.isRunning(), false);
  const info = await Sandbox.getInfo(box.sandboxId);
  assert.equal(info.state, 'paused');
  assert.deepEqual(info.metadata, { keep: 'me' });

  const again = await Sandbox.connect(box.sandboxId, { timeoutMs: 60_000 });
  assert.equal(again.sandboxId, box.sandboxId);
  assert.equal(await again.files.read('/home/user/kept.txt'), 'content');
  const run = await again.commands.run(`echo $GREETING; ${counts(pid.trim())}`);
  assert.equal(run.stdout, 'hello\ncounts\n');
  // The handle from before works too: id and token are the same.
  assert.equal((await box.commands.run('echo old')).stdout, 'old\n');
  assert.equal((await box.getInfo()).state, 'running');
});

test('a command is found again by its pid after a resume', async (t) => {
  const box = await sandbox(t);
  const handle = await box.commands.run('sleep 3; echo done; exit 7', { background: true });
  await box.pause();
  await box.connect();
  const found = await box.commands.connect(handle.pid);
  await assert.rejects(found.wait(), (err) => err.exitCode === 7);
});

test('listing tells paused from running', async (t) => {
  const metadata = { suite: `pause-${Date.now()}` };
  const [running, paused] = await Promise.all([sandbox(t, { metadata }), sandbox(t, { metadata })]);
  await paused.pause();
  const ids = async (state) => (await Sandbox.list({ query: { metadata, state } }).nextItems()).map((s) => s.sandboxId);
  assert.deepEqual(await ids(['running']), [running.sandboxId]);
  assert.deepEqual(await ids(['paused']), [paused.sandboxId]);
  assert.equal((await ids(['running', 'paused'])).length, 2);
});

test('many at once', async (t) => {
  const box = await sandbox(t);
  await box.commands.run('echo kept > /tmp/f');
  const pauses = await Promise.all(Array.from({ length: 5 }, () => Sandbox.pause(box.sandboxId)));
  assert.ok(pauses.includes(true), `one of them paused it: ${pauses}`);
  const boxes = await Promise.all(Array.from({ length: 5 }, () => Sandbox.connect(box.sandboxId)));
  for (const b of boxes) assert.equal((await b.commands.run('cat /tmp/f')).stdout, 'kept\n');
});

test('pause on timeout, and again after a resume', async (t) => {
  const box = await sandbox(t, { timeoutMs: 2_000, lifecycle: { onTimeout: 'pause' } });
  assert.deepEqual((await box.getInfo()).lifecycle, { onTimeout: 'pause', autoResume: false });
  await box.commands.run('echo kept > /tmp/f');
  const paused = () => eventually(async () => (await Sandbox.getInfo(box.sandboxId)).state === 'paused', { within: 10_000, what: 'pause' });
  await paused();
  const again = await Sandbox.connect(box.sandboxId, { timeoutMs: 2_000 });
  assert.equal((await again.commands.run('cat /tmp/f')).stdout, 'kept\n');
  await paused();
});

test('traffic wakes a sandbox that wants it', async (t) => {
  const box = await sandbox(t, { lifecycle: { onTimeout: 'pause', autoResume: true } });
  assert.deepEqual((await box.getInfo()).lifecycle, { onTimeout: 'pause', autoResume: true });
  const { stdout: pid } = await box.commands.run(count);
  await box.pause();
  assert.equal((await box.commands.run(counts(pid.trim()))).stdout, 'counts\n');
  await box.pause();
  assert.equal(await box.isRunning(), true, 'a health check is traffic');
});

test('files only', async (t) => {
  const box = await sandbox(t);
  await box.commands.run(count);
  await box.files.write('/home/user/kept.txt', 'content');
  assert.equal(await Sandbox.pause(box.sandboxId, { keepMemory: false }), true);
  await box.connect();
  assert.equal(await box.files.read('/home/user/kept.txt'), 'content');
  const run = await box.commands.run("ps -eo args | grep '[s]leep 0.05' || echo fresh");
  assert.equal(run.stdout, 'fresh\n');
});

test('kill of a paused sandbox', async (t) => {
  const box = await sandbox(t);
  await box.pause();
  assert.equal(await Sandbox.kill(box.sandboxId), true);
  assert.equal(await Sandbox.kill(box.sandboxId), false);
  await assert.rejects(Sandbox.connect(box.sandboxId), (err) => err.name === 'SandboxNotFoundError' || err.name === 'NotFoundError');
});

test('a timeout cannot be set while paused', async (t) => {
  const box = await sandbox(t);
  await box.pause();
  await assert.rejects(box.setTimeout(10_000));
  assert.equal((await Sandbox.getInfo(box.sandboxId)).state, 'paused');
});

test('pause: the answers on the wire', async (t) => {
  const box = await rawSandbox(t);
  const call = (verb, body, id = box.sandboxID) => api('POST', `/sandboxes/${id}/${verb}`, body);
  apiError(await call('pause', {}, 'i0000000000000000dead'), 404, /doesn't exist/);
  apiError(await call('pause', { memory: 'no' }), 400, /memory/);
  apiError(await call('resume', { timeout: 60 }), 409, /running/);
  assert.equal((await call('connect', { timeout: 60 })).status, 200);
  assert.equal((await call('pause', { requireHealthyGuest: true })).status, 204);
  apiError(await call('pause'), 409, /paused/);
  apiError(await api('POST', `/sandboxes/${box.sandboxID}/timeout`, { timeout: 60 }), 409, /is paused/);
  apiError(await call('connect', { timeout: 60, memory: false }), 400, /memory/);
  apiError(await call('connect', { timeout: 0 }), 400, /timeout/);
  apiError(await call('connect', { timeout: 10_000_000 }), 400, /timeout/);
  const resumed = await call('resume', { timeout: 60 });
  assert.equal(resumed.status, 201);
  assert.equal(resumed.json.sandboxID, box.sandboxID);
  assert.equal(resumed.json.envdAccessToken, box.envdAccessToken);
  assert.equal((await call('pause', { memory: false })).status, 204);
  const connected = await call('connect', { timeout: 60 });
  assert.equal(connected.status, 201);
  assert.equal(connected.json.envdAccessToken, box.envdAccessToken);
  assert.equal((await api('DELETE', `/sandboxes/${box.sandboxID}`)).status, 204);
  for (const verb of ['pause', 'resume', 'connect']) apiError(await call(verb, { timeout: 60 }), 404, /doesn't exist/);
});
