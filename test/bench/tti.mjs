// Time-to-interactive through the published JavaScript SDK: create and first
// command. Arguments: sequential, staggered or burst, and how many. Prints one
// JSON object with the times in milliseconds.
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'
import path from 'node:path'

const require = createRequire(path.join(process.env.CAISSON_BENCH_SDK, 'package.json'))
const { Sandbox } = await import(pathToFileURL(require.resolve('e2b').replace(/index\.js$/, 'index.mjs')).href)

const [mode, count] = [process.argv[2], Number(process.argv[3])]
const times = { Create: [], TTI: [], Errors: [] }
const alive = []

async function one() {
  const start = performance.now()
  try {
    const s = await Sandbox.create('base', { timeoutMs: 300_000 })
    const created = performance.now() - start
    alive.push(s)
    const { stdout } = await s.commands.run('echo hi')
    if (stdout !== 'hi\n') throw new Error(`printed ${JSON.stringify(stdout)}`)
    times.TTI.push(performance.now() - start)
    times.Create.push(created)
    return s
  } catch (err) {
    times.Errors.push(String(err))
  }
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
await Sandbox.list().nextItems() // the connection is open

if (mode === 'sequential') {
  for (let i = 0; i < count; i++) await (await one())?.kill()
} else {
  const all = []
  for (let i = 0; i < count; i++) {
    all.push(one())
    if (mode === 'staggered') await pause(200)
  }
  await Promise.all(all)
  await Promise.allSettled(alive.map((s) => s.kill()))
}
console.log(JSON.stringify(times))
