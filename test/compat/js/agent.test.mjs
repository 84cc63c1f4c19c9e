// The agent without an SDK: Connect framing, selectors, signals, keepalive,
// authentication and the file routes' headers and messages.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { agent, eventually, guest, rawSandbox, rpc, sandbox, stream, test } from './harness.mjs';

const b64 = (s) => Buffer.from(s).toString('base64');
const unb64 = (s) => Buffer.from(s, 'base64').toString();
const bash = (cmd, more = {}) => ({ process: { cmd: '/bin/bash', args: ['-l', '-c', cmd] }, stdin: false, ...more });

async function collect(frames) {
  const all = [];
  for await (const f of frames) all.push(f);
  return all;
}

// started opens a Start stream and returns its pid and the rest of the events.
async function started(box, request, headers) {
  const frames = stream(box, 'process.Process/Start', request, headers);
  const { value } = await frames.next();
  assert.ok(value.message.event?.start, `first event ${JSON.stringify(value.message)}`);
  return { pid: value.message.event.start.pid, frames };
}

test('frames of a command', async (t) => {
  const box = await rawSandbox(t);
  const frames = await collect(stream(box, 'process.Process/Start', bash('echo hi; exit 3'), {
    'Connect-Timeout-Ms': '60000', 'Keepalive-Ping-Interval': '50',
  }));
  assert.deepEqual(frames.map((f) => f.flags), [0, 0, 0, 2]);
  assert.ok(frames[0].message.event.start.pid > 1);
  assert.equal(unb64(frames[1].message.event.data.stdout), 'hi\n');
  assert.deepEqual(frames[2].message.event.end, { exitCode: 3, exited: true, status: 'exit status 3', error: 'exit status 3' });
  assert.equal(frames[3].message.error, undefined);
});

test('a missing executable is exit code 127', async (t) => {
  const box = await rawSandbox(t);
  for (const cmd of ['/no/such/binary', 'nosuchbinary']) {
    const frames = await collect(stream(box, 'process.Process/Start', { process: { cmd } }));
    assert.ok(frames[0].message.event.start, cmd);
    assert.equal(frames.at(-2).message.event.end.exitCode, 127, cmd);
  }
});

test('stream errors come in the last frame, with status 200', async (t) => {
  const box = await rawSandbox(t);
  const frames = await collect(stream(box, 'process.Process/Connect', { process: { pid: 999_999 } }));
  assert.equal(frames.length, 1);
  assert.equal(frames[0].flags, 2);
  assert.equal(frames[0].message.error.code, 'not_found');
  assert.match(frames[0].message.error.message, /999999/);
});

test('a deadline ends the command and the stream', async (t) => {
  const box = await rawSandbox(t);
  const { pid, frames } = await started(box, bash('sleep 50'), { 'Connect-Timeout-Ms': '800' });
  const rest = await collect(frames);
  assert.equal(rest.at(-1).flags, 2);
  assert.equal(rest.at(-1).message.error.code, 'deadline_exceeded');
  await eventually(async () => !(await rpc(box, 'process.Process/List', {})).json.processes?.some((p) => p.pid === pid), { what: 'end of the process' });
});

test('keepalive events', async (t) => {
  const box = await rawSandbox(t);
  const { frames } = await started(box, bash('sleep 2.5'), { 'Keepalive-Ping-Interval': '1' });
  const rest = await collect(frames);
  assert.ok(rest.some((f) => f.message.event?.keepalive), JSON.stringify(rest));
  assert.equal(rest.at(-2).message.event.end.exitCode ?? 0, 0);
});

test('selecting by tag', async (t) => {
  const box = await rawSandbox(t);
  const { pid, frames } = await started(box, bash('cat; exit 4', { tag: 'mine', stdin: true }));
  const listed = await rpc(box, 'process.Process/List', {});
  assert.deepEqual(listed.json.processes.map((p) => [p.pid, p.tag]), [[pid, 'mine']]);
  const input = { process: { tag: 'mine' }, input: { stdin: b64('by tag\n') } };
  assert.equal((await rpc(box, 'process.Process/SendInput', input)).status, 200);
  assert.equal((await rpc(box, 'process.Process/CloseStdin', { process: { tag: 'mine' } })).status, 200);
  const rest = await collect(frames);
  assert.equal(unb64(rest[0].message.event.data.stdout), 'by tag\n');
  assert.equal(rest.at(-2).message.event.end.exitCode, 4);
  const late = await collect(stream(box, 'process.Process/Connect', { process: { tag: 'mine' } }));
  assert.equal(late[0].message.event.start.pid, pid);
  assert.equal(late[1].message.event.end.exitCode, 4);
});

