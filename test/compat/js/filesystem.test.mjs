// The tree: listing, information, making, moving and removing.
import assert from 'node:assert/strict';
import { fails, sandbox, test } from './harness.mjs';

async function tree(box) {
  await box.commands.run('mkdir -p t/subdir1/subdir1_1 t/subdir2 && touch t/file1.txt t/subdir1/file2 t/subdir1/subdir1_1/file3 t/subdir2/file4');
}

test('list a directory', async (t) => {
  const box = await sandbox(t);
  await tree(box);
  const entries = await box.files.list('t');
  assert.deepEqual(entries.map((e) => [e.name, e.type, e.path]), [
    ['file1.txt', 'file', '/home/user/t/file1.txt'],
    ['subdir1', 'dir', '/home/user/t/subdir1'],
    ['subdir2', 'dir', '/home/user/t/subdir2'],
  ]);
});

test('list to a depth, in walking order', async (t) => {
  const box = await sandbox(t);
  await tree(box);
  const names = async (depth) => (await box.files.list('t', { depth })).map((e) => e.name);
  assert.deepEqual(await names(1), ['file1.txt', 'subdir1', 'subdir2']);
  assert.deepEqual(await names(2), ['file1.txt', 'subdir1', 'file2', 'subdir1_1', 'subdir2', 'file4']);
  const deep = ['file1.txt', 'subdir1', 'file2', 'subdir1_1', 'file3', 'subdir2', 'file4'];
  assert.deepEqual(await names(3), deep);
  assert.deepEqual(await names(50), deep);
  await fails(box.files.list('t', { depth: 0 }), 'InvalidArgumentError', /depth/);
  assert.deepEqual(await box.files.list('t/subdir1/subdir1_1/', { depth: 5 }).then((l) => l.map((e) => e.path)), [
    '/home/user/t/subdir1/subdir1_1/file3',
  ]);
});

test('list through a symbolic link reports the path that was asked for', async (t) => {
  const box = await sandbox(t);
  await tree(box);
  await box.commands.run('ln -s t/subdir1 link');
  const entries = await box.files.list('link');
  assert.deepEqual(entries.map((e) => e.path), ['/home/user/link/file2', '/home/user/link/subdir1_1']);
});

test('list what is no directory', async (t) => {
  const box = await sandbox(t);
  await box.files.write('f', 'x');
  await box.commands.run('ln -s loop loop');
  await fails(box.files.list('no/such'), 'FileNotFoundError');
  await fails(box.files.list('f'), 'InvalidArgumentError');
  await fails(box.files.list('loop'), 'SandboxError');
  assert.deepEqual(await box.files.makeDir('empty').then(() => box.files.list('empty')), []);
});

test('information about a file', async (t) => {
  const box = await sandbox(t);
  const before = Date.now() - 2_000;
  await box.files.write('f.txt', 'four');
  const info = await box.files.getInfo('f.txt');
  const { modifiedTime, ...rest } = info;
  assert.deepEqual(rest, {
    name: 'f.txt', type: 'file', path: '/home/user/f.txt', size: 4, mode: 0o644, permissions: '-rw-r--r--',
    owner: 'user', group: 'user', symlinkTarget: undefined, metadata: undefined,
  });
  assert.ok(modifiedTime.getTime() >= before && modifiedTime.getTime() <= Date.now() + 2_000, `modified ${modifiedTime}`);
  await box.commands.run('chmod 0750 f.txt; touch -d 2020-02-03T04:05:06.789Z f.txt');
  const changed = await box.files.getInfo('f.txt');
  assert.equal(changed.mode, 0o750);
  assert.equal(changed.permissions, '-rwxr-x---');
  assert.equal(changed.modifiedTime.toISOString(), '2020-02-03T04:05:06.789Z');
});

test('information about a directory', async (t) => {
  const box = await sandbox(t);
  await box.files.makeDir('d');
  const info = await box.files.getInfo('d');
  assert.deepEqual(
    [info.name, info.type, info.path, info.mode, info.permissions, info.owner, info.group],
    ['d', 'dir', '/home/user/d', 0o755, 'drwxr-xr-x', 'user', 'user'],
  );
});

