// Runs cells of JavaScript and TypeScript for Caisson's code interpreter.
//
// The main thread belongs to the code. V8 runs each cell through the inspector,
// in the mode that debuggers' consoles use: const and let may be declared again,
// and await works at the top. A worker reads cells from descriptor 3, makes
// plain JavaScript of them, and ends code that never returns. All output is
// written to descriptor 4 by the main thread, so that its order is kept.
'use strict';
const { Worker, isMainThread, parentPort } = require('node:worker_threads');
const fs = require('node:fs');

const secret = Symbol.for('caisson.runner');
const PIECE = 1 << 20;

if (isMainThread) main();
else controller();

function main() {
  const inspector = require('node:util').inspect;
  const path = require('node:path');
  const { createRequire, isBuiltin } = require('node:module');
  const { Session } = require('node:inspector');
  const { pathToFileURL } = require('node:url');

  const writeAll = (text) => {
    let rest = Buffer.from(text);
    while (rest.length > 0) {
      try {
        rest = rest.subarray(fs.writeSync(4, rest));
      } catch (err) {
        if (err.code !== 'EAGAIN') throw err;
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
      }
    }
  };
  const emit = (event) => writeAll(`${JSON.stringify(event)}\n`);

  // What the code prints; the chunks of one turn go together.
  for (const name of ['stdout', 'stderr']) {
    process[name].write = (chunk, encoding, done) => {
      const text = typeof chunk === 'string' ? chunk : Buffer.from(chunk).toString();
      for (let at = 0; at < text.length; at += PIECE) {
        let piece = text.slice(at, at + PIECE);
        const last = piece.charCodeAt(piece.length - 1);
        if (last >= 0xd800 && last < 0xdc00 && at + PIECE < text.length) {
          piece = piece.slice(0, -1); // half a character
          at -= 1;
        }
        emit({ type: name, text: piece });
      }
      const callback = typeof encoding === 'function' ? encoding : done;
      if (callback) process.nextTick(callback);
      return true;
    };
  }

  // bundle makes the representations of a value by MIME type.
  const bundle = (value) => {
    const data = {};
    if (value !== null && typeof value === 'object') {
      const rich = {
        _toHtml: 'text/html', _toSvg: 'image/svg+xml', _toPng: 'image/png', _toJpeg: 'image/jpeg',
        _toPdf: 'application/pdf', _toMarkdown: 'text/markdown', _toLatex: 'text/latex', _toJson: 'application/json',
      };
      for (const [method, mime] of Object.entries(rich)) {
        if (typeof value[method] === 'function') data[mime] = value[method]();
      }
      if (typeof value._toMime === 'function') Object.assign(data, value._toMime());
      const proto = Object.getPrototypeOf(value);
      if (Array.isArray(value) || proto === Object.prototype || proto === null) {
        try {
          const text = JSON.stringify(value);
          if (text !== undefined && text.length < 4 * PIECE) data['application/json'] ??= JSON.parse(text);
        } catch {
          // not JSON: a cycle, a big integer
        }
      }
    }
    for (const [mime, v] of Object.entries(data)) {
      if (Buffer.isBuffer(v) || v instanceof Uint8Array) data[mime] = Buffer.from(v).toString('base64');
    }
    data['text/plain'] ??= typeof value === 'string' ? value : inspector(value, { maxArrayLength: 1000, maxStringLength: 100_000 });
    return data;
  };

  const failed = (error) => {
    if (error instanceof Error || (error && typeof error === 'object' && 'stack' in error && 'message' in error)) {
      const stack = String(error.stack ?? '').split('\n').filter((l) => !/javascript\.cjs|node:|at new Promise \(<anonymous>\)/.test(l));
      return { type: 'error', name: String(error.name), value: String(error.message), traceback: stack.join('\n') };
    }
    const text = typeof error === 'string' ? error : inspector(error);
    return { type: 'error', name: 'Error', value: text, traceback: text };
  };

  const here = () => path.join(process.cwd(), 'cell.js');
  const esm = () => {
    try {
      return require('internal/process/esm_loader').esmLoader;
    } catch {
      return undefined;
    }
  };
  const loader = esm();
  let before = {};

  const restore = () => {
    for (const [k, v] of Object.entries(before)) {
      if (v === undefined) delete process.env[k];
      else process.env[k] = v;
    }
    before = {};
  };
  let handed; // the value of an evaluation, on its way out of the inspector
  Object.defineProperty(globalThis, secret, {
    value: {
      // import resolves what a cell imports from the working directory.
      import(name) {
        const parent = pathToFileURL(here()).href;
        if (isBuiltin(name) || /^(data|file):/.test(name)) return import(name);
        if (loader) return loader.import(name, parent, Object.create(null));
        if (/^(\.{1,2}\/|\/)/.test(name)) return import(new URL(name, parent).href);
        try {
          return import(pathToFileURL(createRequire(here()).resolve(name)).href);
        } catch {
          return import(name);
        }
      },
      hand(v) { handed = v; },
    },
  });

  const session = new Session();
  session.connect();
  const post = (method, params) => new Promise((resolve, reject) => {
    session.post(method, params, (err, res) => (err ? reject(err) : resolve(res)));
  });
  // take gets the value that the inspector describes as object.
  const take = async (object) => {
    if (!object.objectId) {
      if (object.unserializableValue) return (0, eval)(object.unserializableValue);
      return object.value;
    }
    await post('Runtime.callFunctionOn', {
      functionDeclaration: "function(v) { globalThis[Symbol.for('caisson.runner')].hand(v) }",
      objectId: object.objectId, arguments: [{ objectId: object.objectId }], silent: true,
    });
    const value = handed;
    handed = undefined;
    return value;
  };

  const stopped = Object.assign(new Error('the cell was interrupted'), { name: 'KeyboardInterrupt', stack: '' });
  let interrupt = () => {};
  let current = 0; // the number of the cell that runs
  const finish = () => {
    current = 0;
    interrupt = () => {};
    session.post('Runtime.releaseObjectGroup', { objectGroup: 'cell' }, () => {});
    restore();
    emit({ type: 'done' });
  };
  // give up a cell whose own end was cut off when it was ended by force.
  const giveUp = (number) => {
    if (current !== number) return;
    interrupt();
    setTimeout(() => {
      if (current !== number) return;
      emit(failed(stopped));
      finish();
    }, 200);
  };
  const run = async ({ expression, globals, env, number, error }) => {
    const interrupted = new Promise((resolve) => { interrupt = () => resolve(stopped); });
    current = number;
    try {
      if (error) throw Object.assign(new Error(error.message), { name: error.name, stack: `${error.name}: ${error.message}` });
      Object.assign(process.env, globals ?? {});
      for (const [k, v] of Object.entries(env ?? {})) {
        before[k] = process.env[k];
        process.env[k] = v;
      }
      const evaluated = post('Runtime.evaluate', {
        expression: `${expression}\n//# sourceURL=cell-${number}.js`, replMode: true, awaitPromise: true, silent: true, objectGroup: 'cell',
      });
      evaluated.catch(() => {});
      const res = await Promise.race([evaluated, interrupted]);
      if (res === stopped) throw stopped;
      if (res.exceptionDetails) {
        const { exception, text } = res.exceptionDetails;
        throw exception ? await take(exception) : new Error(text);
      }
      const value = await take(res.result);
      if (value !== undefined) emit({ type: 'result', main: true, data: bundle(value) });
    } catch (e) {
      if (current === number) emit(failed(/Execution was terminated/.test(e?.message) ? stopped : e));
    } finally {
      if (current === number) finish();
    }
  };
  globalThis.display = (value, mime) => {
    let data = bundle(value);
    if (typeof mime === 'string') {
      const raw = Buffer.isBuffer(value) || value instanceof Uint8Array ? Buffer.from(value).toString('base64') : value;
      data = { [mime]: raw };
    } else if (mime && typeof mime === 'object') {
      data = { ...data, ...mime };
    }
    emit({ type: 'result', main: false, data });
  };
  globalThis.require = (name) => createRequire(here())(name);
  globalThis.require.resolve = (name, o) => createRequire(here()).resolve(name, o);
  globalThis.module = { exports: {} };
  globalThis.exports = globalThis.module.exports;

  // A promise that nobody waits for must not end the kernel.
  process.on('unhandledRejection', (e) => process.stderr.write(`Unhandled rejection: ${failed(e).traceback || e}\n`));
  process.on('uncaughtException', (e) => process.stderr.write(`Uncaught exception: ${failed(e).traceback || e}\n`));
  process.argv.length = 1;
  // An orderly exit waits for the worker, which waits for this thread.
  process.exit = process.reallyExit = () => {
    process.kill(process.pid, 'SIGKILL');
  };
  // The signal is for children; the worker is told in another way.
  process.on('SIGINT', () => {});
  const worker = new Worker(__filename, { stdin: false, stdout: false, stderr: false });
  worker.on('message', (told) => {
    if (told.ready) emit({ type: 'ready' });
    else if (told.interrupt) {
      Atomics.store(told.interrupt, 0, 1); // no need to be ended by force
      interrupt();
    } else if (told.giveUp) giveUp(told.giveUp);
    else run(told);
  });
  worker.on('error', (e) => {
    fs.writeSync(2, `runner: ${e.stack}\n`);
    process.exit(70);
  });
  worker.on('exit', () => process.exit(0));
}