test('signals', async (t) => {
  const box = await rawSandbox(t);
  const { pid, frames } = await started(box, bash("trap 'echo bye; exit 12' TERM; echo ready; while :; do sleep 0.1; done"));
  await frames.next();
  assert.equal((await rpc(box, 'process.Process/SendSignal', { process: { pid }, signal: 'SIGNAL_SIGTERM' })).status, 200);
  const rest = await collect(frames);
  const out = rest.map((f) => f.message.event?.data?.stdout).filter(Boolean).map(unb64).join('');
  assert.equal(out, 'bye\n');
  assert.equal(rest.at(-2).message.event.end.exitCode, 12);

  const second = await started(box, bash('exec sleep 40'));
  await rpc(box, 'process.Process/SendSignal', { process: { pid: second.pid }, signal: 9 });
  const { end } = (await collect(second.frames)).at(-2).message.event;
  assert.equal(end.exitCode, -1);
  assert.equal(end.exited ?? false, false);
  assert.equal(end.status, 'signal: killed');

  const odd = await rpc(box, 'process.Process/SendSignal', { process: { pid: second.pid }, signal: 'SIGNAL_UNSPECIFIED' });
  assert.ok(['unimplemented', 'not_found'].includes(odd.json.code), JSON.stringify(odd.json));
});

test('streamed input', async (t) => {
  const box = await rawSandbox(t);
  const { pid, frames } = await started(box, bash('cat', { stdin: true }));
  const answers = await collect(stream(box, 'process.Process/StreamInput', [
    { start: { process: { pid } } },
    { data: { input: { stdin: b64('one ') } } },
    { keepalive: {} },
    { data: { input: { stdin: b64('two') } } },
  ]));
  assert.equal(answers.at(-1).flags, 2);
  assert.equal(answers.at(-1).message.error, undefined);
  await rpc(box, 'process.Process/CloseStdin', { process: { pid } });
  const out = (await collect(frames)).map((f) => f.message.event?.data?.stdout).filter(Boolean).map(unb64).join('');
  assert.equal(out, 'one two');
});

test('unary errors', async (t) => {
  const box = await rawSandbox(t);
  const expect = async (method, message, status, code) => {
    const res = await rpc(box, method, message);
    assert.equal(res.status, status, `${method}: ${JSON.stringify(res.json)}`);
    assert.match(res.headers.get('content-type'), /^application\/json/);
    assert.equal(res.json.code, code);
    assert.equal(typeof res.json.message, 'string');
  };
  await expect('filesystem.Filesystem/Stat', { path: 'missing.txt' }, 404, 'not_found');
  await expect('filesystem.Filesystem/Stat', { path: 'nul\u0000byte' }, 400, 'invalid_argument');
  await expect('filesystem.Filesystem/MakeDir', { path: 'nul\u0000byte' }, 400, 'invalid_argument');
  await expect('filesystem.Filesystem/Remove', { path: 'nul\u0000byte' }, 400, 'invalid_argument');
  await expect('filesystem.Filesystem/ListDir', { path: 'missing' }, 404, 'not_found');
  await expect('filesystem.Filesystem/MakeDir', { path: '/tmp' }, 409, 'already_exists');
  await expect('filesystem.Filesystem/GetWatcherEvents', { watcherId: `w${'0'.repeat(20)}` }, 404, 'not_found');
  await expect('process.Process/SendInput', { process: { pid: 999_999 }, input: { stdin: '' } }, 404, 'not_found');
  const user = await rpc(box, 'filesystem.Filesystem/Stat', { path: '.' }, { Authorization: `Basic ${b64('nosuch:')}` });
  assert.equal(user.status, 401);
  assert.deepEqual([user.json.code, user.json.message], ['unauthenticated', "invalid username: 'nosuch'"]);
});

test('JSON forms that a Connect client may send', async (t) => {
  const box = await rawSandbox(t);
  const write = await agent(box, '/files?path=f', { method: 'POST', headers: { 'Content-Type': 'application/octet-stream' }, body: 'four' });
  assert.equal(write.status, 200);
  const { json } = await rpc(box, 'filesystem.Filesystem/Stat', { path: 'f', unknownMember: 1 });
  assert.equal(json.entry.size, '4');
  assert.equal(json.entry.type, 'FILE_TYPE_FILE');
  assert.equal(json.entry.mode, 0o644);
  assert.match(json.entry.modifiedTime, /^\d{4}-\d\d-\d\dT[\d:.]+Z$/);
  const watcher = await rpc(box, 'filesystem.Filesystem/CreateWatcher', { path: '.', include_entry: true });
  assert.match(watcher.json.watcherId, /^w.{20}$/);
});

