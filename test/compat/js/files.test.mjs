// Files: reading and writing in every form, users and paths, metadata.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { fails, sandbox, test } from './harness.mjs';

const sha = (data) => createHash('sha256').update(data).digest('hex');
const pattern = (size) => new Uint8Array(size).map((_, i) => (i * 7 + (i >> 8)) % 256);
const everyByte = new Uint8Array(256).map((_, i) => i);

async function drain(stream) {
  const chunks = [];
  for await (const c of stream) chunks.push(Buffer.from(c));
  return Buffer.concat(chunks);
}

function streamOf(...chunks) {
  return new ReadableStream({
    start(controller) {
      for (const c of chunks) controller.enqueue(typeof c === 'string' ? new TextEncoder().encode(c) : c);
      controller.close();
    },
  });
}

test('write and read text', async (t) => {
  const box = await sandbox(t);
  const info = await box.files.write('notes.txt', 'grüße\n');
  assert.deepEqual({ ...info, metadata: info.metadata }, {
    name: 'notes.txt', type: 'file', path: '/home/user/notes.txt', metadata: undefined,
  });
  assert.equal(await box.files.read('notes.txt'), 'grüße\n');
  assert.equal(await box.files.read('/home/user/notes.txt', { format: 'text' }), 'grüße\n');
  assert.equal((await box.commands.run('cat notes.txt')).stdout, 'grüße\n');
});

test('binary content survives in every read format', async (t) => {
  const box = await sandbox(t);
  await box.files.write('bin', everyByte.buffer);
  const bytes = await box.files.read('bin', { format: 'bytes' });
  assert.ok(bytes instanceof Uint8Array);
  assert.deepEqual(bytes, everyByte);
  const blob = await box.files.read('bin', { format: 'blob' });
  assert.deepEqual(new Uint8Array(await blob.arrayBuffer()), everyByte);
  const stream = await box.files.read('bin', { format: 'stream' });
  assert.deepEqual(new Uint8Array(await drain(stream)), everyByte);
  assert.match((await box.commands.run('sha256sum bin')).stdout, new RegExp(`^${sha(everyByte)} `));
});

test('an empty file in every read format', async (t) => {
  const box = await sandbox(t);
  await box.files.write('empty', '');
  assert.equal(await box.files.read('empty'), '');
  assert.deepEqual(await box.files.read('empty', { format: 'bytes' }), new Uint8Array(0));
  assert.equal((await box.files.read('empty', { format: 'blob' })).size, 0);
  assert.equal((await drain(await box.files.read('empty', { format: 'stream' }))).length, 0);
  assert.equal((await box.files.getInfo('empty')).size, 0);
});

test('every kind of data that write accepts', async (t) => {
  const box = await sandbox(t);
  await box.files.write('s', 'string');
  await box.files.write('b', new Blob(['bl', 'ob']));
  await box.files.write('a', new TextEncoder().encode('array').buffer);
  await box.files.write('r', streamOf('str', 'ea', 'm'));
  await box.files.write('e', streamOf());
  assert.equal((await box.commands.run('cat s b a r e')).stdout, 'stringblobarraystream');
});

test('octet-stream and gzip, up and down', async (t) => {
  const box = await sandbox(t);
  const data = pattern(500_000);
  for (const opts of [{ useOctetStream: true }, { gzip: true }, { useOctetStream: false }]) {
    const info = await box.files.write('dir/data', data.buffer, opts);
    assert.equal(info.path, '/home/user/dir/data');
    assert.equal(info.type, 'file');
    assert.match((await box.commands.run('sha256sum dir/data')).stdout, new RegExp(`^${sha(data)} `));
    assert.equal(sha(await box.files.read('dir/data', { format: 'bytes', gzip: true })), sha(data));
    assert.equal(sha(await box.files.read('dir/data', { format: 'bytes' })), sha(data));
  }
  await box.files.write('gz', streamOf('a'.repeat(10_000), 'b'.repeat(10_000)), { gzip: true });
  assert.equal(await box.files.read('gz'), 'a'.repeat(10_000) + 'b'.repeat(10_000));
});

