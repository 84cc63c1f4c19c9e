// Background commands: handles, standard input, listing, attaching, killing.
import assert from 'node:assert/strict';
import { Recorder, Sandbox, delay, eventually, fails, sandbox, test } from './harness.mjs';

const background = { background: true };

test('a background command returns at once and can be waited for', async (t) => {
  const box = await sandbox(t);
  const started = Date.now();
  const handle = await box.commands.run('sleep 0.8; echo done', background);
  assert.ok(Date.now() - started < 800, 'run did not return at once');
  assert.ok(Number.isInteger(handle.pid) && handle.pid > 1, `pid ${handle.pid}`);
  assert.equal(handle.exitCode, undefined);
  const result = await handle.wait();
  assert.deepEqual(result, { exitCode: 0, stdout: 'done\n', stderr: '', error: result.error });
  assert.equal(handle.exitCode, 0);
  assert.equal(handle.stdout, 'done\n');
});

test('a background command that fails', async (t) => {
  const box = await sandbox(t);
  const handle = await box.commands.run('echo partial; exit 9', background);
  const err = await fails(handle.wait(), 'CommandExitError');
  assert.equal(err.exitCode, 9);
  assert.equal(err.stdout, 'partial\n');
});

test('standard input is closed unless asked for', async (t) => {
  const box = await sandbox(t);
  assert.equal((await box.commands.run('cat; echo end')).stdout, 'end\n');
  const handle = await box.commands.run('sleep 5', background);
  await fails(box.commands.sendStdin(handle.pid, 'x'), 'SandboxError');
});

test('send to and close standard input', async (t) => {
  const box = await sandbox(t);
  const lines = new Recorder();
  const handle = await box.commands.run('while read -r l; do echo "got $l"; done; echo eof', {
    ...background,
    stdin: true,
    onStdout: lines.push,
  });
  await box.commands.sendStdin(handle.pid, 'one\n');
  await lines.until((s) => s.includes('got one'));
  await handle.sendStdin('two\n');
  await lines.until((s) => s.includes('got two'));
  await box.commands.closeStdin(handle.pid);
  assert.equal((await handle.wait()).stdout, 'got one\ngot two\neof\n');
});

test('close standard input through the handle, twice', async (t) => {
  const box = await sandbox(t);
  const handle = await box.commands.run('cat >/dev/null; sleep 1', { ...background, stdin: true });
  await handle.closeStdin();
  await handle.closeStdin();
  await fails(handle.sendStdin('late'), 'SandboxError');
  assert.equal((await handle.wait()).exitCode, 0);
});

test('binary and large standard input', async (t) => {
  const box = await sandbox(t);
  const handle = await box.commands.run('sha256sum', { ...background, stdin: true });
  const { createHash } = await import('node:crypto');
  const data = new Uint8Array(300_000).map((_, i) => (i * 31) % 256);
  await handle.sendStdin(data.subarray(0, 150_000));
  await handle.sendStdin(data.subarray(150_000));
  await handle.closeStdin();
  const want = createHash('sha256').update(data).digest('hex');
  assert.equal((await handle.wait()).stdout, `${want}  -\n`);
});

test('input to a process that is not there', async (t) => {
  const box = await sandbox(t);
  await fails(box.commands.sendStdin(999_999, 'x'), 'NotFoundError');
  await fails(box.commands.closeStdin(999_999), 'NotFoundError');
});

test('list echoes what was asked for', async (t) => {
  const box = await sandbox(t);
  assert.deepEqual(await box.commands.list(), []);
  const handle = await box.commands.run('sleep 41', { ...background, cwd: '/tmp', envs: { A: '1' } });
  assert.deepEqual(await box.commands.list(), [
    { pid: handle.pid, cmd: '/bin/bash', args: ['-l', '-c', 'sleep 41'], envs: { A: '1' }, cwd: '/tmp' },
  ]);
  await handle.kill();
  await eventually(async () => (await box.commands.list()).length === 0, { what: 'empty list' });
});

test('kill', async (t) => {
  const box = await sandbox(t);
  const handle = await box.commands.run('sleep 60', background);
  assert.equal(await box.commands.kill(handle.pid), true);
  const err = await fails(handle.wait(), 'CommandExitError');
  assert.equal(err.exitCode, -1);
  assert.equal(err.error, 'signal: killed');
  await fails(box.commands.run(`kill -0 ${handle.pid}`), 'CommandExitError');
  assert.equal(await box.commands.kill(handle.pid), false);
  assert.equal(await box.commands.kill(999_999), false);
});