test('authentication of the agent', async (t) => {
  const box = await rawSandbox(t);
  const other = await rawSandbox(t);
  const bare = { sandboxID: box.sandboxID };
  const call = (headers) => guest(bare, 49_983, '/process.Process/List', {
    method: 'POST', headers: { 'Content-Type': 'application/json', ...headers }, body: '{}',
  });
  for (const headers of [{}, { 'X-Access-Token': 'f'.repeat(64) }, { 'X-Access-Token': other.envdAccessToken }, { 'X-Access-Token': '' }]) {
    const res = await call(headers);
    assert.equal(res.status, 401);
    const body = await res.json();
    assert.equal(body.code, 401);
    assert.equal(typeof body.message, 'string');
  }
  assert.equal((await call({ 'X-Access-Token': box.envdAccessToken })).status, 200);
  for (const path of ['/metrics', '/envs']) assert.equal((await guest(bare, 49_983, path)).status, 401, path);
});

test('health', async (t) => {
  const box = await rawSandbox(t);
  const res = await guest({ sandboxID: box.sandboxID }, 49_983, '/health');
  assert.equal(res.status, 204);
  assert.equal(res.headers.get('cache-control'), 'no-store');
});

test('metrics and environment', async (t) => {
  const box = await rawSandbox(t, { envVars: { MINE: 'x' } });
  const metrics = await (await agent(box, '/metrics')).json();
  for (const key of ['ts', 'cpu_count', 'cpu_used_pct', 'mem_total', 'mem_used', 'disk_used', 'disk_total']) {
    assert.equal(typeof metrics[key], 'number', key);
  }
  const envs = await (await agent(box, '/envs')).json();
  assert.equal(envs.MINE, 'x');
  assert.equal(envs.E2B_SANDBOX, 'true');
  assert.equal(envs.E2B_SANDBOX_ID, box.sandboxID);
});

test('marker files', async (t) => {
  const box = await sandbox(t);
  const run = await box.commands.run('cat /run/e2b/.E2B_SANDBOX_ID; echo; test -e /run/e2b/.E2B_SANDBOX && test -e /run/e2b/.E2B_TEMPLATE_ID');
  assert.equal(run.stdout.trim(), box.sandboxId);
});

test('signatures next to routing headers: exact answers', async (t) => {
  const box = await rawSandbox(t);
  const bare = { sandboxID: box.sandboxID };
  await agent(box, '/files?path=hello.txt', { method: 'POST', headers: { 'Content-Type': 'application/octet-stream' }, body: 'x' });
  const sign = (op, expiry, user = '') => {
    const raw = ['hello.txt', op, user, box.envdAccessToken, ...(expiry ? [expiry] : [])].join(':');
    return `v1_${createHash('sha256').update(raw).digest('base64').replace(/=+$/, '')}`;
  };
  const get = (query, init) => guest(bare, 49_983, `/files?path=hello.txt&${new URLSearchParams(query)}`, init);
  const soon = Math.floor(Date.now() / 1000) + 60;
  const past = soon - 120;
  assert.equal((await get({ signature: sign('read') })).status, 200);
  assert.equal((await get({ signature: sign('read', soon), signature_expiration: soon })).status, 200);
  assert.equal((await get({ signature: sign('read', soon, 'user'), signature_expiration: soon, username: 'user' })).status, 200);
  const refused = async (res, message) => {
    assert.equal(res.status, 401);
    const body = await res.json();
    assert.equal(body.code, 401);
    if (message) assert.equal(body.message, message);
  };
  await refused(await get({ signature: sign('write') }), 'invalid signature');
  await refused(await get({ signature: sign('read', soon), signature_expiration: soon + 1 }), 'invalid signature');
  await refused(await get({ signature: sign('read', past), signature_expiration: past }), 'signature is already expired');
  await refused(await get({}));
  // A token that is present decides, whatever the signature.
  await refused(await get({ signature: sign('read') }, { headers: { 'X-Access-Token': 'f'.repeat(64) } }));
});

