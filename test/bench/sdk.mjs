// Times the published JavaScript SDK; prints one JSON object.
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'
import path from 'node:path'

const root = process.env.CAISSON_BENCH_SDK
const require = createRequire(path.join(root, 'package.json'))
const { Sandbox } = await import(pathToFileURL(require.resolve('e2b').replace(/index\.js$/, 'index.mjs')).href)
const version = require('e2b/package.json').version

const sorted = (a) => [...a].sort((x, y) => x - y)
const quantile = (a, q) => sorted(a)[Math.min(a.length - 1, Math.floor(q * a.length))]

const sandbox = await Sandbox.create('base', { timeoutMs: 120_000 })
const exec = []
for (let i = 0; i < 210; i++) {
  const start = performance.now()
  await sandbox.commands.run('true')
  if (i >= 10) exec.push(performance.now() - start)
}
await sandbox.kill()

const tti = []
for (let i = 0; i < 20; i++) {
  const start = performance.now()
  const s = await Sandbox.create('base', { timeoutMs: 60_000 })
  await s.commands.run('echo hi')
  tti.push(performance.now() - start)
  await s.kill()
}
console.log(
  JSON.stringify({
    Version: version,
    ExecMin: quantile(exec, 0),
    ExecMedian: quantile(exec, 0.5),
    ExecP95: quantile(exec, 0.95),
    TTI: quantile(tti, 0.5),
  })
)
