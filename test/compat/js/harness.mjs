// What every program here shares: which published SDK is under test, how a
// sandbox is made and always killed again, and how to wait for an event without
// sleeping. Configuration is what a user of the SDK would set: E2B_API_KEY,
// E2B_API_URL and E2B_SANDBOX_URL.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import http from 'node:http';
import { basename } from 'node:path';
import nodeTest from 'node:test';
import { inspect } from 'node:util';

for (const name of ['E2B_API_KEY', 'E2B_API_URL', 'E2B_SANDBOX_URL']) {
  if (!process.env[name]) throw new Error(`${name} must be set`);
}

export const generation = process.env.CAISSON_COMPAT_SDK ?? 'new';
if (generation !== 'new' && generation !== 'old') {
  throw new Error(`CAISSON_COMPAT_SDK must be new or old, got ${generation}`);
}
export const isNew = generation === 'new';

export const sdk = await import(isNew ? 'e2b' : 'e2b-old');
export const { Sandbox } = sdk;

export const apiUrl = process.env.E2B_API_URL.replace(/\/$/, '');
export const sandboxUrl = process.env.E2B_SANDBOX_URL.replace(/\/$/, '');
export const apiKey = process.env.E2B_API_KEY;

export const unknownSandbox = 'i0000000000000000dead';
export const wrongKey = `e2b_${'0'.repeat(40)}`;

export const unique = (prefix = 'compat') => `${prefix}-${randomBytes(6).toString('hex')}`;
export const delay = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// test bounds every test, so that a hang is a failure with a name, and puts the
// program's name before it.
const program = basename(process.argv[1] ?? '', '.test.mjs');
export const test = (name, fn) => nodeTest(`${program}: ${name}`, { timeout: 60_000 }, fn);

// sandbox makes a box for one test and kills it when that test ends.
export async function sandbox(t, opts = {}) {
  const box = await Sandbox.create({ timeoutMs: 120_000, ...opts });
  t.after(() => box.kill());
  return box;
}

// eventually calls probe until it returns something truthy; for states that
// only polling can see (a sandbox that must disappear).
export async function eventually(probe, { within = 5_000, every = 100, what = 'condition' } = {}) {
  const deadline = Date.now() + within;
  for (;;) {
    const value = await probe();
    if (value) return value;
    if (Date.now() > deadline) assert.fail(`${what} not reached within ${within} ms`);
    await delay(every);
  }
}

// Recorder collects callback values and lets a test wait for one of them.
export class Recorder {
  items = [];
  #waiting = [];

  push = (item) => {
    this.items.push(item);
    this.#waiting = this.#waiting.filter((w) => !w.check(item));
  };

  // until resolves with the first item, past or future, that match accepts.
  until(match, { within = 10_000, what = 'event' } = {}) {
    const found = this.items.find(match);
    if (found !== undefined) return Promise.resolve(found);
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        reject(new assert.AssertionError({
          message: `no ${what} within ${within} ms; saw ${JSON.stringify(this.items).slice(0, 2000)}`,
        }));
      }, within);
      this.#waiting.push({
        check: (item) => {
          if (!match(item)) return false;
          clearTimeout(timer);
          resolve(item);
          return true;
        },
      });
    });
  }
}

// Terminal collects PTY bytes and waits for text in what was shown so far.
export class Terminal {
  text = '';
  #decoder = new TextDecoder();
  #recorder = new Recorder();

  onData = (bytes) => {
    this.text += this.#decoder.decode(bytes, { stream: true });
    this.#recorder.push(this.text);
  };

  shows(pattern, opts = {}) {
    return this.#recorder.until((text) => pattern.test(text), { what: `terminal output ${pattern}`, ...opts });
  }
}

// fails asserts that promise rejects with the SDK's error class of that name
// (and its subclasses when the name is a base class), and returns the error.
export async function fails(promise, errorClass, pattern) {
  let value;
  try {
    value = await promise;
  } catch (err) {
    if (typeof errorClass === 'string') {
      assert.equal(err.name, errorClass, `${err.name}: ${err.message}`);
    } else {
      assert.ok(err instanceof errorClass, `${err.name}: ${err.message} is no ${errorClass.name}`);
    }
    if (pattern) assert.match(err.message, pattern);
    return err;
  }
  assert.fail(`expected ${errorClass.name ?? errorClass}, got ${inspect(value, { depth: 1 })}`);
}

// api calls the control plane without an SDK.
export async function api(method, path, body, headers = {}) {
  const res = await fetch(apiUrl + path, {
    method,
    headers: { 'X-API-Key': apiKey, ...(body === undefined ? {} : { 'Content-Type': 'application/json' }), ...headers },
    body: body === undefined || typeof body === 'string' ? body : JSON.stringify(body),
  });
  const text = await res.text();
  let json;
  try {
    json = text === '' ? undefined : JSON.parse(text);
  } catch {
    json = undefined;
  }
  return { status: res.status, headers: res.headers, text, json };
}

