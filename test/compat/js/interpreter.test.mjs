// The code interpreter through @e2b/code-interpreter, the way its documentation
// uses it. Needs the template code-interpreter-v1.
import assert from 'node:assert/strict';
import { isNew, test } from './harness.mjs';

const skip = isNew ? undefined : 'the code interpreter SDK goes with the newest SDK only';
const { Sandbox } = skip ? {} : await import('@e2b/code-interpreter');

async function interpreter(t) {
  const box = await Sandbox.create({ timeoutMs: 300_000 });
  t.after(() => box.kill());
  return box;
}

const program = (name, fn) => (skip ? test(name, (t) => t.skip(skip)) : test(name, fn));

program('runs code and keeps its state', async (t) => {
  const box = await interpreter(t);
  await box.runCode('x = 1');
  const run = await box.runCode('x += 1; x');
  assert.equal(run.text, '2');
  assert.equal(run.executionCount, 2);
  assert.equal(run.results[0].isMainResult, true);

  const seen = { stdout: [], stderr: [], results: [], errors: [] };
  const loud = await box.runCode('import sys\nprint("out")\nprint("err", file=sys.stderr)\n"value"', {
    onStdout: (m) => seen.stdout.push(m.line),
    onStderr: (m) => seen.stderr.push(m.line),
    onResult: (r) => seen.results.push(r.text),
  });
  assert.deepEqual(seen, { stdout: ['out\n'], stderr: ['err\n'], results: ['value'], errors: [] });
  assert.deepEqual(loud.logs, { stdout: ['out\n'], stderr: ['err\n'] });

  const bad = await box.runCode('1/0', { onError: (e) => seen.errors.push(e.name) });
  assert.equal(bad.error.name, 'ZeroDivisionError');
  assert.deepEqual(seen.errors, ['ZeroDivisionError']);

  assert.equal((await box.runCode('import os; os.environ["K"]', { envs: { K: 'v' } })).text, 'v');
  assert.equal((await box.runCode('os.environ.get("K", "gone")')).text, 'gone');
});

program('languages and contexts', async (t) => {
  const box = await interpreter(t);
  const ts = await box.runCode('const greet = (who: string): string => `hello ${who}`;\nconsole.log(greet("ts")); greet("x")', { language: 'ts' });
  assert.equal(ts.error, undefined);
  assert.deepEqual(ts.logs.stdout, ['hello ts\n']);
  assert.equal(ts.text, 'hello x');
  assert.equal((await box.runCode('const n = await Promise.resolve(3); n * 2', { language: 'javascript' })).text, '6');
  assert.deepEqual((await box.runCode('echo $((6 * 7))', { language: 'bash' })).logs.stdout, ['42\n']);

  const context = await box.createCodeContext({ language: 'python', cwd: '/tmp' });
  assert.equal((await box.runCode('import os; os.getcwd()', { context })).text, '/tmp');
  const all = await box.listCodeContexts();
  assert.equal(all.at(-1).id, context.id);
  assert.deepEqual(all.slice(0, 2).map((c) => c.language), ['python', 'javascript']);
  await box.runCode('y = 1', { context });
  await box.restartCodeContext(context);
  assert.equal((await box.runCode('y', { context })).error.name, 'NameError');
  await box.removeCodeContext(context);
  await assert.rejects(box.runCode('1', { context }), { name: /NotFound/ });
});

program('a chart has a picture and its data', async (t) => {
  const box = await interpreter(t);
  const run = await box.runCode('import matplotlib.pyplot as plt\nplt.bar(["a", "b"], [1, 2])\nplt.title("Bars")\nplt.show()');
  assert.equal(run.error, undefined);
  const [result] = run.results;
  assert.deepEqual(Buffer.from(result.png, 'base64').subarray(1, 4).toString(), 'PNG');
  assert.equal(result.chart.type, 'bar');
  assert.equal(result.chart.title, 'Bars');
  assert.deepEqual(result.chart.elements, [{ label: 'a', group: 'Group 0', value: 1 }, { label: 'b', group: 'Group 0', value: 2 }]);
});

program('a run that is given up is interrupted', async (t) => {
  const box = await interpreter(t);
  await box.runCode('kept = 5');
  await assert.rejects(box.runCode('while True: pass', { timeoutMs: 1_500 }), { name: 'TimeoutError' });
  assert.equal((await box.runCode('kept')).text, '5');
});
