// Ports of a sandbox from outside: both forms of addressing, streaming,
// WebSocket, and the answers when nobody is there.
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import http from 'node:http';
import { Sandbox, agent, byHost, eventually, guest, listening, sandbox, sandboxUrl, serve, test, unknownSandbox } from './harness.mjs';

test('the header form', async (t) => {
  const box = await sandbox(t);
  await box.files.write('www/hello.txt', 'from inside');
  await serve(box, 8000, '0.0.0.0', '/home/user/www');
  const res = await guest(box, 8000, '/hello.txt');
  assert.equal(res.status, 200);
  assert.equal(await res.text(), 'from inside');
  assert.equal((await guest(box, 8000, '/missing')).status, 404);
});

test('the host form, as getHost gives it', async (t) => {
  const box = await sandbox(t);
  await box.files.write('www/hello.txt', 'from inside');
  await serve(box, 8000, '0.0.0.0', '/home/user/www');
  const res = await byHost(box.getHost(8000), '/hello.txt');
  assert.equal(res.status, 200);
  assert.equal(res.text, 'from inside');
  const health = await byHost(box.getHost(49983), '/health');
  assert.equal(health.status, 204);
});

test('headers never override the host', async (t) => {
  const [a, b] = await Promise.all([sandbox(t), sandbox(t)]);
  await Promise.all([a, b].map((box) => box.files.write('www/who', box.sandboxId)));
  await Promise.all([a, b].map((box) => serve(box, 8000, '0.0.0.0', '/home/user/www')));
  const res = await byHost(a.getHost(8000), '/who', { 'E2b-Sandbox-Id': b.sandboxId, 'E2b-Sandbox-Port': '8000' });
  assert.equal(res.text, a.sandboxId);
});

test('a host of another domain is not served', async (t) => {
  const box = await sandbox(t);
  const res = await byHost(`8000-${box.sandboxId}.evil.example.com`, '/');
  assert.equal(res.status, 421);
});

test('servers bound to every kind of local address', async (t) => {
  const box = await sandbox(t);
  await box.files.write('www/x', 'ok');
  const binds = ['0.0.0.0', '127.0.0.1', 'localhost', '::', '::1'];
  for (const [i, bind] of binds.entries()) {
    await serve(box, 8100 + i, bind, '/home/user/www');
    const res = await guest(box, 8100 + i, '/x');
    assert.equal(res.status, 200, `bound to ${bind}`);
    assert.equal(await res.text(), 'ok');
  }
});

test('the guest sees neither routing headers nor keys, and the method and body as sent', async (t) => {
  const box = await sandbox(t);
  await box.files.write('echo.py', `
import json
from http.server import BaseHTTPRequestHandler, HTTPServer
class Echo(BaseHTTPRequestHandler):
    def handle_any(self):
        body = self.rfile.read(int(self.headers.get('Content-Length', 0))).decode()
        out = json.dumps({'method': self.command, 'path': self.path, 'headers': {k.lower(): v for k, v in self.headers.items()}, 'body': body}).encode()
        self.send_response(202)
        self.send_header('X-Mine', 'kept')
        self.send_header('Content-Length', str(len(out)))
        self.end_headers()
        self.wfile.write(out)
    do_GET = do_PUT = do_PATCH = do_DELETE = handle_any
HTTPServer(('127.0.0.1', 8200), Echo).serve_forever()
`);
  await box.commands.run('python3 echo.py', { background: true, timeoutMs: 0 });
  await eventually(async () => (await guest(box, 8200, '/')).status === 202, { what: 'echo server' });
  const res = await guest(box, 8200, '/a%2Fb?q=%20x', {
    method: 'PATCH',
    headers: { 'X-API-Key': process.env.E2B_API_KEY, 'X-Custom': 'seen' },
    body: 'payload',
  });
  assert.equal(res.status, 202);
  assert.equal(res.headers.get('x-mine'), 'kept');
  const seen = await res.json();
  assert.deepEqual([seen.method, seen.path, seen.body], ['PATCH', '/a%2Fb?q=%20x', 'payload']);
  assert.equal(seen.headers['x-custom'], 'seen');
  assert.ok(seen.headers['x-forwarded-host'], 'X-Forwarded-Host');
  assert.equal(seen.headers['x-forwarded-proto'], 'http');
  for (const hidden of ['x-api-key', 'e2b-sandbox-id', 'e2b-sandbox-port', 'x-access-token']) {
    assert.equal(seen.headers[hidden], undefined, hidden);
  }
});

