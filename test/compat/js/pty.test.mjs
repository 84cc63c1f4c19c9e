// Terminals.
import assert from 'node:assert/strict';
import { Sandbox, Terminal, eventually, fails, sandbox, test } from './harness.mjs';

const bytes = (s) => new TextEncoder().encode(s);

async function shell(box, opts = {}) {
  const terminal = new Terminal();
  const handle = await box.pty.create({ cols: 80, rows: 24, onData: terminal.onData, ...opts });
  const type = (line) => box.pty.sendInput(handle.pid, bytes(line));
  return { terminal, handle, type };
}

test('a shell on a terminal', async (t) => {
  const box = await sandbox(t);
  const { terminal, handle, type } = await shell(box);
  assert.ok(handle.pid > 1);
  await type('echo answer=$((40+2)) tty=$(tty) term=$TERM lang=$LANG lc=$LC_ALL\n');
  await terminal.shows(/answer=42 tty=\/dev\/pts\/\d+ term=xterm-256color lang=C\.UTF-8 lc=C\.UTF-8/);
  await type('whoami; pwd\n');
  await terminal.shows(/[\r\n]user\r\n\/home\/user\r\n/);
  await type('exit\n');
  assert.equal((await handle.wait()).exitCode, 0);
});

test('size and resize', async (t) => {
  const box = await sandbox(t);
  const { terminal, handle, type } = await shell(box, { cols: 101, rows: 37 });
  await type('echo size=$(stty size | tr " " x) cols=$(tput cols)\n');
  await terminal.shows(/size=37x101 cols=101/);
  await box.pty.resize(handle.pid, { cols: 133, rows: 44 });
  await type('echo now=$(stty size | tr " " x) cols=$(tput cols)\n');
  await terminal.shows(/now=44x133 cols=133/);
});

test('options: user, directory, environment', async (t) => {
  const box = await sandbox(t, { envs: { FROM_CREATE: 'c' } });
  const { terminal, type } = await shell(box, { user: 'root', cwd: '/usr/lib', envs: { MINE: 'm', TERM: 'vt100' } });
  await type('echo "[$(whoami):$(pwd):$MINE:$TERM:$FROM_CREATE]"\n');
  await terminal.shows(/\[root:\/usr\/lib:m:vt100:c\]/);
});

test('control characters: interrupt and end of file', async (t) => {
  const box = await sandbox(t);
  const { terminal, handle, type } = await shell(box);
  await type('echo started; sleep 50; echo "code=$?"\n');
  await terminal.shows(/[\r\n]started\r\n/);
  // The interrupt is for sleep, so it has to be there.
  await eventually(async () => (await box.commands.run('pgrep -x sleep || true')).stdout !== '', { within: 10_000, what: 'sleep' });
  await type('\x03');
  await type('echo after=$((1+1))\n');
  await terminal.shows(/[\r\n]after=2\r\n[\s\S]*\$ /);
  // Not before the shell has given the terminal away.
  await type('echo ready=$((3+3)); cat\n');
  await terminal.shows(/ready=6/);
  await type('typed line\n');
  await terminal.shows(/typed line\r\ntyped line\r\n/);
  await type('\x04');
  await type('exit 5\n');
  const err = await fails(handle.wait(), 'CommandExitError');
  assert.equal(err.exitCode, 5);
});

test('unicode input and output', async (t) => {
  const box = await sandbox(t);
  const { terminal, type } = await shell(box);
  await type('echo "<grüße 文件 😀>"; echo "<grüße 文件 😀>" | wc -c\n');
  await terminal.shows(/<grüße 文件 😀>/);
  await terminal.shows(/>\r\n22\r\n/);
});

test('connect to a running terminal', async (t) => {
  const box = await sandbox(t);
  const { handle, type } = await shell(box);
  await type('MARK=kept\n');
  await handle.disconnect();
  const again = new Terminal();
  const elsewhere = await Sandbox.connect(box.sandboxId);
  const second = await elsewhere.pty.connect(handle.pid, { onData: again.onData });
  assert.equal(second.pid, handle.pid);
  await elsewhere.pty.sendInput(second.pid, bytes('echo mark=$MARK\n'));
  await again.shows(/mark=kept/);
  await elsewhere.pty.sendInput(second.pid, bytes('exit\n'));
  assert.equal((await second.wait()).exitCode, 0);
});

test('kill', async (t) => {
  const box = await sandbox(t);
  const { handle } = await shell(box);
  assert.equal(await box.pty.kill(handle.pid), true);
  await fails(handle.wait(), 'CommandExitError');
  assert.equal(await box.pty.kill(handle.pid), false);
  const other = await shell(box);
  assert.equal(await other.handle.kill(), true);
  await fails(other.handle.wait(), 'CommandExitError');
});

test('a lot of output', async (t) => {
  const box = await sandbox(t);
  const { terminal, type } = await shell(box);
  await type('stty -echo; seq 1 20000; echo end=$((5+5))\n');
  await terminal.shows(/end=10/, { within: 20_000 });
  assert.match(terminal.text, /\r\n19999\r\n20000\r\nend=10/);
});

test('what is no terminal', async (t) => {
  const box = await sandbox(t);
  const plain = await box.commands.run('sleep 20', { background: true, stdin: true });
  await fails(box.pty.sendInput(plain.pid, bytes('x')), 'SandboxError');
  await fails(box.pty.resize(plain.pid, { cols: 80, rows: 24 }), 'SandboxError');
  const { handle } = await shell(box);
  await fails(box.commands.sendStdin(handle.pid, 'x'), 'SandboxError');
  await fails(box.pty.sendInput(999_999, bytes('x')), 'NotFoundError');
  await fails(box.pty.resize(999_999, { cols: 80, rows: 24 }), 'NotFoundError');
  await fails(box.pty.connect(999_999, { onData: () => {} }), 'NotFoundError');
});

test('the total time of a terminal is bounded', async (t) => {
  const box = await sandbox(t);
  const { handle } = await shell(box, { timeoutMs: 1_000 });
  await fails(handle.wait(), 'TimeoutError');
});

test('a terminal when its sandbox is killed', async () => {
  const box = await Sandbox.create({ timeoutMs: 60_000 });
  const { handle, terminal, type } = await shell(box);
  await type('echo up=$((1+2))\n');
  await terminal.shows(/up=3/);
  const waiting = fails(handle.wait(), 'TimeoutError', /sandbox was killed or reached its end of life/);
  await box.kill();
  await waiting;
});
