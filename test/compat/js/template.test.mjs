// The Template builder through the SDK: steps, files, start and ready commands,
// tags and names, logs, and builds that fail. Everything stands on the template
// base, so that nothing needs the internet.
import assert from 'node:assert/strict';
import { mkdtemp, mkdir, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import nodeTest from 'node:test';
import { Sandbox, api, apiError, eventually, fails, isNew, sdk, unique } from './harness.mjs';

const { BuildError, Template, waitForPort } = sdk;
// A build takes a while on a busy machine, and older SDKs have another builder.
const test = (name, fn) => nodeTest(`template: ${name}`, { timeout: 180_000, skip: !isNew && 'the builder of the newest SDK only' }, fn);

// named gives a name whose template is deleted when the test ends, after its sandboxes.
const boxes = new WeakMap();
function named(t) {
  const name = unique('tmpl');
  t.after(async () => {
    await Promise.all((boxes.get(t) ?? []).map((box) => box.kill()));
    await api('DELETE', `/templates/${name}`);
  });
  return name;
}

async function boxOf(t, template, opts) {
  const box = await Sandbox.create(template, { timeoutMs: 120_000, ...opts });
  boxes.set(t, [...(boxes.get(t) ?? []), box]);
  return box;
}

const run = async (box, command, opts) => (await box.commands.run(command, opts)).stdout;

test('steps: files, commands, environment, directory, user', async (t) => {
  const context = await mkdtemp(join(tmpdir(), 'compat-'));
  t.after(() => rm(context, { recursive: true }));
  await mkdir(join(context, 'src/deep'), { recursive: true });
  await writeFile(join(context, 'src/main.py'), 'print("from a file")\n');
  await writeFile(join(context, 'src/deep/data.bin'), Buffer.from([0, 255, 1]));
  await writeFile(join(context, 'src/.hidden'), 'h');
  await symlink('main.py', join(context, 'src/link.py'));
  await writeFile(join(context, 'one.txt'), 'one');

  const name = named(t);
  const logs = [];
  const template = Template({ fileContextPath: context })
    .fromTemplate('base')
    .copy('src', '/app/src')
    .copy('one.txt', '/opt/', { user: 'root', mode: 0o640 })
    .runCmd('whoami > /home/user/who; pwd > /home/user/where')
    .runCmd('echo as root > /etc/from-root', { user: 'root' })
    .setEnvs({ GREETING: 'hello there', DOUBLE: '$GREETING!' })
    .setWorkdir('/app/src')
    .runCmd('python3 main.py > out.txt; echo "$DOUBLE" >> out.txt')
    .makeDir('made/here');
  const info = await Template.build(template, name, { onBuildLogs: (entry) => logs.push(entry) });
  assert.equal(info.name, name);
  assert.match(info.templateId, /^[a-z0-9]{20}$/);
  assert.match(info.buildId, /^[0-9a-f-]{36}$/);
  assert.ok(logs.some((e) => /RUN whoami/.test(e.message)), 'the log names the steps');
  assert.ok(logs.some((e) => /Build finished/.test(e.message)), 'the log has an end');
  assert.ok(logs.every((e) => e.timestamp instanceof Date && ['debug', 'info', 'warn', 'error'].includes(e.level)));

  const box = await boxOf(t, name);
  assert.equal(await run(box, 'cat out.txt'), 'from a file\nhello there!\n');
  assert.equal(await run(box, 'pwd'), '/app/src\n');
  assert.equal(await run(box, 'echo $GREETING'), 'hello there\n');
  assert.equal(await run(box, 'cat /home/user/who /home/user/where /etc/from-root'), 'user\n/home/user\nas root\n');
  assert.equal(await run(box, 'readlink link.py; cat .hidden; stat -c %s deep/data.bin; test -d made/here && echo made'), 'main.py\nh3\nmade\n');
  assert.equal(await run(box, 'stat -c "%U %a" /opt/one.txt'), 'root 640\n');
  assert.equal((await box.getInfo()).templateId, info.templateId);

  // The same again comes from the cache, and needs no upload.
  const again = [];
  const second = await Template.build(template, name, { onBuildLogs: (entry) => again.push(entry.message) });
  assert.equal(second.templateId, info.templateId);
  assert.notEqual(second.buildId, info.buildId);
  assert.ok(again.some((m) => /CACHED/.test(m)), `no step was cached: ${again.join('\n')}`);
});

test('a sandbox begins with its start command running', async (t) => {
  const name = named(t);
  const template = Template()
    .fromTemplate('base')
    .setEnvs({ PORT: '8123' })
    .runCmd('mkdir -p /home/user/www && echo served > /home/user/www/index.html')
    .setWorkdir('/home/user/www')
    .setStartCmd('python3 -m http.server $PORT', waitForPort(8123));
  await Template.build(template, name, { cpuCount: 1, memoryMB: 512 });
  const [one, two] = await Promise.all([boxOf(t, name), boxOf(t, name, { envs: { MINE: 'x' } })]);
  for (const box of [one, two]) {
    assert.equal(await run(box, 'curl -sS http://localhost:8123/'), 'served\n');
    assert.equal(await run(box, 'hostname'), `${box.sandboxId}\n`);
  }
  assert.equal(await run(two, 'echo $MINE'), 'x\n');
  const info = await one.getInfo();
  assert.deepEqual([info.cpuCount, info.memoryMB], [1, 512]);
  // Each has a process of its own.
  await run(one, 'pkill -f http.server');
  assert.equal(await run(two, 'curl -sS http://localhost:8123/'), 'served\n');
  // It is a sandbox like any other.
  assert.equal(await two.pause(), true);
  await two.connect();
  assert.equal(await run(two, 'curl -sS http://localhost:8123/'), 'served\n');
  // What stands on it has its command too.
  const above = named(t);
  await Template.build(Template().fromTemplate(name).runCmd('echo above > index.html'), above);
  assert.equal(await run(await boxOf(t, above), 'curl -sS http://localhost:8123/'), 'above\n');
});

test('in the background, names and tags', async (t) => {
  const name = named(t);
  assert.equal(await Template.exists(name), false);
  const build = (text, ...args) => Template.build(Template().fromTemplate('base').runCmd(`echo ${text} > /home/user/v`), ...args);
  const begun = await Template.buildInBackground(Template().fromTemplate('base').runCmd('sleep 1; echo one > /home/user/v'), `${name}:v1`, { tags: ['stable'] });
  assert.deepEqual(begun.tags.toSorted(), ['stable', 'v1']);
  assert.equal((await Template.getBuildStatus(begun)).status, 'building');
  const done = await eventually(async () => {
    const status = await Template.getBuildStatus(begun);
    return status.status !== 'building' && status;
  }, { within: 120_000, what: 'the end of the build' });
  assert.equal(done.status, 'ready');
  assert.equal(await Template.exists(name), true);
  assert.equal(await Template.aliasExists(name), true);
  assert.equal(await Template.exists(`${name}:v1`), true);
  assert.equal(await Template.exists(`${name}:v2`), false);
  await assert.rejects(Sandbox.create(name), /404/, 'there is no default tag yet');

  const two = await build('two', name);
  assert.equal(two.templateId, begun.templateId);
  assert.equal(await run(await boxOf(t, name), 'cat v'), 'two\n');
  assert.equal(await run(await boxOf(t, `${name}:stable`), 'cat v'), 'one\n');
  const assigned = await Template.assignTags(`${name}:v1`, ['production', 'default']);
  assert.equal(assigned.buildId, begun.buildId);
  assert.equal(await run(await boxOf(t, name), 'cat v'), 'one\n');
  const tags = Object.fromEntries((await Template.getTags(name)).map((x) => [x.tag, x.buildId]));
  assert.deepEqual(tags, { v1: begun.buildId, stable: begun.buildId, production: begun.buildId, default: begun.buildId });
  await Template.removeTags(name, ['stable', 'v1']);
  assert.equal((await Template.getTags(name)).length, 2);
  await assert.rejects(Template.removeTags(name, 'default'), /400/);
  await assert.rejects(Template.assignTags(`${name}:nosuch`, 'x'), /404/);
});

test('builds that fail say which step', async (t) => {
  const name = named(t);
  const logs = [];
  const failing = (template, pattern) => fails(
    Template.build(template, name, { onBuildLogs: (e) => logs.push(e.message) }), BuildError, pattern,
  );
  await failing(Template().fromTemplate('base').runCmd('true').runCmd('echo last words; exit 3'), /failed to run command 'echo last words; exit 3'/);
  assert.ok(logs.some((m) => /last words/.test(m)), 'the log has the output of the step');
  await failing(Template().fromTemplate('base').runCmd('whoami', { user: 'root123' }), /invalid username: 'root123'/);
  await failing(Template().fromTemplate('base').setStartCmd('exit 1', 'sleep 30'), /./);
  await failing(Template().fromTemplate('no-such-template-anywhere'), /no-such-template-anywhere/);
  await assert.rejects(Sandbox.create(name), /40[049]/, 'nothing is ready');
  // A later one that works makes it usable.
  await Template.build(Template().fromTemplate('base').runCmd('true'), name);
  assert.equal(await run(await boxOf(t, name), 'echo works'), 'works\n');
});

test('what cannot be is refused with its reason', async (t) => {
  const name = named(t);
  const template = Template().fromTemplate('base').runCmd('true');
  for (const [opts, pattern] of [
    [{ cpuCount: 3 }, /CPU count must be 1 or an even number/],
    [{ cpuCount: 34 }, /CPU count must be at most 32/],
    [{ memoryMB: 513 }, /Memory must be divisible by 2/],
  ]) {
    await assert.rejects(Template.build(template, name, opts), pattern);
  }
  await assert.rejects(Template.build(template, 'another-team/x'), /400/);
  apiError(await api('GET', '/templates/nosuch/builds/x/status'), 400, /no build/);
  apiError(await api('POST', '/v3/templates', {}), 400, /name/);
});