test('responses are not buffered', async (t) => {
  const box = await sandbox(t);
  await box.files.write('drip.py', `
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
class Drip(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        for i in range(4):
            self.wfile.write(b'tick\\n')
            self.wfile.flush()
            time.sleep(0.4)
HTTPServer(('0.0.0.0', 8201), Drip).serve_forever()
`);
  await box.commands.run('python3 drip.py', { background: true, timeoutMs: 0 });
  await listening(box, 8201);
  const res = await guest(box, 8201, '/');
  let first;
  let text = '';
  for await (const chunk of res.body) {
    first ??= Date.now();
    text += Buffer.from(chunk).toString();
  }
  assert.equal(text, 'tick\n'.repeat(4));
  assert.ok(Date.now() - first > 900, 'the first part came with the last');
});

test('WebSocket upgrade', async (t) => {
  const box = await sandbox(t);
  await box.files.write('ws.py', `
import base64, hashlib, socket
s = socket.create_server(('127.0.0.1', 8202))
while True:
    c, _ = s.accept()
    head = b''
    while b'\\r\\n\\r\\n' not in head:
        part = c.recv(4096)
        if not part: break
        head += part
    lines = [l.split(b': ', 1) for l in head.split(b'\\r\\n') if b': ' in l]
    key = {k.lower(): v for k, v in lines}.get(b'sec-websocket-key')
    if not key:
        c.close()
        continue
    accept = base64.b64encode(hashlib.sha1(key + b'258EAFA5-E914-47DA-95CA-C5AB0DC85B11').digest())
    c.sendall(b'HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\nSec-WebSocket-Accept: ' + accept + b'\\r\\n\\r\\n')
    while True:
        data = c.recv(4096)
        if not data: break
        c.sendall(data[::-1])
`);
  await box.commands.run('python3 ws.py', { background: true, timeoutMs: 0 });
  await listening(box, 8202);
  const key = randomBytes(16).toString('base64');
  const base = new URL(sandboxUrl);
  const socket = await new Promise((resolve, reject) => {
    const req = http.request({
      host: base.hostname,
      port: base.port,
      path: '/socket',
      headers: {
        Connection: 'Upgrade', Upgrade: 'websocket', 'Sec-WebSocket-Key': key, 'Sec-WebSocket-Version': '13',
        'E2b-Sandbox-Id': box.sandboxId, 'E2b-Sandbox-Port': '8202',
      },
    });
    req.on('upgrade', (res, sock) => {
      const want = createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64');
      if (res.headers['sec-websocket-accept'] !== want) reject(new Error('wrong accept header'));
      resolve(sock);
    });
    req.on('response', (res) => reject(new Error(`status ${res.statusCode}`)));
    req.on('error', reject);
    req.end();
  });
  t.after(() => socket.destroy());
  for (const word of ['abc', 'second']) {
    const answer = new Promise((resolve) => socket.once('data', (d) => resolve(d.toString())));
    socket.write(word);
    assert.equal(await answer, [...word].reverse().join(''));
  }
  const closed = new Promise((resolve) => socket.once('close', resolve));
  socket.on('error', () => {});
  await box.kill();
  await closed;
});