test('information about a symbolic link', async (t) => {
  const box = await sandbox(t);
  await box.files.write('target', 'x');
  await box.commands.run('chmod 600 target; mkdir d; ln -s target link; ln -s d dirlink; ln -s nowhere broken');
  const link = await box.files.getInfo('link');
  assert.deepEqual([link.name, link.type, link.path, link.mode], ['link', 'file', '/home/user/link', 0o600]);
  assert.equal(link.symlinkTarget, '/home/user/target');
  assert.match(link.permissions, /^[lL]/);
  const dir = await box.files.getInfo('dirlink');
  assert.deepEqual([dir.type, dir.symlinkTarget], ['dir', '/home/user/d']);
  assert.equal((await box.files.getInfo('broken')).type, 'symlink');
});

test('an owner without a name is given by number', async (t) => {
  const box = await sandbox(t);
  await box.commands.run('touch /tmp/odd && chown 12345:23456 /tmp/odd', { user: 'root' });
  const info = await box.files.getInfo('/tmp/odd');
  assert.deepEqual([info.owner, info.group], ['12345', '23456']);
});

test('exists', async (t) => {
  const box = await sandbox(t);
  await box.files.write('f', '');
  await box.commands.run('ln -s nowhere broken');
  assert.equal(await box.files.exists('f'), true);
  assert.equal(await box.files.exists('/tmp'), true);
  assert.equal(await box.files.exists('broken'), true);
  assert.equal(await box.files.exists('missing'), false);
});

test('information about what is not there', async (t) => {
  const box = await sandbox(t);
  await fails(box.files.getInfo('missing'), 'FileNotFoundError');
});

test('make directories', async (t) => {
  const box = await sandbox(t);
  assert.equal(await box.files.makeDir('a/b/c'), true);
  assert.equal(await box.files.makeDir('a/b/c'), false);
  assert.equal((await box.files.getInfo('a/b/c')).type, 'dir');
  const parent = await box.files.getInfo('a');
  assert.deepEqual([parent.owner, parent.mode], ['user', 0o755]);
  await box.files.write('f', 'x');
  await fails(box.files.makeDir('f'), 'InvalidArgumentError');
  assert.equal(await box.files.makeDir('made', { user: 'root' }), true);
  assert.equal((await box.files.getInfo('/root/made', { user: 'root' })).owner, 'root');
});

test('rename', async (t) => {
  const box = await sandbox(t);
  await box.files.write('old', 'content');
  const moved = await box.files.rename('old', 'new/place/name');
  assert.deepEqual([moved.name, moved.type, moved.path, moved.size], ['name', 'file', '/home/user/new/place/name', 7]);
  assert.equal(await box.files.exists('old'), false);
  assert.equal(await box.files.read('new/place/name'), 'content');
  const dir = await box.files.rename('new', 'renamed');
  assert.deepEqual([dir.type, dir.path], ['dir', '/home/user/renamed']);
  assert.equal(await box.files.read('renamed/place/name'), 'content');
  await box.files.write('other', 'replaced');
  await box.files.rename('renamed/place/name', 'other');
  assert.equal(await box.files.read('other'), 'content');
  await fails(box.files.rename('missing', 'anything'), 'FileNotFoundError');
});

test('remove', async (t) => {
  const box = await sandbox(t);
  await tree(box);
  await box.files.remove('t/file1.txt');
  assert.equal(await box.files.exists('t/file1.txt'), false);
  await box.files.remove('t');
  assert.equal(await box.files.exists('t'), false);
  await box.files.remove('t');
  await box.files.write('kept', 'x');
  await box.commands.run('ln -s kept link; mkdir dir; touch dir/in; ln -s dir dirlink');
  await box.files.remove('link');
  await box.files.remove('dirlink');
  assert.deepEqual((await box.files.list('.', { depth: 2 })).map((e) => e.path).filter((p) => !p.includes('/.')), [
    '/home/user/dir', '/home/user/dir/in', '/home/user/kept',
  ]);
});

test('many entries', async (t) => {
  const box = await sandbox(t);
  await box.commands.run('mkdir many && cd many && seq -f "e%05g" 1 3000 | xargs touch');
  const entries = await box.files.list('many');
  assert.equal(entries.length, 3_000);
  assert.equal(entries[0].name, 'e00001');
  assert.equal(entries[2_999].name, 'e03000');
});
