// Lifecycle through the SDK: create with every option that is built, connect,
// info, timeouts, kill, and what a host name looks like.
import assert from 'node:assert/strict';
import { Sandbox, delay, eventually, fails, isNew, sandbox, sdk, test, unique, unknownSandbox } from './harness.mjs';

const seconds = (info) => (info.endAt.getTime() - info.startedAt.getTime()) / 1000;
const near = (got, want, tolerance, what) =>
  assert.ok(Math.abs(got - want) <= tolerance, `${what} = ${got}, want ${want} ± ${tolerance}`);

test('create without options', async (t) => {
  const before = Date.now();
  const box = await Sandbox.create();
  t.after(() => box.kill());
  assert.match(box.sandboxId, /^[a-z0-9]+$/);
  assert.equal(await box.isRunning(), true);

  const info = await box.getInfo();
  assert.equal(info.sandboxId, box.sandboxId);
  assert.equal(info.state, 'running');
  assert.equal(info.name, 'base');
  assert.match(info.templateId, /^[a-z0-9]+$/);
  assert.deepEqual(info.metadata, {});
  assert.deepEqual(info.volumeMounts, []);
  assert.deepEqual(info.lifecycle, { onTimeout: 'kill', autoResume: false });
  assert.ok(Number.isInteger(info.cpuCount) && info.cpuCount >= 1, `cpuCount ${info.cpuCount}`);
  assert.ok(Number.isInteger(info.memoryMB) && info.memoryMB >= 128, `memoryMB ${info.memoryMB}`);
  assert.match(info.envdVersion, /^\d+\.\d+\.\d+$/);
  const [major, minor, patch] = info.envdVersion.split('.').map(Number);
  assert.ok(major * 1e6 + minor * 1e3 + patch >= 6_004, `envdVersion ${info.envdVersion} switches features off`);
  near(info.startedAt.getTime(), before, 15_000, 'startedAt');
  near(seconds(info), 300, 1, 'default timeout');
});

test('create by template name', async (t) => {
  const box = await Sandbox.create('base', { timeoutMs: 60_000 });
  t.after(() => box.kill());
  assert.equal((await box.getInfo()).name, 'base');
});

test('create with timeout, metadata and envs', async (t) => {
  const metadata = { owner: 'jürgen', 'with space': 'a&b=c%20', empty: '' };
  const box = await sandbox(t, {
    timeoutMs: 45_500,
    metadata,
    envs: { GREETING: 'hello world', QUOTED: `it's "x" $HOME` },
  });
  const info = await box.getInfo();
  near(seconds(info), 46, 1, 'timeout rounded up to seconds');
  assert.deepEqual(info.metadata, metadata);
  const run = await box.commands.run('printf "%s|%s" "$GREETING" "$QUOTED"');
  assert.equal(run.stdout, `hello world|it's "x" $HOME`);
});

test('secure is always on', async (t) => {
  for (const secure of [true, false]) {
    const box = await sandbox(t, { secure });
    assert.match(box.envdAccessToken ?? '', /^[0-9a-f]{64}$/, `token with secure: ${secure}`);
  }
});

test('explicit kill on timeout is accepted', async (t) => {
  const box = await sandbox(t, { lifecycle: { onTimeout: 'kill', autoResume: false } });
  assert.deepEqual((await box.getInfo()).lifecycle, { onTimeout: 'kill', autoResume: false });
});

test('connect by id reaches the same sandbox', async (t) => {
  const box = await sandbox(t);
  await box.files.write('marker', 'here');
  const other = await Sandbox.connect(box.sandboxId);
  assert.equal(other.sandboxId, box.sandboxId);
  assert.equal(other.sandboxDomain, box.sandboxDomain);
  assert.equal(other.envdAccessToken, box.envdAccessToken);
  assert.equal(await other.files.read('marker'), 'here');
  assert.equal(await box.connect(), box);
});

test('connect only ever extends the timeout', async (t) => {
  const box = await sandbox(t, { timeoutMs: 100_000 });
  const first = await box.getInfo();
  await Sandbox.connect(box.sandboxId, { timeoutMs: 10_000 });
  assert.equal((await box.getInfo()).endAt.getTime(), first.endAt.getTime());
  await Sandbox.connect(box.sandboxId, { timeoutMs: 500_000 });
  near((await box.getInfo()).endAt.getTime(), Date.now() + 500_000, 2_000, 'endAt after a longer connect');
  // What an SDK sends when the caller chose nothing: v1 says 300 s, v2 nothing.
  await box.setTimeout(20_000);
  await box.connect();
  near((await box.getInfo()).endAt.getTime(), Date.now() + 300_000, 2_000, 'endAt after a plain connect');
});

test('setTimeout extends and shortens', async (t) => {
  const box = await sandbox(t, { timeoutMs: 60_000 });
  await box.setTimeout(600_000);
  near((await box.getInfo()).endAt.getTime(), Date.now() + 600_000, 2_000, 'extended');
  await Sandbox.setTimeout(box.sandboxId, 30_000);
  near((await Sandbox.getInfo(box.sandboxId)).endAt.getTime(), Date.now() + 30_000, 2_000, 'shortened');
});