test('a port where nothing listens', async (t) => {
  const box = await sandbox(t);
  const res = await guest(box, 9_999, '/');
  assert.equal(res.status, 502);
  assert.equal(res.headers.get('content-type'), 'application/json; charset=utf-8');
  assert.deepEqual(await res.json(), {
    sandboxId: box.sandboxId, message: 'The sandbox is running but port is not open', port: 9_999, code: 502,
  });
});

test('a sandbox that is not there, or not any more', async () => {
  const box = await Sandbox.create({ timeoutMs: 60_000 });
  await box.kill();
  for (const sandboxId of [unknownSandbox, box.sandboxId]) {
    for (const [port, path] of [[49_983, '/health'], [49_983, '/process.Process/List'], [8_000, '/']]) {
      const res = await guest({ sandboxId }, port, path, path.includes('List') ? { method: 'POST', body: '{}' } : {});
      assert.equal(res.status, 502);
      assert.equal(res.headers.get('content-type'), 'application/json; charset=utf-8');
      assert.deepEqual(await res.json(), { sandboxId, message: 'The sandbox was not found', code: 502 });
    }
  }
});

test('a browser gets a page', async (t) => {
  const browser = {
    'User-Agent': 'Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0',
    Accept: 'text/html,application/xhtml+xml;q=0.9',
    'Sec-Fetch-Mode': 'navigate',
  };
  const box = await sandbox(t);
  const cases = [
    [unknownSandbox, /Sandbox Not Found/],
    [box.sandboxId, /no service running on port/],
  ];
  for (const [id, text] of cases) {
    const res = await byHost(box.getHost(9_998).replace(box.sandboxId, id), '/', browser);
    assert.equal(res.status, 502);
    assert.equal(res.headers['content-type'], 'text/html; charset=utf-8');
    assert.match(res.text, /^<html/);
    assert.match(res.text, /<\/html>$/);
    assert.match(res.text, text);
    assert.ok(res.text.includes(id), 'names the sandbox');
  }
});

test('addresses that are none', async () => {
  const call = (headers) => fetch(`${sandboxUrl}/health`, { headers });
  assert.equal((await call({ 'E2b-Sandbox-Id': unknownSandbox })).status, 400);
  assert.equal((await call({ 'E2b-Sandbox-Port': '8000' })).status, 400);
  assert.equal((await call({ 'E2b-Sandbox-Id': 'NOT_an-id', 'E2b-Sandbox-Port': '8000' })).status, 400);
  assert.equal((await call({ 'E2b-Sandbox-Id': unknownSandbox, 'E2b-Sandbox-Port': 'web' })).status, 400);
  assert.equal((await call({ 'E2b-Sandbox-Id': unknownSandbox, 'E2b-Sandbox-Port': '70000' })).status, 400);
});

test('control routes of the agent are closed', async (t) => {
  const box = await sandbox(t);
  for (const path of ['/init', '/freeze', '/unfreeze', '/collapse', '/fsfreeze', '/fsthaw', '/upgrade']) {
    for (const method of ['GET', 'POST']) {
      const res = await agent(box, path, { method });
      assert.equal(res.status, 404, `${method} ${path}`);
      const body = await res.json();
      assert.equal(body.code, 404);
      assert.equal(body.path, path);
      assert.match(body.message, /reserved for the E2B control plane/);
    }
  }
});

test('open requests break when the sandbox is killed', async () => {
  const box = await Sandbox.create({ timeoutMs: 60_000 });
  await box.files.write('hang.py', `
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
class Hang(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'x')
        self.wfile.flush()
        time.sleep(60)
HTTPServer(('0.0.0.0', 8203), Hang).serve_forever()
`);
  await box.commands.run('python3 hang.py', { background: true, timeoutMs: 0 });
  await listening(box, 8203);
  const res = await guest(box, 8203, '/');
  const reading = assert.rejects(res.text(), /terminated|aborted|reset/);
  const started = Date.now();
  await box.kill();
  await reading;
  assert.ok(Date.now() - started < 5_000);
});
