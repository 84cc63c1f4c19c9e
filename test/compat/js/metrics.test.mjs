// Metrics and logs: what the SDK reads of a sandbox that runs and of one that
// has ended, and what the plain API answers to tools around it.
import assert from 'node:assert/strict';
import { Sandbox, api, apiError, eventually, rawSandbox, sandbox, test, unknownSandbox } from './harness.mjs';

const MiB = 1 << 20;
const metrics = (box, what, ok, within = 30_000) => eventually(async () => {
  const all = await box.getMetrics();
  return ok(all) && all;
}, { within, every: 300, what });

test('what a sandbox uses', async (t) => {
  const box = await sandbox(t);
  await box.commands.run('head -c 60M /dev/urandom > /home/user/f; for i in 1 2; do (while :; do :; done) & done; true', { background: true });
  const busy = (m) => m.cpuUsedPct > 5 && m.diskUsed > 60 * MiB;
  const all = await metrics(box, 'metrics of a busy sandbox', (m) => m.some(busy));
  const m = all.find(busy);
  assert.ok(m.timestamp instanceof Date && Math.abs(Date.now() - m.timestamp) < 60_000, `timestamp ${m.timestamp}`);
  assert.ok(Number.isInteger(m.cpuCount) && m.cpuCount > 0, `cpuCount ${m.cpuCount}`);
  assert.ok(m.cpuUsedPct <= 100, `cpuUsedPct ${m.cpuUsedPct}`);
  assert.ok(m.memUsed > MiB && m.memUsed <= m.memTotal, `memUsed ${m.memUsed} of ${m.memTotal}`);
  assert.ok(m.memCache >= 0, `memCache ${m.memCache}`);
  assert.ok(m.diskUsed <= m.diskTotal, `diskUsed ${m.diskUsed} of ${m.diskTotal}`);
  const times = all.map((one) => one.timestamp.getTime());
  assert.deepEqual(times, [...times].sort((a, b) => a - b), 'oldest first');

  // A range, by the static call.
  const none = await Sandbox.getMetrics(box.sandboxId, { end: new Date(Date.now() - 3600_000) });
  assert.deepEqual(none, []);
  const some = await Sandbox.getMetrics(box.sandboxId, { start: new Date(Date.now() - 60_000), end: new Date() });
  assert.ok(some.length >= 1);
});

test('metrics stay when a sandbox has ended', async (t) => {
  const box = await sandbox(t);
  await box.commands.run('true');
  await box.kill();
  assert.ok((await Sandbox.getMetrics(box.sandboxId)).length >= 1, 'even a short life has a sample');
});

test('metrics of what never was', async () => {
  assert.deepEqual(await Sandbox.getMetrics(unknownSandbox), []);
  apiError(await api('GET', `/sandboxes/${unknownSandbox}/metrics?start=2&end=1`), 400, /start/);
});

test('the latest metrics of several sandboxes', async (t) => {
  const [a, b] = await Promise.all([sandbox(t), sandbox(t)]);
  await Promise.all([a, b].map((box) => metrics(box, 'a first sample', (m) => m.length > 0)));
  const res = await api('GET', `/sandboxes/metrics?sandbox_ids=${a.sandboxId},${b.sandboxId},${unknownSandbox}`);
  assert.equal(res.status, 200);
  assert.deepEqual(Object.keys(res.json.sandboxes).sort(), [a.sandboxId, b.sandboxId].sort());
  const m = res.json.sandboxes[a.sandboxId];
  for (const key of ['timestampUnix', 'cpuCount', 'cpuUsedPct', 'memUsed', 'memTotal', 'memCache', 'diskUsed', 'diskTotal']) {
    assert.equal(typeof m[key], 'number', key);
  }
  apiError(await api('GET', '/sandboxes/metrics'), 400, /sandbox_ids/);
  apiError(await api('GET', `/sandboxes/metrics?sandbox_ids=${a.sandboxId},${a.sandboxId}`), 400, /twice/);
});

test('metrics of the team', async (t) => {
  await rawSandbox(t);
  const [{ teamID }] = (await api('GET', '/teams')).json;
  const res = await api('GET', `/teams/${teamID}/metrics?start=${Math.floor(Date.now() / 1000) - 60}`);
  assert.equal(res.status, 200);
  assert.ok(res.json.some((p) => p.concurrentSandboxes >= 1 && typeof p.sandboxStartRate === 'number'), JSON.stringify(res.json));
  const max = await api('GET', `/teams/${teamID}/metrics/max?metric=concurrent_sandboxes`);
  assert.equal(max.status, 200);
  assert.ok(max.json.value >= 1 && max.json.timestampUnix > 0, JSON.stringify(max.json));
  apiError(await api('GET', `/teams/${teamID}/metrics/max`), 400, /metric/);
  apiError(await api('GET', '/teams/not-mine/metrics'), 403);
});

test('logs, in both versions', async (t) => {
  const box = await rawSandbox(t);
  const v1 = await api('GET', `/sandboxes/${box.sandboxID}/logs?limit=100`);
  assert.equal(v1.status, 200);
  assert.ok(v1.json.logs.length >= 1 && v1.json.logEntries.length === v1.json.logs.length);
  for (const { line, timestamp } of v1.json.logs) {
    assert.ok(!Number.isNaN(Date.parse(timestamp)), timestamp);
    const parsed = JSON.parse(line);
    assert.ok(parsed.level && parsed.logger, line);
  }
  const v2 = await api('GET', `/v2/sandboxes/${box.sandboxID}/logs?direction=forward&level=info&search=created`);
  assert.equal(v2.status, 200);
  const [first] = v2.json.logs;
  assert.equal(first.level, 'info');
  assert.match(first.message, /created/);
  assert.equal(typeof first.fields, 'object');
  apiError(await api('GET', `/v2/sandboxes/${unknownSandbox}/logs`), 404);
  apiError(await api('GET', `/v2/sandboxes/${box.sandboxID}/logs?level=loud`), 400, /level/);
});