// apiError asserts the error shape of the control plane, `code` included: SDKs
// decide by the body, not by the status.
export function apiError(res, status, pattern) {
  assert.equal(res.status, status, `status of ${res.text}`);
  assert.match(res.headers.get('content-type') ?? '', /^application\/json/);
  assert.equal(res.json?.code, status, `code in ${res.text}`);
  assert.equal(typeof res.json?.message, 'string', `message in ${res.text}`);
  assert.notEqual(res.json.message, '');
  if (pattern) assert.match(res.json.message, pattern);
}

// rawSandbox makes a box over plain HTTP and kills it when the test ends.
export async function rawSandbox(t, body = {}, path = '/v2/sandboxes') {
  const res = await api('POST', path, { templateID: 'base', timeout: 120, ...body });
  assert.equal(res.status, 201, res.text);
  t.after(() => api('DELETE', `/sandboxes/${res.json.sandboxID}`));
  return res.json;
}

// guest calls a port of a box in the header form.
export function guest(box, port, path, init = {}) {
  return fetch(sandboxUrl + path, {
    ...init,
    headers: { 'E2b-Sandbox-Id': box.sandboxId ?? box.sandboxID, 'E2b-Sandbox-Port': String(port), ...init.headers },
  });
}

// agent calls the agent of a box with its token.
export function agent(box, path, init = {}) {
  return guest(box, 49983, path, {
    ...init,
    headers: { 'X-Access-Token': box.envdAccessToken, ...init.headers },
  });
}

// rpc makes one unary Connect call in JSON.
export async function rpc(box, method, message, headers = {}) {
  const res = await agent(box, `/${method}`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', 'Connect-Protocol-Version': '1', ...headers },
    body: JSON.stringify(message),
  });
  return { status: res.status, headers: res.headers, json: await res.json() };
}

// frame wraps a message for Connect streaming.
export function frame(message, flags = 0) {
  const payload = Buffer.from(JSON.stringify(message));
  const head = Buffer.alloc(5);
  head.writeUInt8(flags, 0);
  head.writeUInt32BE(payload.length, 1);
  return Buffer.concat([head, payload]);
}

// stream makes one Connect streaming call and yields {flags, message}; body is
// one message, or an array of them for client streaming.
export async function* stream(box, method, body, headers = {}) {
  const messages = Array.isArray(body) ? body : [body];
  const res = await agent(box, `/${method}`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/connect+json', 'Connect-Protocol-Version': '1', ...headers },
    body: Buffer.concat(messages.map((m) => frame(m))),
  });
  assert.equal(res.status, 200);
  assert.match(res.headers.get('content-type'), /^application\/connect\+json/);
  let rest = Buffer.alloc(0);
  for await (const chunk of res.body) {
    rest = Buffer.concat([rest, chunk]);
    while (rest.length >= 5 && rest.length >= 5 + rest.readUInt32BE(1)) {
      const size = rest.readUInt32BE(1);
      yield { flags: rest.readUInt8(0), message: JSON.parse(rest.subarray(5, 5 + size).toString()) };
      rest = rest.subarray(5 + size);
    }
  }
  assert.equal(rest.length, 0, 'bytes after the last whole frame');
}

// byHost sends a request to the data plane with a Host header of its own, which
// fetch does not allow; it needs no DNS for the sandbox's name.
export function byHost(host, path, headers = {}) {
  const base = new URL(sandboxUrl);
  return new Promise((resolve, reject) => {
    const req = http.request(
      { host: base.hostname, port: base.port, path, agent: false, headers: { ...headers, Host: host } },
      (res) => {
        const chunks = [];
        res.on('data', (c) => chunks.push(c));
        res.on('end', () => resolve({ status: res.statusCode, headers: res.headers, text: Buffer.concat(chunks).toString() }));
        res.on('error', reject);
      },
    );
    req.on('error', reject);
    req.end();
  });
}

// listening returns once something inside the box accepts on a port of its
// loopback.
export function listening(box, port) {
  return box.commands.run(
    `for i in $(seq 200); do
       for host in 127.0.0.1 ::1; do (exec 3<>/dev/tcp/$host/${port}) 2>/dev/null && exit 0; done
       sleep 0.05
     done; exit 1`,
  );
}

// serve starts a web server inside a box and returns when it listens.
export async function serve(box, port, bind = '0.0.0.0', dir = '/home/user') {
  const handle = await box.commands.run(`python3 -u -m http.server ${port} --bind ${bind} --directory ${dir}`, {
    background: true,
    timeoutMs: 0,
  });
  await listening(box, port);
  return handle;
}
