// Commands: results, users, environment, working directory, errors, limits of
// time, streaming and large output.
import assert from 'node:assert/strict';
import { Recorder, delay, eventually, fails, sandbox, test } from './harness.mjs';

test('result of a command', async (t) => {
  const box = await sandbox(t);
  const run = await box.commands.run('echo out; echo err >&2');
  assert.equal(run.exitCode, 0);
  assert.equal(run.stdout, 'out\n');
  assert.equal(run.stderr, 'err\n');
  assert.equal(run.error, undefined);
});

test('exit code other than zero', async (t) => {
  const box = await sandbox(t);
  const err = await fails(box.commands.run('echo out; echo err >&2; exit 3'), 'CommandExitError', /^exit status 3$/);
  assert.equal(err.exitCode, 3);
  assert.equal(err.stdout, 'out\n');
  assert.equal(err.stderr, 'err\n');
  assert.equal(err.error, 'exit status 3');
});

test('a command that does not exist is exit code 127', async (t) => {
  const box = await sandbox(t);
  const err = await fails(box.commands.run('no-such-command-here'), 'CommandExitError');
  assert.equal(err.exitCode, 127);
  assert.match(err.stderr, /no-such-command-here: command not found/);
});

test('the default user', async (t) => {
  const box = await sandbox(t);
  const run = await box.commands.run('whoami; pwd; echo $HOME:$USER:$LOGNAME; sudo -n id -u');
  assert.equal(run.stdout, 'user\n/home/user\n/home/user:user:user\n0\n');
});

test('another user', async (t) => {
  const box = await sandbox(t);
  const root = await box.commands.run('id -u; echo $HOME:$USER:$LOGNAME', { user: 'root' });
  assert.equal(root.stdout, '0\n/root:root:root\n');
  const user = await box.commands.run('id -un', { user: 'user' });
  assert.equal(user.stdout, 'user\n');
  await fails(box.commands.run('true', { user: 'nosuchuser' }), 'AuthenticationError', /invalid username: 'nosuchuser'/);
});

test('environment of a sandbox and of a command', async (t) => {
  const box = await sandbox(t, { envs: { FROM_CREATE: 'create', BOTH: 'create' } });
  const run = await box.commands.run(
    'echo $E2B_SANDBOX $E2B_SANDBOX_ID $E2B_TEMPLATE_ID; echo $FROM_CREATE $FROM_RUN $BOTH',
    { envs: { FROM_RUN: 'run', BOTH: 'run' } },
  );
  const { templateId } = await box.getInfo();
  assert.equal(run.stdout, `true ${box.sandboxId} ${templateId}\ncreate run run\n`);
  const again = await box.commands.run('echo [$FROM_RUN] $BOTH');
  assert.equal(again.stdout, '[] create\n');
});

test('working directory', async (t) => {
  const box = await sandbox(t);
  await box.files.makeDir('project/src');
  const pwd = async (cwd, opts) => (await box.commands.run('pwd', { cwd, ...opts })).stdout;
  assert.equal(await pwd('/usr/lib'), '/usr/lib\n');
  assert.equal(await pwd('project/src'), '/home/user/project/src\n');
  assert.equal(await pwd('~/project'), '/home/user/project\n');
  assert.equal(await pwd('~', { user: 'root' }), '/root\n');
  await fails(pwd('/no/such/dir'), 'InvalidArgumentError', /cwd '\/no\/such\/dir' does not exist/);
});

test('shell features: pipes, quotes, here-documents, job control', async (t) => {
  const box = await sandbox(t);
  const run = await box.commands.run(`cat <<'EOF' | tr a-z A-Z
it's "quoted" $HOME \\n
EOF
false || echo "second"; (exit 4) || echo "code $?"`);
  assert.equal(run.stdout, `IT'S "QUOTED" $HOME \\N\nsecond\ncode 4\n`);
});

test('the total time of a command is bounded, and the process killed', async (t) => {
  const box = await sandbox(t);
  const started = Date.now();
  await fails(box.commands.run('sleep 31.7', { timeoutMs: 1_000 }), 'TimeoutError', /timeoutMs/);
  assert.ok(Date.now() - started < 4_000, 'timeout came late');
  await eventually(async () => {
    const left = await box.commands.run("pgrep -f 'sleep 31[.]7' || true");
    return left.stdout === '';
  }, { within: 3_000, what: 'end of the command' });
  assert.equal((await box.commands.run('echo alive')).stdout, 'alive\n');
});

test('a timeout of zero means none', async (t) => {
  const box = await sandbox(t);
  assert.equal((await box.commands.run('sleep 0.5; echo done', { timeoutMs: 0 })).stdout, 'done\n');
});

