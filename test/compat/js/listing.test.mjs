// Sandbox.list: filters, order and paging.
import assert from 'node:assert/strict';
import { Sandbox, fails, sandbox, test, unique } from './harness.mjs';

const ids = (items) => items.map((i) => i.sandboxId);

async function all(paginator) {
  const found = [];
  while (paginator.hasNext) found.push(...(await paginator.nextItems()));
  return found;
}

test('filter by metadata', async (t) => {
  const run = unique();
  const [a] = await Promise.all([
    sandbox(t, { metadata: { run, kind: 'a' } }),
    sandbox(t, { metadata: { run, kind: 'b' } }),
  ]);
  const both = await all(Sandbox.list({ query: { metadata: { run } } }));
  assert.equal(both.length, 2);
  const one = await all(Sandbox.list({ query: { metadata: { run, kind: 'a' } } }));
  assert.deepEqual(ids(one), [a.sandboxId]);
  const listed = one[0];
  const info = await a.getInfo();
  assert.deepEqual(listed.metadata, { run, kind: 'a' });
  assert.equal(listed.state, 'running');
  assert.equal(listed.name, 'base');
  assert.equal(listed.templateId, info.templateId);
  assert.equal(listed.cpuCount, info.cpuCount);
  assert.equal(listed.memoryMB, info.memoryMB);
  assert.equal(listed.envdVersion, info.envdVersion);
  assert.equal(listed.startedAt.getTime(), info.startedAt.getTime());
  assert.equal(listed.endAt.getTime(), info.endAt.getTime());
  assert.deepEqual(await all(Sandbox.list({ query: { metadata: { run, kind: 'c' } } })), []);
});

test('metadata with characters that need two encodings', async (t) => {
  const metadata = { [unique('a b&c=d')]: 'x&y=z %20+/ü' };
  const box = await sandbox(t, { metadata });
  assert.deepEqual(ids(await all(Sandbox.list({ query: { metadata } }))), [box.sandboxId]);
});

test('filter by state', async (t) => {
  const metadata = { run: unique() };
  const box = await sandbox(t, { metadata });
  const by = (state) => all(Sandbox.list({ query: { metadata, state } }));
  assert.deepEqual(ids(await by(['running'])), [box.sandboxId]);
  assert.deepEqual(ids(await by(['running', 'paused'])), [box.sandboxId]);
  assert.deepEqual(await by(['paused']), []);
});

test('order, start time and pages', async (t) => {
  const metadata = { run: unique() };
  const boxes = [];
  for (let i = 0; i < 3; i++) boxes.push(await sandbox(t, { metadata }));
  const oldestFirst = ids(boxes);

  assert.deepEqual(ids(await all(Sandbox.list({ query: { metadata } }))), oldestFirst.toReversed());
  assert.deepEqual(ids(await all(Sandbox.list({ query: { metadata }, order: 'asc' }))), oldestFirst);

  const pages = Sandbox.list({ query: { metadata }, order: 'asc', limit: 2 });
  assert.equal(pages.hasNext, true);
  assert.deepEqual(ids(await pages.nextItems()), oldestFirst.slice(0, 2));
  assert.equal(pages.hasNext, true);
  const resumed = Sandbox.list({ query: { metadata }, order: 'asc', limit: 2, nextToken: pages.nextToken });
  assert.deepEqual(ids(await pages.nextItems()), oldestFirst.slice(2));
  assert.equal(pages.hasNext, false);
  await assert.rejects(pages.nextItems(), /No more items/);
  assert.deepEqual(ids(await resumed.nextItems()), oldestFirst.slice(2));

  const { startedAt } = await boxes[1].getInfo();
  const since = await all(Sandbox.list({ query: { metadata, startedAfter: startedAt }, order: 'asc' }));
  assert.deepEqual(ids(since), oldestFirst.slice(1));
});

test('filter by template', async (t) => {
  const metadata = { run: unique() };
  const box = await sandbox(t, { metadata });
  const { templateId } = await box.getInfo();
  const by = (template) => all(Sandbox.list({ query: { metadata, template } }));
  assert.deepEqual(ids(await by('base')), [box.sandboxId]);
  assert.deepEqual(ids(await by(templateId)), [box.sandboxId]);
  assert.deepEqual(await by(unique('nosuch')), []);
  await fails(by('base:sometag'), 'SandboxError', /^400: /);
});

test('killed sandboxes are not listed', async () => {
  const metadata = { run: unique() };
  const box = await Sandbox.create({ metadata, timeoutMs: 60_000 });
  await box.kill();
  assert.deepEqual(await all(Sandbox.list({ query: { metadata } })), []);
});

test('a broken page token is refused', async () => {
  await fails(Sandbox.list({ nextToken: '!!!not-a-token' }).nextItems(), 'SandboxError', /^400: /);
});
