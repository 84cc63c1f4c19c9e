// Signed links: used with plain fetch and curl, without anything that names the
// sandbox but the signature.
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { Sandbox, eventually, sandbox, test } from './harness.mjs';

const run = promisify(execFile);

async function refused(res) {
  assert.equal(res.status, 401);
  const body = await res.json();
  assert.equal(body.code, 401);
  assert.equal(typeof body.message, 'string');
}

function form(content, name = 'ignored-when-the-link-has-a-path') {
  const data = new FormData();
  data.append('file', new Blob([content]), name);
  return data;
}

test('download by a plain link', async (t) => {
  const box = await sandbox(t);
  await box.files.write('hello world.txt', 'hello');
  const url = await box.downloadUrl('hello world.txt');
  assert.match(new URL(url).searchParams.get('signature'), /^v1_[A-Za-z0-9+/]{43}$/);
  assert.equal(new URL(url).searchParams.has('signature_expiration'), false);
  const res = await fetch(url);
  assert.equal(res.status, 200);
  assert.equal(await res.text(), 'hello');
  const { stdout } = await run('curl', ['-fsS', url]);
  assert.equal(stdout, 'hello');
});

test('download for a user', async (t) => {
  const box = await sandbox(t);
  await box.files.write('secret', 'of root', { user: 'root' });
  const res = await fetch(await box.downloadUrl('secret', { user: 'root' }));
  assert.equal(res.status, 200);
  assert.equal(await res.text(), 'of root');
  assert.equal((await fetch(await box.downloadUrl('secret', { user: 'user' }))).status, 404);
});

test('download with an expiry', async (t) => {
  const box = await sandbox(t);
  await box.files.write('f', 'x');
  const url = await box.downloadUrl('f', { useSignatureExpiration: 60 });
  const expiry = Number(new URL(url).searchParams.get('signature_expiration'));
  assert.ok(Math.abs(expiry - (Date.now() / 1000 + 60)) < 3);
  assert.equal(await (await fetch(url)).text(), 'x');
  await refused(await fetch(await box.downloadUrl('f', { useSignatureExpiration: -10 })));
});

test('a link ends with its expiry', async (t) => {
  const box = await sandbox(t);
  await box.files.write('f', 'x');
  const url = await box.downloadUrl('f', { useSignatureExpiration: 2 });
  assert.equal((await fetch(url)).status, 200);
  await eventually(async () => (await fetch(url)).status === 401, { within: 5_000, what: 'expiry of the link' });
});

test('a link that was changed is refused', async (t) => {
  const box = await sandbox(t);
  await box.files.write('f', 'x');
  await box.files.write('g', 'y');
  const url = new URL(await box.downloadUrl('f', { useSignatureExpiration: 60 }));
  const changed = (change) => {
    const copy = new URL(url);
    change(copy.searchParams);
    return fetch(copy);
  };
  await refused(await changed((q) => q.set('path', 'g')));
  await refused(await changed((q) => q.set('username', 'root')));
  await refused(await changed((q) => q.set('signature_expiration', '9999999999')));
  await refused(await changed((q) => q.delete('signature_expiration')));
  await refused(await changed((q) => q.delete('signature')));
  await refused(await changed((q) => q.set('signature', `v1_${'A'.repeat(43)}`)));
  await refused(await changed((q) => q.set('signature', 'v1_')));
  await refused(await fetch(url, { method: 'POST', body: form('z') }));
  assert.equal(await (await fetch(url)).text(), 'x');
});

test('upload by a plain link', async (t) => {
  const box = await sandbox(t);
  const res = await fetch(await box.uploadUrl('up/load.txt'), { method: 'POST', body: form('sent') });
  assert.equal(res.status, 200);
  assert.deepEqual(await res.json(), [{ name: 'load.txt', path: '/home/user/up/load.txt', type: 'file' }]);
  assert.equal(await box.files.read('up/load.txt'), 'sent');
});

test('upload without a path takes the name of the part', async (t) => {
  const box = await sandbox(t);
  const res = await fetch(await box.uploadUrl(), { method: 'POST', body: form('sent', 'some/dir/name.txt') });
  assert.equal(res.status, 200);
  assert.equal((await res.json())[0].path, '/home/user/some/dir/name.txt');
  assert.equal(await box.files.read('some/dir/name.txt'), 'sent');
});

test('upload with curl, an expiry and a user', async (t) => {
  const box = await sandbox(t);
  const url = await box.uploadUrl('by-curl', { useSignatureExpiration: 60, user: 'root' });
  await run('curl', ['-fsS', '-F', 'file=@/proc/self/cmdline', url]);
  assert.equal((await box.files.getInfo('/root/by-curl', { user: 'root' })).owner, 'root');
  const raw = await fetch(await box.uploadUrl('raw'), {
    method: 'POST',
    headers: { 'Content-Type': 'application/octet-stream' },
    body: 'bytes',
  });
  assert.equal(raw.status, 200);
  assert.equal(await box.files.read('raw'), 'bytes');
  await refused(await fetch(await box.uploadUrl('f', { useSignatureExpiration: -10 }), { method: 'POST', body: form('z') }));
  assert.equal(await box.files.exists('f'), false);
});

test('a link finds its own sandbox among several', async (t) => {
  const boxes = await Promise.all([sandbox(t), sandbox(t), sandbox(t)]);
  await Promise.all(boxes.map((b) => b.files.write('who', b.sandboxId)));
  for (const b of boxes) assert.equal(await (await fetch(await b.downloadUrl('who'))).text(), b.sandboxId);
});

test('a link dies with its sandbox', async () => {
  const box = await Sandbox.create({ timeoutMs: 60_000 });
  await box.files.write('f', 'x');
  const url = await box.downloadUrl('f');
  assert.equal((await fetch(url)).status, 200);
  await box.kill();
  await refused(await fetch(url));
});

test('served files cannot act on the shared host', async (t) => {
  const box = await sandbox(t);
  await box.files.write('page.html', '<script>alert(1)</script>');
  const res = await fetch(await box.downloadUrl('page.html'));
  assert.equal(res.headers.get('x-content-type-options'), 'nosniff');
  assert.match(res.headers.get('content-security-policy') ?? '', /sandbox/);
  assert.match(res.headers.get('content-disposition') ?? '', /^attachment/);
  await res.text();
});
