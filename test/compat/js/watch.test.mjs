// Watching directories over a stream.
import assert from 'node:assert/strict';
import { Recorder, Sandbox, fails, sandbox, sdk, test } from './harness.mjs';

const { FilesystemEventType: Event } = sdk;
const is = (type, name) => (e) => e.type === type && e.name === name;

async function watched(t, opts = {}) {
  const box = await sandbox(t);
  await box.files.makeDir('w');
  const events = new Recorder();
  const exits = new Recorder();
  const handle = await box.files.watchDir('w', events.push, { onExit: (err) => exits.push({ err }), ...opts });
  return { box, events, exits, handle };
}

test('creating, writing, changing mode and removing', async (t) => {
  const { box, events } = await watched(t);
  await box.files.write('w/f', 'x');
  await events.until(is(Event.CREATE, 'f'));
  await events.until(is(Event.WRITE, 'f'));
  await box.commands.run('chmod 700 w/f');
  await events.until(is(Event.CHMOD, 'f'));
  await box.files.remove('w/f');
  await events.until(is(Event.REMOVE, 'f'));
  assert.ok(events.items.every((e) => e.entry === undefined), 'entry was not asked for');
});

test('moving within, out of and into the directory', async (t) => {
  const { box, events } = await watched(t);
  await box.files.write('w/a', 'x');
  await box.files.rename('w/a', 'w/b');
  await events.until(is(Event.RENAME, 'a'));
  await events.until(is(Event.CREATE, 'b'));
  await box.files.rename('w/b', 'outside');
  await events.until(is(Event.RENAME, 'b'));
  await box.files.rename('outside', 'w/c');
  await events.until(is(Event.CREATE, 'c'));
});

test('commands make events too', async (t) => {
  const { box, events } = await watched(t);
  await box.commands.run('mkdir w/dir; echo x > w/by-shell; echo y >> w/by-shell; rmdir w/dir');
  await events.until(is(Event.CREATE, 'dir'));
  await events.until(is(Event.CREATE, 'by-shell'));
  await events.until(is(Event.WRITE, 'by-shell'));
  await events.until(is(Event.REMOVE, 'dir'));
});

test('without recursive, deeper changes are silent', async (t) => {
  const { box, events } = await watched(t);
  await box.files.makeDir('w/sub');
  await box.files.write('w/sub/deep', 'x');
  await box.files.write('w/last', 'x');
  await events.until(is(Event.WRITE, 'last'));
  assert.equal(events.items.some((e) => e.name.includes('deep')), false);
});

test('recursive, with directories that are made later', async (t) => {
  const box = await sandbox(t);
  await box.files.makeDir('w/old');
  const events = new Recorder();
  await box.files.watchDir('w', events.push, { recursive: true });
  await box.files.write('w/old/f', 'x');
  await events.until(is(Event.CREATE, 'old/f'));
  await events.until(is(Event.WRITE, 'old/f'));
  await box.files.write('w/new/deeper/g', 'x');
  await events.until(is(Event.CREATE, 'new'));
  await events.until(is(Event.CREATE, 'new/deeper/g'));
  await box.files.write('w/new/deeper/g', 'y');
  await events.until(is(Event.WRITE, 'new/deeper/g'));
  await box.files.remove('w/old/f');
  await events.until(is(Event.REMOVE, 'old/f'));
});

test('events with the entry', async (t) => {
  const { box, events } = await watched(t, { includeEntry: true });
  await box.files.write('w/f', 'four');
  const created = await events.until((e) => e.type === Event.CREATE && e.name === 'f');
  assert.equal(created.entry.path, '/home/user/w/f');
  assert.equal(created.entry.type, 'file');
  const written = await events.until((e) => e.type === Event.WRITE && e.name === 'f' && e.entry?.size === 4);
  assert.equal(written.entry.owner, 'user');
  await box.files.remove('w/f');
  const removed = await events.until(is(Event.REMOVE, 'f'));
  assert.equal(removed.entry, undefined);
});

test('stop ends the watch without an error', async (t) => {
  const { box, events, exits, handle } = await watched(t);
  await box.files.write('w/before', 'x');
  await events.until(is(Event.WRITE, 'before'));
  await handle.stop();
  await exits.until(() => true, { what: 'exit' });
  await box.files.write('w/after', 'x');
  assert.equal((await box.commands.run('ls w')).stdout, 'after\nbefore\n');
  assert.equal(events.items.some((e) => e.name === 'after'), false);
});

test('several watches of one directory', async (t) => {
  const { box, events } = await watched(t);
  const other = new Recorder();
  await box.files.watchDir('/home/user/w', other.push);
  await box.files.write('w/f', 'x');
  await Promise.all([events.until(is(Event.CREATE, 'f')), other.until(is(Event.CREATE, 'f'))]);
});

test('the watch ends at its timeout', async (t) => {
  const { exits } = await watched(t, { timeoutMs: 1_000 });
  const { err } = await exits.until(() => true, { within: 5_000, what: 'exit' });
  assert.equal(err?.name, 'TimeoutError');
});

test('what cannot be watched', async (t) => {
  const box = await sandbox(t);
  await box.files.write('f', 'x');
  await fails(box.files.watchDir('missing', () => {}), 'FileNotFoundError');
  await fails(box.files.watchDir('f', () => {}), 'InvalidArgumentError');
  await fails(box.files.watchDir('.', () => {}, { user: 'nosuchuser' }), 'AuthenticationError');
});

test('the path is resolved for the user', async (t) => {
  const box = await sandbox(t);
  const events = new Recorder();
  await box.files.watchDir('.', events.push, { user: 'root' });
  await box.files.write('/root/f', 'x', { user: 'root' });
  await events.until(is(Event.CREATE, 'f'));
});

test('a watch when its sandbox is killed', async () => {
  const box = await Sandbox.create({ timeoutMs: 60_000 });
  const exits = new Recorder();
  await box.files.watchDir('.', () => {}, { onExit: (err) => exits.push({ err }) });
  await box.kill();
  const { err } = await exits.until(() => true, { within: 5_000, what: 'exit' });
  assert.equal(err?.name, 'TimeoutError');
  assert.match(err.message, /sandbox was killed or reached its end of life/);
});
