#!/usr/bin/env bash
# Runs the conformance programs against the server that E2B_API_KEY,
# E2B_API_URL and E2B_SANDBOX_URL name.
#
#   run.sh [SUITE]... [-- PATTERN]
#
# A SUITE is js-new, js-old, python-new or python-old; js, python, new and old
# name two each; none means all four. PATTERN is given to `node --test` as a
# test name pattern and to pytest as -k. The exit code is 0 only if every suite
# passed. `run.sh --install` installs what the suites need and runs nothing.
set -euo pipefail
cd "$(dirname "$0")"

limit=${CAISSON_COMPAT_LIMIT:-300} # seconds for one suite
all=(js-new js-old python-new python-old)
suites=() pattern="" install_only=""

usage() {
	sed -n '2,10p' "$0" | sed 's/^# \{0,1\}//' >&2
	exit 2
}

while (($#)); do
	case $1 in
	js | python) suites+=("$1-new" "$1-old") ;;
	new | old) suites+=("js-$1" "python-$1") ;;
	js-new | js-old | python-new | python-old) suites+=("$1") ;;
	all) suites+=("${all[@]}") ;;
	--install) install_only=1 ;;
	--)
		pattern=${2-}
		shift
		;;
	*) usage ;;
	esac
	shift || break
done
((${#suites[@]})) || suites=("${all[@]}")

say() { printf 'compat: %s\n' "$*" >&2; }

# quietly shows the output of a command only when it fails.
quietly() {
	local log
	log=$(mktemp)
	if ! "$@" >"$log" 2>&1; then
		cat "$log" >&2
		rm -f "$log"
		return 1
	fi
	rm -f "$log"
}

install_js() {
	local want
	want=$(sha256sum js/package-lock.json | cut -d' ' -f1)
	[[ $(cat js/node_modules/.installed 2>/dev/null) == "$want" ]] && return
	say "installing the JavaScript SDKs"
	(cd js && quietly npm ci --no-audit --no-fund --ignore-scripts --omit=dev)
	echo "$want" >js/node_modules/.installed
}

install_python() {
	local version=$1 venv="python/.venv-$1" want
	want=$(sha256sum "python/requirements-$version.txt" | cut -d' ' -f1)
	[[ $(cat "$venv/.installed" 2>/dev/null) == "$want" ]] && return
	say "installing the Python SDK ($version)"
	rm -rf "$venv"
	quietly "${PYTHON:-python3}" -m venv "$venv"
	quietly "$venv/bin/pip" install --disable-pip-version-check --require-hashes -r "python/requirements-$version.txt"
	echo "$want" >"$venv/.installed"
}

install() {
	case $1 in
	js-*) install_js ;;
	python-*) install_python "${1#python-}" ;;
	esac
}

run() {
	local version=${1#*-}
	case $1 in
	js-*)
		# Older Node releases do not expand patterns themselves, so the shell does.
		(cd js && CAISSON_COMPAT_SDK=$version timeout --foreground -k 10 "$limit" node --test \
			--test-concurrency=3 --test-reporter=spec ${pattern:+--test-name-pattern="$pattern"} ./*.test.mjs)
		;;
	python-*)
		(cd python && PYTHONDONTWRITEBYTECODE=1 timeout --foreground -k 10 "$limit" ".venv-$version/bin/pytest" ${pattern:+-k "$pattern"})
		;;
	esac
}

for suite in "${suites[@]}"; do
	install "$suite" || { say "$suite could not be installed"; exit 1; }
done
[[ $install_only ]] && exit 0

for name in E2B_API_KEY E2B_API_URL E2B_SANDBOX_URL; do
	[[ ${!name-} ]] || { say "$name must be set"; exit 2; }
done

# A proxy of the environment has no business between the programs and a server
# on loopback.
export NO_PROXY=${NO_PROXY:+$NO_PROXY,}localhost,127.0.0.1 no_proxy=${no_proxy:+$no_proxy,}localhost,127.0.0.1

summary=() failed=0
for suite in "${suites[@]}"; do
	say "running $suite"
	log=$(mktemp)
	started=$SECONDS
	code=0
	run "$suite" >"$log" 2>&1 || code=$?
	took=$((SECONDS - started))
	case $suite in
	js-*) counts=$(sed -n 's/^ℹ \(tests\|pass\|fail\|skipped\) \([0-9]*\)$/\2 \1/p' "$log" | paste -sd, | sed 's/,/, /g') ;;
	python-*) counts=$(grep -E '[0-9]+ (passed|failed|error)' "$log" | tail -n 1 | tr -d '=' | sed 's/ in .*//; s/^ *//' || true) ;;
	esac
	if ((code == 0)); then
		summary+=("$(printf 'ok    %-10s %4ds  %s' "$suite" "$took" "$counts")")
	else
		failed=1
		((code == 124)) && counts="more than $limit s; $counts"
		summary+=("$(printf 'FAIL  %-10s %4ds  %s' "$suite" "$took" "$counts")")
		cat "$log"
	fi
	rm -f "$log"
done

printf '%s\n' "${summary[@]}"
exit "$failed"
