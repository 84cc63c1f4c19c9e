// The control plane without an SDK: what the SDKs do not show but depend on.
// These programs are the same for every SDK version.
import assert from 'node:assert/strict';
import { api, apiError, apiUrl, eventually, rawSandbox, test, unique, unknownSandbox, wrongKey } from './harness.mjs';

const age = (info) => (Date.parse(info.endAt) - Date.parse(info.startedAt)) / 1000;
const left = (info) => (Date.parse(info.endAt) - Date.now()) / 1000;
const info = async (id) => (await api('GET', `/sandboxes/${id}`)).json;
const near = (got, want, tolerance = 1.5) => assert.ok(Math.abs(got - want) <= tolerance, `${got}, want ${want} ± ${tolerance}`);

test('health needs no key', async () => {
  const res = await fetch(`${apiUrl}/health`);
  assert.equal(res.status, 200);
});

test('the answer to a create', async (t) => {
  const box = await rawSandbox(t);
  assert.match(box.sandboxID, /^[a-z0-9]+$/);
  assert.match(box.templateID, /^[a-z0-9]+$/);
  assert.equal(box.alias, 'base');
  assert.match(box.clientID, /^[^.]+$/);
  assert.match(box.envdVersion, /^\d+\.\d+\.\d+$/);
  assert.match(box.envdAccessToken, /^[0-9a-f]{64}$/);
  assert.ok(box.domain, 'domain');
  assert.equal(box.trafficAccessToken ?? null, null);
});

test('v1 and v2 have different default timeouts', async (t) => {
  const v1 = await rawSandbox(t, { timeout: undefined }, '/sandboxes');
  near(age(await info(v1.sandboxID)), 15);
  const v2 = await rawSandbox(t, { timeout: undefined });
  near(age(await info(v2.sandboxID)), 300);
});

test('details of a sandbox', async (t) => {
  const box = await rawSandbox(t, { metadata: { a: 'b' }, allow_internet_access: false });
  const res = await api('GET', `/sandboxes/${box.sandboxID}`);
  assert.equal(res.status, 200);
  const d = res.json;
  for (const key of ['templateID', 'alias', 'sandboxID', 'clientID', 'envdVersion', 'envdAccessToken', 'domain']) {
    assert.equal(d[key], box[key], key);
  }
  assert.equal(d.state, 'running');
  assert.deepEqual(d.metadata, { a: 'b' });
  assert.equal(d.allowInternetAccess, false);
  assert.deepEqual(d.lifecycle, { autoResume: false, onTimeout: 'kill' });
  for (const key of ['cpuCount', 'memoryMB', 'diskSizeMB']) assert.ok(Number.isInteger(d[key]) && d[key] > 0, key);
  for (const key of ['startedAt', 'endAt']) assert.match(d[key], /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/, key);
});

test('an id with the client id behind it', async (t) => {
  const box = await rawSandbox(t);
  const res = await api('GET', `/sandboxes/${box.sandboxID}-${box.clientID}`);
  assert.equal(res.status, 200);
  assert.equal(res.json.sandboxID, box.sandboxID);
});

test('errors carry their code in the body', async () => {
  const noKey = await fetch(`${apiUrl}/v2/sandboxes`);
  assert.equal(noKey.status, 401);
  assert.equal((await noKey.json()).code, 401);
  apiError(await api('GET', '/v2/sandboxes', undefined, { 'X-API-Key': wrongKey }), 401);
  apiError(await api('GET', '/v2/sandboxes', undefined, { 'X-API-Key': 'junk' }), 401);
  const calls = [
    ['GET', ''], ['DELETE', ''], ['POST', '/timeout', { timeout: 10 }], ['POST', '/refreshes', { duration: 10 }],
    ['POST', '/connect', { timeout: 10 }], ['PUT', '/network', {}],
  ];
  for (const [method, tail, body] of calls) {
    apiError(await api(method, `/sandboxes/${unknownSandbox}${tail}`, body), 404, new RegExp(unknownSandbox));
  }
  apiError(await api('POST', `/v2/sandboxes/${unknownSandbox}/connect`), 404);
  const template = unique('nosuch');
  apiError(await api('POST', '/v2/sandboxes', { templateID: template }), 404, new RegExp(template));
  apiError(await api('POST', '/sandboxes', { templateID: `${template}:tag` }), 404, new RegExp(template));
});

