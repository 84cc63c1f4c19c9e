// Snapshots and forks through the SDK: what a copy has of its source and what it
// has not, names and tags, listing, deleting, and the answers on the wire.
import assert from 'node:assert/strict';
import { Sandbox, api, apiError, rawSandbox, sandbox, test, unique, unknownSandbox } from './harness.mjs';

const count = '(i=0; while :; do i=$((i+1)); echo >> /tmp/n; sleep 0.05; done) >/dev/null 2>&1 & echo $!';
const counts = (pid) => `kill -0 ${pid} && a=$(stat -c %s /tmp/n) && sleep 0.3 && [ "$(stat -c %s /tmp/n)" -gt "$a" ] && echo counts`;

// snapshot makes one that is deleted when the test ends, after its copies.
const copies = new WeakMap();
async function snapshot(t, box, opts) {
  const made = await box.createSnapshot(opts);
  t.after(async () => {
    await Promise.all((copies.get(t) ?? []).map((copy) => copy.kill()));
    await Sandbox.deleteSnapshot(made.snapshotId);
  });
  return made;
}

async function copyOf(t, id, opts) {
  const box = await Sandbox.create(id, { timeoutMs: 120_000, ...opts });
  copies.set(t, [...(copies.get(t) ?? []), box]);
  return box;
}

test('a sandbox of a snapshot goes on where its source stood', async (t) => {
  const box = await sandbox(t, { envs: { KEPT: 'source', OVER: 'source' }, metadata: { of: 'source' } });
  const pid = (await box.commands.run(count)).stdout.trim();
  await box.files.write('/home/user/state.json', '{"step": 1}');
  const before = (await box.getInfo()).endAt;
  const made = await snapshot(t, box);
  assert.match(made.snapshotId, /^[a-z0-9]{20}:default$/);
  assert.deepEqual(made.names, []);
  assert.equal((await box.commands.run(counts(pid))).stdout, 'counts\n', 'the source runs on');
  assert.deepEqual((await box.getInfo()).endAt, before);

  const copy = await copyOf(t, made.snapshotId, { envs: { OVER: 'copy' } });
  assert.notEqual(copy.sandboxId, box.sandboxId);
  assert.equal(await copy.files.read('/home/user/state.json'), '{"step": 1}');
  assert.equal((await copy.commands.run(`echo $KEPT $OVER; ${counts(pid)}`)).stdout, 'source copy\ncounts\n');
  assert.deepEqual((await copy.getInfo()).metadata, {});
  await copy.files.write('/home/user/state.json', 'changed');
  assert.equal(await box.files.read('/home/user/state.json'), '{"step": 1}');
  // It outlives its source, and is a sandbox like any other.
  assert.equal(await box.kill(), true);
  assert.equal(await copy.pause(), true);
  await copy.connect();
  assert.equal((await copy.commands.run(counts(pid))).stdout, 'counts\n');
  await assert.rejects(Sandbox.deleteSnapshot(made.snapshotId), /400/);
  await copy.kill();
  assert.equal(await Sandbox.deleteSnapshot(made.snapshotId), true);
  assert.equal(await Sandbox.deleteSnapshot(made.snapshotId), false);
  await assert.rejects(Sandbox.create(made.snapshotId), /404/);
});

test('named snapshots: a name is a template, a tag a build', async (t) => {
  const name = unique('snap');
  const box = await sandbox(t);
  await box.commands.run('echo one > /home/user/f');
  const first = await snapshot(t, box, { name });
  assert.match(first.snapshotId, new RegExp(`^[a-z0-9-]+/${name}:default$`));
  assert.deepEqual(first.names, [first.snapshotId.replace(/:default$/, '')]);
  await box.commands.run('echo two > /home/user/f');
  const v2 = await snapshot(t, box, { name: `${name}:v2` });
  assert.equal(v2.snapshotId, first.snapshotId.replace(/default$/, 'v2'));
  const read = async (ref) => (await copyOf(t, ref)).files.read('/home/user/f');
  assert.equal(await read(name), 'one\n');
  assert.equal(await read(v2.snapshotId), 'two\n');
  // The name used again means the new build at once.
  await box.commands.run('echo three > /home/user/f');
  assert.equal((await box.createSnapshot({ name })).snapshotId, first.snapshotId);
  assert.equal(await read(name), 'three\n');
  await assert.rejects(box.createSnapshot({ name: 'base' }), /400/, 'a template keeps its name');
  await assert.rejects(box.createSnapshot({ name: 'other-team/x' }), /400/);
  await assert.rejects(box.createSnapshot({ name: 'not a name' }), /400/);
});