test('output arrives while the command runs', async (t) => {
  const box = await sandbox(t);
  const out = new Recorder();
  const err = new Recorder();
  const seen = [];
  const run = await box.commands.run('for i in 1 2 3; do echo out$i; echo err$i >&2; sleep 0.4; done', {
    onStdout: (s) => {
      seen.push(Date.now());
      out.push(s);
    },
    onStderr: err.push,
  });
  const ended = Date.now();
  assert.equal(out.items.join(''), 'out1\nout2\nout3\n');
  assert.equal(err.items.join(''), 'err1\nerr2\nerr3\n');
  assert.equal(run.stdout, 'out1\nout2\nout3\n');
  assert.equal(run.stderr, 'err1\nerr2\nerr3\n');
  assert.ok(ended - seen[0] > 800, `first output came ${ended - seen[0]} ms before the end`);
});

test('a slow reader gets everything', async (t) => {
  const box = await sandbox(t);
  let bytes = 0;
  const run = await box.commands.run('head -c 2000000 /dev/zero | tr "\\0" x', {
    onStdout: async (s) => {
      bytes += s.length;
      await delay(2);
    },
  });
  assert.equal(bytes, 2_000_000);
  assert.equal(run.stdout.length, 2_000_000);
});

test('large output is complete and in order', async (t) => {
  const box = await sandbox(t);
  const run = await box.commands.run('seq 1 500000; head -c 1000000 /dev/zero | tr "\\0" e >&2');
  let want = '';
  for (let i = 1; i <= 500_000; i++) want += `${i}\n`;
  assert.equal(run.stdout.length, want.length);
  assert.ok(run.stdout === want, 'stdout differs');
  assert.ok(run.stderr === 'e'.repeat(1_000_000), 'stderr differs');
});

test('one very long line', async (t) => {
  const box = await sandbox(t);
  const run = await box.commands.run(`python3 -c "print('ab' * 500000, end='')"`);
  assert.ok(run.stdout === 'ab'.repeat(500_000));
});

test('a character split over two writes', async (t) => {
  const box = await sandbox(t);
  const chunks = [];
  const run = await box.commands.run(
    `printf 'a\\xe2'; sleep 0.3; printf '\\x82'; sleep 0.3; printf '\\xacb'`,
    { onStdout: (s) => void chunks.push(s) },
  );
  assert.equal(run.stdout, 'a€b');
  assert.equal(chunks.join(''), 'a€b');
  const emoji = await box.commands.run(`python3 -c "print('😀' * 30000, end='')"`);
  assert.ok(emoji.stdout === '😀'.repeat(30_000));
});

test('bytes that are no UTF-8 become replacement characters', async (t) => {
  const box = await sandbox(t);
  assert.equal((await box.commands.run(`printf 'x\\xffy'`)).stdout, 'x\uFFFDy');
  assert.equal((await box.commands.run(`printf 'x\\xe2\\x82'`)).stdout, 'x\uFFFD');
});

test('a grandchild that keeps the output open is waited for', async (t) => {
  const box = await sandbox(t);
  const run = await box.commands.run('(sleep 0.8; echo late) & echo now');
  assert.equal(run.stdout, 'now\nlate\n');
});

test('a detached grandchild is not waited for', async (t) => {
  const box = await sandbox(t);
  const started = Date.now();
  const run = await box.commands.run('nohup sleep 60 >/dev/null 2>&1 & echo $!');
  assert.ok(Date.now() - started < 5_000);
  await box.commands.run(`kill -0 ${run.stdout.trim()}`);
});

test('many commands at once', async (t) => {
  const box = await sandbox(t);
  const runs = await Promise.all(
    Array.from({ length: 20 }, (_, i) => box.commands.run(`sleep 0.2; echo ${i}; echo e${i} >&2`)),
  );
  assert.deepEqual(runs.map((r) => r.stdout), Array.from({ length: 20 }, (_, i) => `${i}\n`));
  assert.deepEqual(runs.map((r) => r.stderr), Array.from({ length: 20 }, (_, i) => `e${i}\n`));
});

test('the agent answers while the workload eats every CPU', async (t) => {
  const box = await sandbox(t);
  await box.commands.run('for i in $(seq 8); do nohup sh -c "while :; do :; done" >/dev/null 2>&1 & done');
  const started = Date.now();
  assert.equal((await box.commands.run('echo ok', { timeoutMs: 15_000 })).stdout, 'ok\n');
  await box.files.write('probe', 'x');
  assert.equal(await box.files.read('probe'), 'x');
  assert.ok(Date.now() - started < 8_000, `took ${Date.now() - started} ms`);
});

test('languages of the base template', async (t) => {
  const box = await sandbox(t);
  assert.equal((await box.commands.run(`python3 -c 'print(6*7)'`)).stdout, '42\n');
  assert.equal((await box.commands.run(`node -e 'console.log(6*7)'`)).stdout, '42\n');
  for (const tool of ['bash', 'curl', 'git', 'pip', 'npm', 'ss', 'pgrep', 'tput', 'sudo', 'python']) {
    await box.commands.run(`command -v ${tool}`);
  }
});