function controller() {
  const { Session } = require('node:inspector');
  const { spawn } = require('node:child_process');
  const readline = require('node:readline');
  let acorn;
  for (const name of ['internal/deps/acorn/acorn/dist/acorn', '/usr/share/nodejs/acorn', 'acorn']) {
    try {
      acorn = require(name);
      break;
    } catch {
      // the next
    }
  }
  const session = new Session();
  session.connectToMainThread();
  const hidden = `globalThis[Symbol.for('caisson.runner')]`;
  let cells = 0;

  // transpile takes the types out.
  const transpile = (code) => new Promise((resolve, reject) => {
    const raw = JSON.stringify({ compilerOptions: { preserveValueImports: true, importsNotUsedAsValues: 'preserve', target: 'es2022', useDefineForClassFields: true } });
    const child = spawn('esbuild', ['--loader=ts', '--target=es2022', '--charset=utf8', '--log-level=error', `--tsconfig-raw=${raw}`], { stdio: ['pipe', 'pipe', 'pipe'] });
    let out = '';
    let err = '';
    child.stdout.setEncoding('utf8').on('data', (d) => { out += d; });
    child.stderr.setEncoding('utf8').on('data', (d) => { err += d; });
    child.on('error', (e) => reject(Object.assign(new Error(`TypeScript needs esbuild: ${e.message}`), { name: 'Error' })));
    child.on('close', (status) => (status === 0 ? resolve(out) : reject(Object.assign(new Error(err.trim()), { name: 'SyntaxError' }))));
    child.stdin.on('error', () => {});
    child.stdin.end(code);
  });

  const parse = (code) => acorn.parse(code, {
    ecmaVersion: 'latest', sourceType: 'module', allowAwaitOutsideFunction: true, allowHashBang: true, allowReturnOutsideFunction: false,
  });

  // plain turns import and export into what a console understands.
  const plain = (code) => {
    if (!/\b(import|export)\b/.test(code)) return code;
    const edits = [];
    const visit = (node) => {
      if (!node || typeof node.type !== 'string') return;
      if (node.type === 'ImportExpression') edits.push([node.start, node.start + 'import'.length, `${hidden}.import`]);
      for (const v of Object.values(node)) {
        if (Array.isArray(v)) v.forEach(visit);
        else if (v && typeof v === 'object') visit(v);
      }
    };
    const tree = parse(code);
    for (const node of tree.body) {
      switch (node.type) {
        case 'ImportDeclaration':
          edits.push([node.start, node.end, importText(node)]);
          break;
        case 'ExportNamedDeclaration':
          if (node.declaration) {
            edits.push([node.start, node.declaration.start, '']);
            visit(node.declaration);
          } else {
            edits.push([node.start, node.end, '']);
          }
          break;
        case 'ExportDefaultDeclaration':
          edits.push([node.start, node.declaration.start, node.declaration.id ? '' : 'var $default = ']);
          visit(node.declaration);
          break;
        case 'ExportAllDeclaration':
          edits.push([node.start, node.end, `await ${hidden}.import(${node.source.raw});`]);
          break;
        default:
          visit(node);
      }
    }
    let out = code;
    for (const [start, end, text] of edits.sort((a, b) => b[0] - a[0])) out = out.slice(0, start) + text + out.slice(end);
    return out;
  };

  const importText = (node) => {
    const from = `await ${hidden}.import(${node.source.raw})`;
    const parts = [];
    let whole = null;
    for (const s of node.specifiers) {
      if (s.type === 'ImportNamespaceSpecifier') whole = s.local.name;
      else if (s.type === 'ImportDefaultSpecifier') parts.push(`default: ${s.local.name}`);
      else parts.push(`${s.imported.raw ?? s.imported.name}: ${s.local.name}`);
    }
    if (parts.length === 0 && !whole) return `${from};`;
    // On one line, so that lines keep their numbers.
    if (!whole) return `const { ${parts.join(', ')} } = ${from};`;
    return `const ${whole} = ${from};${parts.length ? ` const { ${parts.join(', ')} } = ${whole};` : ''}`;
  };

  const prepare = async (code, language) => {
    if (language !== 'typescript') {
      try {
        parse(code);
        return plain(code);
      } catch (err) {
        // A console takes some things that a module does not; types it does not.
        try {
          return plain(await transpile(code));
        } catch {
          if (/\b(import|export)\b/.test(code)) throw Object.assign(err, { name: 'SyntaxError' });
          return code;
        }
      }
    }
    return plain(await transpile(code));
  };

  // A main thread that does not hear of an interrupt in time is in a loop.
  const interrupt = () => {
    const heard = new Int32Array(new SharedArrayBuffer(4));
    parentPort.postMessage({ interrupt: heard });
    setTimeout(() => {
      if (Atomics.load(heard, 0) !== 0) return;
      session.post('Runtime.terminateExecution', () => {});
      setTimeout(() => parentPort.postMessage({ giveUp: cells }), 300);
    }, 100);
  };

  const run = async ({ code, language, globals, env }) => {
    cells += 1;
    const cell = { globals, env, number: cells };
    try {
      cell.expression = await prepare(code, language);
    } catch (e) {
      cell.error = { name: e.name ?? 'Error', message: e.message ?? '' };
    }
    parentPort.postMessage(cell);
  };

  const lines = readline.createInterface({ input: fs.createReadStream(null, { fd: 3 }), crlfDelay: Infinity });
  lines.on('line', (line) => {
    const cell = JSON.parse(line);
    if (cell.interrupt) interrupt();
    else run(cell);
  });
  lines.on('close', () => process.exit(0));
  parentPort.postMessage({ ready: true });
}