test('sizes around every buffer, and a large file', async (t) => {
  const box = await sandbox(t);
  for (const size of [1, 4_095, 8_193, 18_001, 32_769, 65_537, 1_048_577, 20_000_000]) {
    const data = pattern(size);
    await box.files.write('sized', data.buffer);
    assert.equal((await box.files.getInfo('sized')).size, size);
    assert.equal(sha(await box.files.read('sized', { format: 'bytes' })), sha(data), `${size} bytes`);
  }
});

test('a large streamed upload and download', async (t) => {
  const box = await sandbox(t);
  const chunk = pattern(1 << 20);
  await box.files.write('streamed', streamOf(...Array(16).fill(chunk)));
  const want = sha(Buffer.concat(Array(16).fill(Buffer.from(chunk))));
  assert.equal(sha(await drain(await box.files.read('streamed', { format: 'stream' }))), want);
});

test('overwriting truncates', async (t) => {
  const box = await sandbox(t);
  await box.files.write('f', 'a long first version');
  await box.files.write('f', 'short');
  assert.equal(await box.files.read('f'), 'short');
  await box.files.write('f', 'x', { useOctetStream: true });
  assert.equal(await box.files.read('f'), 'x');
});

test('several files in one call', async (t) => {
  const box = await sandbox(t);
  const infos = await box.files.write([
    { path: 'one.txt', data: '1' },
    { path: 'deep/er/two.bin', data: everyByte.buffer },
    { path: '/tmp/three', data: new Blob(['3']) },
  ]);
  assert.deepEqual(infos.map((i) => [i.name, i.path, i.type]), [
    ['one.txt', '/home/user/one.txt', 'file'],
    ['two.bin', '/home/user/deep/er/two.bin', 'file'],
    ['three', '/tmp/three', 'file'],
  ]);
  assert.equal(await box.files.read('one.txt'), '1');
  assert.deepEqual(await box.files.read('deep/er/two.bin', { format: 'bytes' }), everyByte);
  assert.equal(await box.files.read('/tmp/three'), '3');
  assert.deepEqual(await box.files.write([]), []);
  const streams = await box.files.writeFiles([
    { path: 's1', data: streamOf('a') },
    { path: 's2', data: 'b' },
  ]);
  assert.deepEqual(streams.map((i) => i.path), ['/home/user/s1', '/home/user/s2']);
  assert.equal((await box.commands.run('cat s1 s2')).stdout, 'ab');
});

test('580 files in one call', async (t) => {
  const box = await sandbox(t);
  const entries = Array.from({ length: 580 }, (_, i) => ({ path: `tree/${i % 10}/file-${i}.txt`, data: `content ${i}\n` }));
  const started = Date.now();
  const infos = await box.files.write(entries);
  const took = Date.now() - started;
  assert.equal(infos.length, 580);
  assert.ok(took < 8_000, `took ${took} ms`);
  assert.equal((await box.commands.run('find tree -type f | wc -l')).stdout.trim(), '580');
  const want = sha(entries.map((e) => e.data).join(''));
  const got = await box.commands.run('for i in $(seq 0 579); do echo tree/$((i % 10))/file-$i.txt; done | xargs cat | sha256sum');
  assert.equal(got.stdout, `${want}  -\n`);
});

test('names that need care', async (t) => {
  const box = await sandbox(t);
  for (const name of ['with space', 'ünïcödé-文件', 'semi;colon', 'a+b&c=d?e#f', '%41', "it's", 'dot..dot', '-dash', 'quote"d']) {
    const info = await box.files.write(`names/${name}`, name);
    assert.equal(info.name, name);
    assert.equal(info.path, `/home/user/names/${name}`);
    assert.equal(await box.files.read(`names/${name}`), name);
    assert.equal((await box.files.getInfo(`names/${name}`)).name, name);
  }
  assert.equal((await box.files.list('names')).length, 9);
});

test('paths: home, relative, dots, other homes', async (t) => {
  const box = await sandbox(t);
  await box.files.write('~/tilde', 't');
  assert.equal(await box.files.read('/home/user/tilde'), 't');
  const info = await box.files.write('a/../b//c', 'x');
  assert.equal(info.path, '/home/user/b/c');
  assert.equal((await box.files.getInfo('~')).path, '/home/user');
  await fails(box.files.write('~root/x', 'x'), 'InvalidArgumentError');
  await fails(box.files.getInfo('~root'), 'InvalidArgumentError');
});