test('malformed bodies', async () => {
  for (const path of ['/sandboxes', '/v2/sandboxes']) {
    apiError(await api('POST', path, '{"templateID": '), 400);
    apiError(await api('POST', path, '[]'), 400);
    apiError(await api('POST', path, ''), 400);
    apiError(await api('POST', path, {}), 400, /^validation error.*templateID/s);
    apiError(await api('POST', path, { templateID: 7 }), 400, /^validation error.*templateID/s);
    apiError(await api('POST', path, { templateID: 'base', timeout: 'soon' }), 400, /timeout/);
    apiError(await api('POST', path, { templateID: 'base', timeout: 0 }), 400, /timeout/);
    apiError(await api('POST', path, { templateID: 'base', timeout: -1 }), 400, /timeout/);
    apiError(await api('POST', path, { templateID: 'base', timeout: 2 ** 31 - 1 }), 400, /timeout/);
    apiError(await api('POST', path, { templateID: 'base', metadata: { a: 1 } }), 400, /metadata/);
    apiError(await api('POST', path, { templateID: 'base', envVars: ['A=1'] }), 400, /envVars/);
  }
});

test('an oversize body', async () => {
  const res = await api('POST', '/v2/sandboxes', { templateID: 'base', metadata: { big: 'x'.repeat(17 << 20) } });
  assert.ok(res.status === 413 || res.status === 400, `status ${res.status}`);
  apiError(res, res.status);
});

test('unknown members and mcp are ignored', async (t) => {
  const box = await rawSandbox(t, { somethingNew: { a: [1] }, mcp: null, autoPause: false, autoResume: { enabled: false } });
  assert.equal((await info(box.sandboxID)).state, 'running');
});

test('members that are not built are refused by name, on both versions', async () => {
  const cases = {
    volumeMounts: { volumeMounts: [{ name: 'v', path: '/data' }] },
    iam: { iam: { tokens: { aws: { audience: 'a', tokenType: 'JWT-SVID' } } } },
    rules: { network: { rules: { 'example.com': [{ transform: { headers: { A: 'b' } } }] } } },
    egressProxy: { network: { egressProxy: { address: 'proxy.example.com:1080' } } },
  };
  for (const path of ['/sandboxes', '/v2/sandboxes']) {
    for (const [field, body] of Object.entries(cases)) {
      apiError(await api('POST', path, { templateID: 'base', ...body }), 400, new RegExp(field));
    }
  }
});

test('newer network members are stored or refused, never dropped', async (t) => {
  for (const [field, value] of [['httpsPorts', [3000]], ['dnsServers', ['9.9.9.9']], ['maskRequestHost', 'localhost:${PORT}']]) {
    const res = await api('POST', '/v2/sandboxes', { templateID: 'base', timeout: 60, network: { [field]: value } });
    if (res.status === 201) {
      t.after(() => api('DELETE', `/sandboxes/${res.json.sandboxID}`));
      assert.deepEqual((await info(res.json.sandboxID)).network?.[field], value, `${field} was dropped`);
    } else {
      apiError(res, 400, new RegExp(field));
    }
  }
});

test('refreshes only extend', async (t) => {
  const box = await rawSandbox(t, { timeout: 100 });
  const path = `/sandboxes/${box.sandboxID}/refreshes`;
  let res = await api('POST', path, { duration: 600 });
  assert.equal(res.status, 204);
  assert.equal(res.text, '');
  near(left(await info(box.sandboxID)), 600);
  res = await api('POST', path, { duration: 10 });
  assert.equal(res.status, 204);
  near(left(await info(box.sandboxID)), 600);
  res = await api('POST', path);
  assert.equal(res.status, 204);
  near(left(await info(box.sandboxID)), 600);
  apiError(await api('POST', path, { duration: 3_601 }), 400, /duration/);
  apiError(await api('POST', path, { duration: -1 }), 400, /duration/);
});