test('downloads: type, length, ranges, conditions and encoding', async (t) => {
  const box = await rawSandbox(t);
  const text = 'line of text\n'.repeat(1_000);
  await agent(box, '/files?path=a.txt', { method: 'POST', headers: { 'Content-Type': 'application/octet-stream' }, body: text });
  const get = (headers = {}) => agent(box, '/files?path=a.txt', { headers: { 'Accept-Encoding': 'identity', ...headers } });
  const whole = await get();
  assert.equal(whole.headers.get('content-length'), String(text.length));
  assert.match(whole.headers.get('content-type'), /^text\/plain/);
  assert.match(whole.headers.get('content-disposition'), /filename="?a\.txt/);
  assert.equal(await whole.text(), text);
  const part = await get({ Range: 'bytes=5-11' });
  assert.equal(part.status, 206);
  assert.equal(await part.text(), text.slice(5, 12));
  const stamp = whole.headers.get('last-modified');
  assert.ok(stamp, 'Last-Modified');
  assert.equal((await get({ 'If-Modified-Since': stamp })).status, 304);
  assert.equal(await (await get({ 'Accept-Encoding': 'gzip' })).text(), text);
  await agent(box, '/files?path=empty', { method: 'POST', headers: { 'Content-Type': 'application/octet-stream' }, body: '' });
  const empty = await agent(box, '/files?path=empty');
  assert.equal(empty.status, 200);
  assert.equal(empty.headers.get('content-length'), '0');
});

test('file routes: errors', async (t) => {
  const box = await rawSandbox(t);
  const expect = async (res, status, pattern) => {
    assert.equal(res.status, status);
    const body = await res.json();
    assert.equal(body.code, status);
    if (pattern) assert.match(body.message, pattern);
  };
  const octet = { 'Content-Type': 'application/octet-stream' };
  await expect(await agent(box, '/files?path=no%2Fsuch'), 404, /^path '\/home\/user\/no\/such' does not exist$/);
  await expect(await agent(box, '/files?path=%2Ftmp'), 400);
  await expect(await agent(box, '/files?path=a%00b'), 400);
  await expect(await agent(box, '/files?path=x&username=nosuch'), 401);
  await expect(await agent(box, '/files?path=%2Ftmp', { method: 'POST', headers: octet, body: 'x' }), 400);
  await expect(await agent(box, '/files?path=a%00b', { method: 'POST', headers: octet, body: 'x' }), 400);
  await expect(await agent(box, '/files', { method: 'POST', headers: octet, body: 'x' }), 400);
  await expect(await agent(box, '/files?path=x', { method: 'POST', headers: { 'Content-Type': 'text/plain' }, body: 'x' }), 400);
  await expect(await agent(box, '/files?path=x', { method: 'POST', headers: { ...octet, 'Content-Encoding': 'gzip' }, body: 'no gzip' }), 400);
});

test('multipart: other parts are ignored, full names kept', async (t) => {
  const box = await rawSandbox(t);
  const data = new FormData();
  data.append('comment', 'not a file');
  data.append('file', new Blob(['one']), 'dir/one.txt');
  data.append('file', new Blob(['two']), '/tmp/two.txt');
  const res = await agent(box, '/files', { method: 'POST', body: data });
  assert.equal(res.status, 200);
  assert.deepEqual((await res.json()).map((f) => f.path), ['/home/user/dir/one.txt', '/tmp/two.txt']);
  assert.equal(await (await agent(box, '/files?path=dir%2Fone.txt')).text(), 'one');
});

test('compose joins files', async (t) => {
  const box = await sandbox(t);
  await box.files.write([{ path: 'p1', data: 'one,' }, { path: 'p2', data: 'two' }]);
  const res = await agent(box, '/files/compose', {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({ source_paths: ['p1', 'p2'], destination: 'joined' }),
  });
  assert.ok(res.ok, `status ${res.status}`);
  assert.equal(await box.files.read('joined'), 'one,two');
});

test('metadata headers', async (t) => {
  const box = await rawSandbox(t);
  const put = (headers) => agent(box, '/files?path=m', {
    method: 'POST', headers: { 'Content-Type': 'application/octet-stream', ...headers }, body: 'x',
  });
  const res = await put({ 'X-Metadata-Author': 'mish' });
  assert.deepEqual(await res.json(), [{ name: 'm', path: '/home/user/m', type: 'file', metadata: { author: 'mish' } }]);
  assert.deepEqual((await rpc(box, 'filesystem.Filesystem/Stat', { path: 'm' })).json.entry.metadata, { author: 'mish' });
  for (const headers of [{ [`X-Metadata-${'k'.repeat(247)}`]: 'v' }, { 'X-Metadata-Big': 'v'.repeat(4_097) }]) {
    const bad = await put(headers);
    assert.equal(bad.status, 400);
    assert.equal((await bad.json()).code, 400);
  }
});