test('a sandbox lives until its timeout and not longer', async () => {
  const box = await Sandbox.create({ timeoutMs: 4_000 });
  const born = Date.now();
  // Use must not extend its life.
  const running = box.commands.run('sleep 60', { background: true });
  await delay(born + 2_700 - Date.now());
  assert.equal(await box.isRunning(), true, 'gone before its time');
  await eventually(async () => !(await box.isRunning()), { within: 3_500, what: 'expiry' });
  near(Date.now() - born, 4_000, 1_300, 'age at expiry in ms');
  await fails((await running).wait(), 'TimeoutError', /sandbox was killed or reached its end of life/);
  await fails(box.getInfo(), 'SandboxNotFoundError');
  await fails(Sandbox.connect(box.sandboxId), 'SandboxNotFoundError');
  await fails(box.setTimeout(60_000), 'SandboxNotFoundError');
  assert.equal(await box.kill(), false);
});

test('setTimeout of zero ends it now', async () => {
  const box = await Sandbox.create({ timeoutMs: 60_000 });
  await box.setTimeout(0);
  await eventually(async () => !(await box.isRunning()), { within: 2_500, what: 'expiry' });
  assert.equal(await box.kill(), false);
});

test('kill is true once, then false', async () => {
  const box = await Sandbox.create({ timeoutMs: 60_000 });
  assert.equal(await box.kill(), true);
  assert.equal(await box.isRunning(), false);
  assert.equal(await box.kill(), false);
  assert.equal(await Sandbox.kill(box.sandboxId), false);
  assert.equal(await Sandbox.kill(unknownSandbox), false);
});

test('kill by id', async () => {
  const box = await Sandbox.create({ timeoutMs: 60_000 });
  assert.equal(await Sandbox.kill(box.sandboxId), true);
  assert.equal(await box.isRunning(), false);
});

test('calls on a killed sandbox fail by name', async () => {
  const box = await Sandbox.create({ timeoutMs: 60_000 });
  await box.kill();
  await fails(box.commands.run('true'), 'SandboxNotFoundError');
  await fails(box.commands.list(), 'TimeoutError');
  await fails(box.files.read('x'), 'TimeoutError', /The sandbox was not found/);
  await fails(box.files.write('x', 'y'), 'TimeoutError', /The sandbox was not found/);
  await fails(box.files.list('.'), 'TimeoutError');
  await fails(box.files.watchDir('.', () => {}), 'SandboxNotFoundError');
  await fails(box.pty.create({ cols: 80, rows: 24, onData: () => {} }), 'SandboxNotFoundError');
});

test('unknown sandbox', async () => {
  await fails(Sandbox.connect(unknownSandbox), 'SandboxNotFoundError');
  await fails(Sandbox.getInfo(unknownSandbox), 'SandboxNotFoundError');
  await fails(Sandbox.setTimeout(unknownSandbox, 1_000), 'SandboxNotFoundError');
});

test('unknown template', async () => {
  const name = unique('nosuch');
  const err = await fails(Sandbox.create(name), 'SandboxError', new RegExp(`^404: .*${name}`));
  if (isNew) assert.equal(err.statusCode, 404);
});

test('a timeout out of range is refused', async () => {
  await fails(Sandbox.create({ timeoutMs: 0 }), 'SandboxError', /^400: .*timeout/i);
  await fails(Sandbox.create({ timeoutMs: -5_000 }), 'SandboxError', /^400: .*timeout/i);
  await fails(Sandbox.create({ timeoutMs: 400 * 24 * 3600 * 1000 }), 'SandboxError', /^400: .*timeout/i);
});

test('a day is an allowed timeout', async (t) => {
  const box = await sandbox(t, { timeoutMs: 24 * 3600 * 1000 });
  near(seconds(await box.getInfo()), 24 * 3600, 1, 'timeout');
});

test('getHost points at this server', async (t) => {
  const box = await sandbox(t);
  assert.ok(box.sandboxDomain, 'no domain');
  assert.doesNotMatch(box.sandboxDomain, /e2b\.(app|dev|pro)$/);
  assert.equal(box.getHost(3000), `3000-${box.sandboxId}.${box.sandboxDomain}`);
  assert.equal((await box.getInfo()).sandboxDomain, box.sandboxDomain);
});

test('a client object of its own, with its own key', async (t) => {
  const client = new sdk.E2B({ apiKey: process.env.E2B_API_KEY });
  const box = await client.Sandbox.create({ timeoutMs: 60_000 });
  t.after(() => box.kill());
  assert.equal((await box.commands.run('echo ok')).stdout, 'ok\n');
});

test('sandboxes do not share a file system', async (t) => {
  const [a, b] = await Promise.all([sandbox(t), sandbox(t)]);
  assert.notEqual(a.sandboxId, b.sandboxId);
  await a.files.write('/tmp/mine', 'a');
  assert.equal(await b.files.exists('/tmp/mine'), false);
});