test('kill through the handle ends the wait although a child holds the output', async (t) => {
  const box = await sandbox(t);
  const handle = await box.commands.run('sleep 55 & wait', background);
  assert.equal(await handle.kill(), true);
  const started = Date.now();
  await fails(handle.wait(), 'CommandExitError');
  assert.ok(Date.now() - started < 5_000, 'wait hung on the output of a grandchild');
});

test('a process that ends by a signal of its own', async (t) => {
  const box = await sandbox(t);
  const err = await fails(box.commands.run('kill -TERM $$'), 'CommandExitError');
  assert.equal(err.exitCode, -1);
  assert.equal(err.error, 'signal: terminated');
});

test('disconnect leaves the process running', async (t) => {
  const box = await sandbox(t);
  const handle = await box.commands.run('sleep 1; echo written > /tmp/proof; sleep 30', background);
  await handle.disconnect();
  await eventually(() => box.files.exists('/tmp/proof'), { what: 'output of a detached process' });
  assert.deepEqual((await box.commands.list()).map((p) => p.pid), [handle.pid]);
});

test('aborting a running command leaves the process running', async (t) => {
  const box = await sandbox(t);
  const abort = new AbortController();
  const handle = await box.commands.run('sleep 30', { ...background, signal: abort.signal });
  abort.abort();
  await assert.rejects(handle.wait());
  assert.deepEqual((await box.commands.list()).map((p) => p.pid), [handle.pid]);
});

test('connect sees later output and the exit code', async (t) => {
  const box = await sandbox(t);
  const first = await box.commands.run('read -r x; echo "got $x"; exit 6', { ...background, stdin: true });
  const elsewhere = await Sandbox.connect(box.sandboxId);
  const out = new Recorder();
  const second = await elsewhere.commands.connect(first.pid, { onStdout: out.push });
  assert.equal(second.pid, first.pid);
  await second.sendStdin('hello\n');
  for (const handle of [first, second]) {
    const err = await fails(handle.wait(), 'CommandExitError');
    assert.equal(err.exitCode, 6);
    assert.equal(err.stdout, 'got hello\n');
  }
  assert.equal(out.items.join(''), 'got hello\n');
});

test('connect after the end still gives the exit code', async (t) => {
  const box = await sandbox(t);
  const handle = await box.commands.run('exit 7', background);
  await fails(handle.wait(), 'CommandExitError');
  await delay(500);
  const late = await box.commands.connect(handle.pid);
  const err = await fails(late.wait(), 'CommandExitError');
  assert.equal(err.exitCode, 7);
});

test('connect to a process that is not there', async (t) => {
  const box = await sandbox(t);
  await fails(box.commands.connect(999_999), 'NotFoundError');
});

test('a re-attached stream does not go silent after 8 KB', async (t) => {
  const box = await sandbox(t);
  const handle = await box.commands.run(
    `read -r go; python3 -u -c "
import time
for i in range(2000):
    print('%05d %s' % (i, 'x' * 90))
    if i % 100 == 0: time.sleep(0.02)
print('last')"`,
    { ...background, stdin: true },
  );
  await handle.disconnect();
  const again = await box.commands.connect(handle.pid);
  await again.sendStdin('go\n');
  const { stdout } = await again.wait();
  const lines = stdout.trimEnd().split('\n');
  assert.equal(lines.length, 2_001);
  assert.equal(lines[1_999], `01999 ${'x'.repeat(90)}`);
  assert.equal(lines[2_000], 'last');
});

test('output nobody reads does not block the process', async (t) => {
  const box = await sandbox(t);
  const handle = await box.commands.run('sleep 0.3; seq 1 200000; echo written > /tmp/proof', background);
  await handle.disconnect();
  await eventually(() => box.files.exists('/tmp/proof'), { within: 10_000, what: 'end of a process without a reader' });
});

test('a running command when its sandbox is killed', async () => {
  const box = await Sandbox.create({ timeoutMs: 60_000 });
  const handle = await box.commands.run('echo before; sleep 60', background);
  const waiting = fails(handle.wait(), 'TimeoutError', /sandbox was killed or reached its end of life/);
  await eventually(() => handle.stdout === 'before\n', { what: 'first output' });
  const started = Date.now();
  assert.equal(await box.kill(), true);
  await waiting;
  assert.ok(Date.now() - started < 5_000, 'the wait hung');
  assert.equal(handle.stdout, 'before\n');
});

test('a silent command when its sandbox is killed', async () => {
  const box = await Sandbox.create({ timeoutMs: 60_000 });
  const run = box.commands.run('sleep 60', { timeoutMs: 0 });
  const failing = fails(run, 'TimeoutError', /sandbox was killed or reached its end of life/);
  await eventually(async () => (await box.commands.list()).length === 1, { what: 'start' });
  assert.equal(await box.kill(), true);
  await failing;
});