test('timeout sets, also shorter; its body is checked', async (t) => {
  const box = await rawSandbox(t, { timeout: 500 });
  const path = `/sandboxes/${box.sandboxID}/timeout`;
  assert.equal((await api('POST', path, { timeout: 50 })).status, 204);
  near(left(await info(box.sandboxID)), 50);
  apiError(await api('POST', path, {}), 400, /timeout/);
  apiError(await api('POST', path, { timeout: -1 }), 400, /timeout/);
  apiError(await api('POST', path, { timeout: 2 ** 31 - 1 }), 400, /timeout/);
  near(left(await info(box.sandboxID)), 50);
});

test('connect, both versions', async (t) => {
  const box = await rawSandbox(t, { timeout: 30 });
  const v1 = `/sandboxes/${box.sandboxID}/connect`;
  const v2 = `/v2/sandboxes/${box.sandboxID}/connect`;
  apiError(await api('POST', v1, {}), 400, /timeout/);
  let res = await api('POST', v1, { timeout: 100 });
  assert.equal(res.status, 200);
  for (const key of ['sandboxID', 'templateID', 'clientID', 'envdVersion', 'envdAccessToken', 'domain']) {
    assert.equal(res.json[key], box[key], key);
  }
  near(left(await info(box.sandboxID)), 100);
  res = await api('POST', v2, { timeout: 20 });
  assert.equal(res.status, 200);
  near(left(await info(box.sandboxID)), 100);
  res = await api('POST', v2);
  assert.equal(res.status, 200);
  near(left(await info(box.sandboxID)), 300);
  res = await api('POST', v2, { timeout: 400, memory: true });
  assert.equal(res.status, 200);
  near(left(await info(box.sandboxID)), 400);
  apiError(await api('POST', v2, { timeout: 2 ** 31 - 1 }), 400, /timeout/);
});

test('kill is 204 and then 404', async (t) => {
  const box = await rawSandbox(t);
  const res = await api('DELETE', `/sandboxes/${box.sandboxID}`);
  assert.equal(res.status, 204);
  assert.equal(res.text, '');
  apiError(await api('DELETE', `/sandboxes/${box.sandboxID}`), 404);
  apiError(await api('GET', `/sandboxes/${box.sandboxID}`), 404);
});

test('kills at the same time: one wins', async (t) => {
  const box = await rawSandbox(t);
  const codes = await Promise.all(Array.from({ length: 5 }, async () => (await api('DELETE', `/sandboxes/${box.sandboxID}`)).status));
  assert.deepEqual(codes.toSorted(), [204, 404, 404, 404, 404]);
});

test('list: metadata is encoded twice', async (t) => {
  const run = unique();
  const box = await rawSandbox(t, { metadata: { run, 'a b': 'x&y=%' } });
  const by = (query) => api('GET', `/v2/sandboxes?metadata=${query}`);
  const res = await by(`run%3D${run}%26a%2520b%3Dx%2526y%253D%2525`);
  assert.equal(res.status, 200);
  assert.deepEqual(res.json.map((s) => s.sandboxID), [box.sandboxID]);
  apiError(await by('no-equals-sign'), 400);
  apiError(await by('a%3Db%3Dc'), 400);
});

test('list: headers, paging and limits', async (t) => {
  const run = unique();
  const boxes = [await rawSandbox(t, { metadata: { run } }), await rawSandbox(t, { metadata: { run } })];
  const query = `metadata=run%3D${run}`;
  const first = await api('GET', `/v2/sandboxes?${query}&state=running,paused&limit=1`);
  assert.equal(first.status, 200);
  assert.deepEqual(first.json.map((s) => s.sandboxID), [boxes[1].sandboxID]);
  assert.equal(first.headers.get('x-total-running'), '2');
  const token = first.headers.get('x-next-token');
  assert.ok(token, 'x-next-token');
  const second = await api('GET', `/v2/sandboxes?${query}&limit=1&nextToken=${encodeURIComponent(token)}`);
  assert.deepEqual(second.json.map((s) => s.sandboxID), [boxes[0].sandboxID]);
  assert.equal(second.headers.get('x-next-token'), null);
  const paused = await api('GET', `/v2/sandboxes?${query}&state=paused`);
  assert.deepEqual(paused.json, []);
  assert.equal(paused.headers.get('x-total-running'), null);
  apiError(await api('GET', '/v2/sandboxes?limit=0'), 400, /limit/);
  apiError(await api('GET', '/v2/sandboxes?limit=101'), 400, /limit/);
  apiError(await api('GET', '/v2/sandboxes?limit=many'), 400, /limit/);
  apiError(await api('GET', '/v2/sandboxes?state=sleeping'), 400, /state/);
  apiError(await api('GET', '/v2/sandboxes?order=random'), 400, /order/);
  apiError(await api('GET', '/v2/sandboxes?nextToken=%21%21'), 400);
  apiError(await api('GET', '/v2/sandboxes?startedAfter=yesterday'), 400, /startedAfter/);
  apiError(await api('GET', '/v2/sandboxes?template=base%3Atag'), 400, /template/);
});

