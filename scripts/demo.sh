#!/usr/bin/env bash
# From nothing to code running in sandboxes. Leaves the build, the prepared data
# directory (.cache/demo) and nothing else behind: no process, no sandbox.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.cache/go/bin:$PATH"

# Escapes are for terminals whose owner wants them (no-color.org).
strong='' faint='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then strong=$'\033[1m' faint=$'\033[2m' plain=$'\033[0m'; fi
bold() { printf '\n%s%s%s\n' "$strong" "$*" "$plain"; }
now() { date +%s%3N; }

bold "1. What this machine needs"
scripts/deps.sh
if [ "$(id -u)" != 0 ]; then
	echo "not root: the rootless mode runs, but cannot enforce memory and CPU limits (docs/operating.md)"
	export CAISSON_LIMITS_UNENFORCED=memory,cpu
fi

bold "2. Build bin/caisson (the first build compiles gVisor: some minutes)"
make --no-print-directory build

bold "3. Prepare the base template"
data=.cache/demo
bin/caisson init --data "$data"

bold "4. Start the server"
port=${CAISSON_DEMO_PORT:-3000}
if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then port=3939; fi
log=$data/demo-server.log
bin/caisson serve --data "$data" --listen "127.0.0.1:$port" --destroy-on-exit >"$log" 2>&1 &
server=$!
cleanup() {
	kill "$server" 2>/dev/null || true
	wait "$server" 2>/dev/null || true
}
trap cleanup EXIT
for _ in $(seq 300); do
	if curl -fsS -o /dev/null "http://127.0.0.1:$port/health" 2>/dev/null; then break; fi
	kill -0 "$server" 2>/dev/null || { cat "$log"; exit 1; }
	sleep 0.1
done
curl -fsS -o /dev/null "http://127.0.0.1:$port/health" || { cat "$log"; exit 1; }
export CAISSON_API_URL="http://127.0.0.1:$port" CAISSON_API_KEY
CAISSON_API_KEY=$(cat "$data/api-key")
echo "listening on $CAISSON_API_URL"

timed() { # timed LABEL COMMAND...
	local label=$1 start
	shift
	start=$(now)
	"$@"
	printf '   %s%s: %d ms from nothing to gone%s\n' "$faint" "$label" "$(($(now) - start))" "$plain"
}

bold "5. Three one-shot sandboxes; output streams as it is written"
timed Python bin/caisson run -- python3 -uc '
import platform, time
print("hello from Python", platform.python_version(), "on", platform.release())
for i in range(3):
    print("  step", i + 1); time.sleep(0.3)'
timed JavaScript bin/caisson run -- node -e '
console.log("hello from Node", process.version);
let i = 0; const t = setInterval(() => { console.log("  tick", ++i); if (i == 3) clearInterval(t) }, 300)'
timed Bash bin/caisson run -- bash -c 'echo "hello from Bash $BASH_VERSION"; for i in 1 2 3; do echo "  line $i"; sleep 0.3; done'

bold "6. The network is closed unless you open it"
bin/caisson run -- curl -sS -m 5 https://example.com/ || echo "   (curl failed with exit $?, as it should)"

bold "7. One sandbox kept for several steps"
id=$(bin/caisson sandbox create demo --ttl 5)
bin/caisson sandbox run "$id" -c 'x = 6 * 7; open("/home/user/answer", "w").write(str(x)); print("wrote", x)'
start=$(now)
bin/caisson sandbox exec "$id" -- cat /home/user/answer
printf '\n   %sone exec through the CLI: %d ms%s\n' "$faint" "$(($(now) - start))" "$plain"
bin/caisson sandbox list
bin/caisson sandbox stop "$id"

bold "8. For programs on the E2B SDK"
cat <<TXT
Start your own server:   bin/caisson serve --data $data
Then set, in the program's environment:

  export E2B_API_URL=http://127.0.0.1:3000
  export E2B_SANDBOX_URL=http://127.0.0.1:3000
  export E2B_API_KEY=\$(cat $data/api-key)

Cleaned up: the demo's sandboxes and server are gone. Kept for next time: bin/caisson and $data.
TXT