test('users own what they write', async (t) => {
  const box = await sandbox(t);
  await box.files.write('new/dir/mine', 'x');
  const mine = await box.files.getInfo('new/dir/mine');
  assert.deepEqual([mine.owner, mine.group, mine.mode], ['user', 'user', 0o644]);
  const dir = await box.files.getInfo('new');
  assert.deepEqual([dir.owner, dir.group, dir.mode], ['user', 'user', 0o755]);

  const info = await box.files.write('theirs', 'x', { user: 'root' });
  assert.equal(info.path, '/root/theirs');
  const theirs = await box.files.getInfo('theirs', { user: 'root' });
  assert.deepEqual([theirs.path, theirs.owner, theirs.group], ['/root/theirs', 'root', 'root']);
  assert.equal(await box.files.read('theirs', { user: 'root' }), 'x');

  await box.files.write('/tmp/shared', 'as root', { user: 'root' });
  await box.files.write('/tmp/given', 'as user', { user: 'user' });
  assert.equal((await box.files.getInfo('/tmp/shared')).owner, 'root');
  assert.equal((await box.files.getInfo('/tmp/given')).owner, 'user');
});

test('unknown user', async (t) => {
  const box = await sandbox(t);
  const user = 'nosuchuser';
  await fails(box.files.read('/etc/hostname', { user }), 'AuthenticationError');
  await fails(box.files.write('x', 'y', { user }), 'AuthenticationError');
  await fails(box.files.list('/', { user }), 'AuthenticationError', /invalid username: 'nosuchuser'/);
  await fails(box.files.makeDir('d', { user }), 'AuthenticationError');
});

test('reading what cannot be read', async (t) => {
  const box = await sandbox(t);
  for (const format of ['text', 'bytes', 'blob', 'stream']) {
    await fails(box.files.read('no/such/file', { format }), 'FileNotFoundError', /path '\/home\/user\/no\/such\/file' does not exist/);
    await fails(box.files.read('/tmp', { format }), 'InvalidArgumentError');
  }
});

test('writing where it cannot be written', async (t) => {
  const box = await sandbox(t);
  await box.files.makeDir('adir');
  await fails(box.files.write('adir', 'x'), 'InvalidArgumentError');
  await fails(box.files.write('adir', 'x', { useOctetStream: true }), 'InvalidArgumentError');
  await fails(box.files.write([{ path: 'same', data: '1' }, { path: 'same', data: '2' }]), 'InvalidArgumentError');
});

test('metadata of files', async (t) => {
  const box = await sandbox(t);
  const info = await box.files.write('m', 'x', { metadata: { author: 'mish', 'review-state': 'done: 100%' } });
  const want = { author: 'mish', 'review-state': 'done: 100%' };
  assert.deepEqual(info.metadata, want);
  assert.deepEqual((await box.files.getInfo('m')).metadata, want);
  assert.deepEqual((await box.files.list('.')).find((e) => e.name === 'm').metadata, want);
  const moved = await box.files.rename('m', 'moved');
  assert.deepEqual(moved.metadata, want);
  const replaced = await box.files.write('moved', 'y', { metadata: { Author: 'other' }, useOctetStream: true });
  assert.deepEqual(replaced.metadata, { author: 'other' });
  assert.deepEqual((await box.files.getInfo('moved')).metadata, { author: 'other' });
  await box.files.write('moved', 'z');
  assert.equal((await box.files.getInfo('moved')).metadata, undefined);
  await fails(box.files.write('m', 'x', { metadata: { 'bad key': 'v' } }), 'InvalidArgumentError');
  await fails(box.files.write('m', 'x', { metadata: { big: 'v'.repeat(5_000) } }), 'InvalidArgumentError');
});

test('metadata given to several files at once', async (t) => {
  const box = await sandbox(t);
  const infos = await box.files.write([{ path: 'm1', data: '1' }, { path: 'm2', data: '2' }], { metadata: { batch: '7' } });
  assert.deepEqual(infos.map((i) => i.metadata), [{ batch: '7' }, { batch: '7' }]);
});