test('listing snapshots', async (t) => {
  const name = unique('list');
  const box = await sandbox(t);
  const unnamed = await snapshot(t, box);
  const v1 = await snapshot(t, box, { name: `${name}:v1` });
  const v2 = await snapshot(t, box, { name: `${name}:v2` });
  const ids = async (opts) => {
    const all = [];
    const pages = Sandbox.listSnapshots(opts);
    while (pages.hasNext) all.push(...(await pages.nextItems()).map((s) => s.snapshotId));
    return all;
  };
  assert.deepEqual(await ids({ sandboxId: box.sandboxId }), [v2.snapshotId, v1.snapshotId, unnamed.snapshotId]);
  assert.deepEqual(await ids({ sandboxId: box.sandboxId, limit: 1 }), [v2.snapshotId, v1.snapshotId, unnamed.snapshotId]);
  const own = [];
  const pages = box.listSnapshots();
  while (pages.hasNext) own.push(...(await pages.nextItems()));
  assert.deepEqual(own[0], { snapshotId: v2.snapshotId, names: v2.names });
  const listed = async (query) => {
    const res = await api('GET', `/snapshots?${new URLSearchParams(query)}`);
    assert.equal(res.status, 200);
    return res.json.map((s) => s.snapshotID);
  };
  assert.deepEqual(await listed({ name }), [v2.snapshotId], 'a bare name shows its newest tag');
  assert.deepEqual(await listed({ name: v1.snapshotId }), [v1.snapshotId]);
  assert.deepEqual(await listed({ name: `${name}:v1` }), [v1.snapshotId]);
  assert.deepEqual(await listed({ name: unnamed.snapshotId.split(':')[0] }), [unnamed.snapshotId]);
  assert.deepEqual(await listed({ name: unique() }), []);
  assert.deepEqual(await listed({ sandboxID: unknownSandbox }), []);
  const all = await listed({});
  assert.ok(all.includes(unnamed.snapshotId) && all.includes(v2.snapshotId) && !all.includes(v1.snapshotId));
  const templates = await api('GET', '/templates');
  assert.ok(!templates.json.some((tmpl) => tmpl.aliases.includes(name)), 'a snapshot is not among the templates');
});

test('fork: many go on from one point', async (t) => {
  const box = await sandbox(t, { envs: { GREETING: 'hello' }, metadata: { of: 'source' } });
  const pid = (await box.commands.run(count)).stdout.trim();
  await box.files.write('/home/user/f', 'source');
  const forks = await box.fork({ count: 3, timeoutMs: 60_000 });
  for (const fork of forks) {
    assert.ok(fork instanceof Sandbox, String(fork));
    t.after(() => fork.kill());
  }
  assert.equal(new Set([box, ...forks].map((b) => b.sandboxId)).size, 4);
  await Promise.all(forks.map(async (fork) => {
    assert.equal((await fork.commands.run(`cat /home/user/f; echo; echo $GREETING; ${counts(pid)}`)).stdout, 'source\nhello\ncounts\n');
    await fork.files.write('/home/user/f', fork.sandboxId);
  }));
  await Promise.all(forks.map(async (fork) => assert.equal(await fork.files.read('/home/user/f'), fork.sandboxId)));
  assert.equal(await box.files.read('/home/user/f'), 'source');
  const [source, info] = await Promise.all([box.getInfo(), forks[0].getInfo()]);
  assert.deepEqual([info.templateId, info.metadata], [source.templateId, source.metadata]);
  assert.equal((await Sandbox.fork(box.sandboxId)).length, 1);
});

test('snapshots and forks: the answers on the wire', async (t) => {
  const box = await rawSandbox(t);
  const call = (verb, body, id = box.sandboxID) => api('POST', `/sandboxes/${id}/${verb}`, body);
  for (const verb of ['snapshots', 'fork']) apiError(await call(verb, {}, unknownSandbox), 404, /doesn't exist/);
  for (const body of [{ count: 0 }, { count: 101 }, { count: 'x' }]) apiError(await call('fork', body), 400, /count/);
  for (const timeout of [0, -1, 100_000_000]) apiError(await call('fork', { timeout }), 400, /timeout/);
  apiError(await call('snapshots', { name: 5 }), 400, /name/);
  apiError(await api('GET', '/snapshots?limit=0'), 400, /limit/);
  apiError(await api('GET', '/snapshots?nextToken=nonsense'), 400, /nextToken/);
  apiError(await api('DELETE', `/templates/${unique()}`), 404, /./);
  const forked = await call('fork');
  assert.equal(forked.status, 201);
  const child = forked.json[0].sandbox;
  assert.ok(child.envdAccessToken && child.envdAccessToken !== box.envdAccessToken);
  assert.equal(child.templateID, box.templateID);
  assert.equal((await api('DELETE', `/sandboxes/${child.sandboxID}`)).status, 204);
  const made = await call('snapshots');
  assert.equal(made.status, 201);
  assert.deepEqual(Object.keys(made.json).sort(), ['names', 'snapshotID']);
  const many = await Promise.all(Array.from({ length: 4 }, () => call('snapshots')));
  assert.ok(many.some((r) => r.status === 201) && many.every((r) => [201, 409].includes(r.status)), JSON.stringify(many.map((r) => r.status)));
  for (const r of [made, ...many.filter((m) => m.status === 201)]) {
    assert.equal((await api('DELETE', `/templates/${encodeURIComponent(r.json.snapshotID)}`)).status, 204);
  }
  assert.equal((await call('pause')).status, 204);
  for (const verb of ['snapshots', 'fork']) apiError(await call(verb), 409, /paused/);
  assert.equal((await api('DELETE', `/sandboxes/${box.sandboxID}`)).status, 204);
  for (const verb of ['snapshots', 'fork']) apiError(await call(verb), 404, /doesn't exist/);
});