test('network: validation', async (t) => {
  const box = await rawSandbox(t);
  const put = (body) => api('PUT', `/sandboxes/${box.sandboxID}/network`, body);
  assert.equal((await put({ allowOut: ['203.0.113.7'], denyOut: ['0.0.0.0/0'] })).status, 204);
  assert.deepEqual((await info(box.sandboxID)).network.allowOut, ['203.0.113.7']);
  apiError(await put({ denyOut: ['example.com'] }), 400, /denyOut.*example\.com|example\.com.*denyOut/s);
  apiError(await put({ denyOut: ['1.2.3.4/64'] }), 400, /1\.2\.3\.4\/64/);
  apiError(await put({ allowOut: ['exa mple'], denyOut: ['0.0.0.0/0'] }), 400, /exa mple/);
  apiError(await put({ rules: { 'example.com': [{}] } }), 400, /rules/);
  apiError(await put('{"allowOut": "example.com"}'), 400, /allowOut/);
  assert.equal((await put({})).status, 204);
  assert.deepEqual((await info(box.sandboxID)).network?.allowOut ?? [], []);
});

test('CORS', async () => {
  const res = await fetch(`${apiUrl}/v2/sandboxes`, {
    method: 'OPTIONS',
    headers: { Origin: 'https://app.example.com', 'Access-Control-Request-Method': 'POST', 'Access-Control-Request-Headers': 'x-api-key,content-type' },
  });
  assert.ok(res.ok, `status ${res.status}`);
  assert.equal(res.headers.get('access-control-allow-origin'), '*');
  assert.match(res.headers.get('access-control-allow-headers') ?? '', /x-api-key/i);
});

test('unknown routes and methods', async () => {
  apiError(await api('GET', '/no/such/route'), 404);
  const res = await api('PATCH', '/v2/sandboxes', {});
  assert.ok(res.status === 404 || res.status === 405, `status ${res.status}`);
  apiError(res, res.status);
});

test('expiry is exact to a second', async (t) => {
  const box = await rawSandbox(t, { timeout: 3 });
  const end = Date.parse((await info(box.sandboxID)).endAt);
  await eventually(async () => (await api('GET', `/sandboxes/${box.sandboxID}`)).status === 404, { within: 6_000, every: 50, what: 'expiry' });
  const late = Date.now() - end;
  assert.ok(late >= -100 && late <= 1_100, `ended ${late} ms after endAt`);
});

test('a burst of creates has no bare errors', async (t) => {
  const answers = await Promise.all(Array.from({ length: 12 }, () => api('POST', '/v2/sandboxes', { templateID: 'base', timeout: 60 })));
  const made = answers.filter((a) => a.status === 201);
  t.after(() => Promise.all(made.map((a) => api('DELETE', `/sandboxes/${a.json.sandboxID}`))));
  for (const a of answers.filter((a) => a.status !== 201)) {
    assert.ok([429, 503].includes(a.status), `status ${a.status}: ${a.text}`);
    apiError(a, a.status);
    if (a.status === 429) assert.match(a.headers.get('retry-after') ?? '', /^\d+$/);
  }
  assert.ok(made.length >= 4, `${made.length} of 12 made`);
  assert.equal(new Set(made.map((a) => a.json.sandboxID)).size, made.length);
});
