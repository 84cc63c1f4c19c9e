// Credentials, and options that this server does not build yet.
import assert from 'node:assert/strict';
import { Sandbox, fails, isNew, sandbox, test, unknownSandbox, wrongKey } from './harness.mjs';

test('wrong API key', async (t) => {
  const box = await sandbox(t);
  const apiKey = wrongKey;
  await fails(Sandbox.create({ apiKey }), 'AuthenticationError', /Unauthorized/);
  await fails(Sandbox.connect(box.sandboxId, { apiKey }), 'AuthenticationError');
  await fails(Sandbox.getInfo(box.sandboxId, { apiKey }), 'AuthenticationError');
  await fails(Sandbox.kill(box.sandboxId, { apiKey }), 'AuthenticationError');
  await fails(Sandbox.setTimeout(box.sandboxId, 1_000, { apiKey }), 'AuthenticationError');
  await fails(Sandbox.list({ apiKey }).nextItems(), 'AuthenticationError');
  assert.equal(await box.isRunning(), true);
});

test('malformed API key', async () => {
  await fails(Sandbox.create({ apiKey: 'not-a-key' }), 'AuthenticationError',
    isNew ? /Unauthorized/ : /Invalid API key format/);
});

test('the key of this server passes the SDK format check', () => {
  assert.match(process.env.E2B_API_KEY, /^e2b_[0-9a-f]{40}$/);
});

test('options that are not built are refused by name', async () => {
  const cases = [
    ['volumeMounts', { volumeMounts: { '/data': 'some-volume' } }],
    ['iam', { iam: { tokens: { aws: { audience: 'sts.example.com', tokenType: 'JWT-SVID' } } } }],
    ['rules', { network: { rules: { 'api.example.com': [{ transform: { headers: { 'X-Key': 'v' } } }] } } }],
    ['egressProxy', { network: { egressProxy: { address: 'proxy.example.com:1080' } } }],
  ];
  for (const [field, opts] of cases) {
    await fails(Sandbox.create(opts), 'SandboxError', new RegExp(`^400: .*${field}`));
  }
});

test('an agent token of another sandbox is refused', async (t) => {
  const [a, b] = await Promise.all([sandbox(t), sandbox(t)]);
  const stranger = new Sandbox({
    sandboxId: b.sandboxId,
    sandboxDomain: b.sandboxDomain,
    envdVersion: '0.6.13',
    envdAccessToken: a.envdAccessToken,
  });
  await fails(stranger.commands.run('true'), 'AuthenticationError');
  await fails(stranger.commands.list(), 'AuthenticationError');
  await fails(stranger.files.read('/etc/hostname'), 'AuthenticationError');
  await fails(stranger.files.write('x', 'y'), 'AuthenticationError');
  await fails(stranger.files.list('/'), 'AuthenticationError');
});

test('an agent call without a token is refused', async (t) => {
  const box = await sandbox(t);
  const stranger = new Sandbox({ sandboxId: box.sandboxId, sandboxDomain: box.sandboxDomain, envdVersion: '0.6.13' });
  await fails(stranger.commands.run('true'), 'AuthenticationError');
  await fails(stranger.files.read('/etc/hostname'), 'AuthenticationError');
  assert.equal(await stranger.isRunning(), true);
});

test('a sandbox that never was is not running', async () => {
  const ghost = new Sandbox({ sandboxId: unknownSandbox, envdVersion: '0.6.13', envdAccessToken: 'f'.repeat(64) });
  assert.equal(await ghost.isRunning(), false);
  await fails(ghost.commands.run('true'), 'SandboxNotFoundError');
});
