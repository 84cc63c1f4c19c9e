// Egress options: what is stored, what is refused, and that nothing leaves
// which was not allowed. No test needs the internet.
import assert from 'node:assert/strict';
import { Sandbox, fails, sandbox, sdk, test, unknownSandbox } from './harness.mjs';

const everything = sdk.ALL_TRAFFIC;

test('allowInternetAccess is stored', async (t) => {
  const closed = await sandbox(t, { allowInternetAccess: false });
  assert.equal((await closed.getInfo()).allowInternetAccess, false);
  const open = await sandbox(t, { allowInternetAccess: true });
  assert.equal((await open.getInfo()).allowInternetAccess, true);
});

test('rules given at create are stored', async (t) => {
  const network = {
    allowOut: ['api.example.com', '*.example.org', '203.0.113.7', '198.51.100.0/24'],
    denyOut: [everything],
  };
  const box = await sandbox(t, { network });
  const info = await box.getInfo();
  assert.deepEqual(info.network.allowOut, network.allowOut);
  assert.deepEqual(info.network.denyOut, ['0.0.0.0/0']);
});

test('rules may be functions', async (t) => {
  const box = await sandbox(t, {
    network: { allowOut: () => ['203.0.113.0/24'], denyOut: ({ allTraffic }) => [allTraffic] },
  });
  const { network } = await box.getInfo();
  assert.deepEqual([network.allowOut, network.denyOut], [['203.0.113.0/24'], ['0.0.0.0/0']]);
});

test('updateNetwork replaces the rules', async (t) => {
  const box = await sandbox(t, { network: { allowOut: ['203.0.113.7'], denyOut: [everything] } });
  await box.updateNetwork({ denyOut: ['198.51.100.0/24'] });
  let { network } = await box.getInfo();
  assert.deepEqual(network?.allowOut ?? [], []);
  assert.deepEqual(network?.denyOut, ['198.51.100.0/24']);
  await Sandbox.updateNetwork(box.sandboxId, { allowOut: ['pypi.org'], denyOut: ({ allTraffic }) => [allTraffic] });
  ({ network } = await box.getInfo());
  assert.deepEqual([network?.allowOut, network?.denyOut], [['pypi.org'], ['0.0.0.0/0']]);
  await box.updateNetwork({});
  ({ network } = await box.getInfo());
  assert.deepEqual([network?.allowOut ?? [], network?.denyOut ?? []], [[], []]);
});

test('bad rules are refused and change nothing', async (t) => {
  const box = await sandbox(t, { network: { denyOut: ['198.51.100.0/24'] } });
  const bad = [
    { denyOut: ['example.com'] },
    { denyOut: ['300.1.2.3'] },
    { denyOut: ['10.0.0.0/99'] },
    { allowOut: ['not a domain'], denyOut: [everything] },
    { allowOut: ['-bad-.example.com'], denyOut: [everything] },
    { rules: { 'example.com': [] } },
  ];
  for (const network of bad) {
    await fails(box.updateNetwork(network), 'SandboxError', /^400: /);
    await fails(Sandbox.create({ network }), 'SandboxError', /^400: /);
  }
  assert.deepEqual((await box.getInfo()).network.denyOut, ['198.51.100.0/24']);
});

test('the network of an unknown sandbox', async () => {
  await fails(Sandbox.updateNetwork(unknownSandbox, {}), 'SandboxNotFoundError');
});

test('a closed sandbox reaches nothing, and quickly', async (t) => {
  const box = await sandbox(t, { allowInternetAccess: false });
  const connect = (host, port) => box.commands.run(
    `timeout 6 python3 -c "import socket; socket.create_connection(('${host}', ${port}), 5)"`,
  );
  const started = Date.now();
  await Promise.all([
    ['1.1.1.1', 443],
    ['169.254.169.254', 80],
    ['10.0.0.1', 80],
    ['192.168.1.1', 80],
    ['172.17.0.1', 22],
    ['100.64.0.1', 80],
  ].map(([host, port]) => fails(connect(host, port), 'CommandExitError')));
  await fails(box.commands.run('getent hosts exfiltrate.example.com'), 'CommandExitError');
  await fails(box.commands.run('curl -sS -m 5 https://example.com'), 'CommandExitError');
  assert.ok(Date.now() - started < 20_000);
});

test('private addresses stay closed whatever was allowed', async (t) => {
  const box = await sandbox(t, { network: { allowOut: ['0.0.0.0/0'] } });
  for (const [host, port] of [['169.254.169.254', 80], ['10.0.0.1', 80], ['100.64.0.1', 80], ['192.168.0.1', 80]]) {
    await fails(
      box.commands.run(`timeout 6 python3 -c "import socket; socket.create_connection(('${host}', ${port}), 2)"`),
      'CommandExitError',
    );
  }
});

test('IPv6 and UDP do not leak', async (t) => {
  const box = await sandbox(t);
  await fails(
    box.commands.run(`timeout 6 python3 -c "import socket; socket.create_connection(('2606:4700:4700::1111', 443), 3)"`),
    'CommandExitError',
  );
  const udp = await box.commands.run(`python3 - <<'EOF'
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(1)
try:
    s.sendto(b'\\x00' * 48, ('203.0.113.9', 123))
    s.recv(100)
    print('answered')
except OSError:
    print('silent')
EOF`);
  assert.equal(udp.stdout, 'silent\n');
});

test('loopback inside the sandbox works', async (t) => {
  const box = await sandbox(t, { allowInternetAccess: false });
  const run = await box.commands.run(
    `python3 -m http.server 8123 --bind 127.0.0.1 >/dev/null 2>&1 & server=$!
     for i in $(seq 100); do curl -fs -o /dev/null http://127.0.0.1:8123/ && break; sleep 0.05; done
     curl -s -o /dev/null -w '%{http_code}' http://localhost:8123/; kill $server`,
  );
  assert.equal(run.stdout, '200');
});
