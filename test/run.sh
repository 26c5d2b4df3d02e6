#!/usr/bin/env bash
# Lint and format, then every compiled test under dist/test. The last line is `N passed, N failed`; the exit code is
# non-zero when anything failed, when the linter complained, or when no test ran. Arguments: compiled test files to run
# instead of all (`bash test/run.sh dist/test/unit/address.test.js`); before them `--setup`, to run setup.sh first, whose
# failure (a source that does not compile) is a failed run with the same last line.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

if [ "${1-}" = --setup ]; then
  shift
  if ! bash setup.sh --tests; then
    echo "0 passed, 1 failed"
    exit 1
  fi
fi

# Not through npx, which leaves the remains of its spinner in front of the last line on a terminal.
PATH=$PWD/node_modules/.bin:$PATH

passed=0 failed=0
colors=$([ -t 1 ] && echo force || echo off)
if biome ci --colors="$colors" --error-on-warnings .; then passed=1; else failed=1; fi

if [ $# -gt 0 ]; then files=("$@"); else mapfile -t files < <(find dist/test -name '*.test.js' 2>/dev/null | sort); fi
if [ ${#files[@]} -eq 0 ]; then
  echo "no compiled tests under dist/test" >&2
  echo "0 passed, 1 failed"
  exit 1
fi

# No terminal control characters in a log; two jobs, since this is measured on two cores.
reporter=terse
[ -t 1 ] || reporter=tap
tap_log=$(mktemp)
# A test takes down what it made; one that is interrupted (Ctrl-C) or crashes cannot. Its namespaces and labs end with its
# process id, which tap notes when the process ends: only those of this run's processes, and of none that still lives.
# The gateway's rig lifts the machine's limit of ICMP errors for prohibited routes.
error_cost=$(cat /proc/sys/net/ipv4/route/error_cost)
sweep() {
  trap '' INT TERM
  rm -f "$tap_log"
  echo "$error_cost" >/proc/sys/net/ipv4/route/error_cost
  local pid name
  for pid in $(sed -n 's/^  "pid": \([0-9]*\),$/\1/p' .tap/processinfo/*.json 2>/dev/null | sort -u); do
    [ ! -e "/proc/$pid" ] || continue
    for name in "e$pid" "t$pid" "u$pid" "x$pid"; do
      [ ! -d "/run/sluice/labs/$name" ] || bin/sluice lab down --name "$name" >&2
    done
    for name in $(ip netns list | sed -nE "s/^(t-[a-z0-9-]*-$pid(-[0-9]+)?)( .*)?$/\1/p"); do
      ip netns pids "$name" | xargs -r kill -KILL 2>/dev/null
      ip netns del "$name"
    done
  done
}
trap sweep EXIT
# Runs test files, JOBS at once, and adds to `passed` and `failed`.
run_tap() {
  local jobs=$1 code summary pass fail
  shift
  [ $# -gt 0 ] || return 0
  if [ "$reporter" = terse ]; then
    tap --disable-coverage --jobs="$jobs" --timeout=600 --reporter=terse --output-file="$tap_log" "$@"
    code=$?
  else
    # Passing assertions are noise in a log: only top-level results, failures with their diagnostics, and the summary.
    tap --disable-coverage --jobs="$jobs" --timeout=600 --reporter=tap "$@" |
      tee "$tap_log" | grep -v -E '^ +(ok |# Subtest|1\.\.|# time=)|^ *$'
    code=${PIPESTATUS[0]}
  fi
  # tap's closing comment: `# { total: 6, pass: 4, fail: 2, skip: 1, todo: 1 }`
  summary=$(grep -E '^# \{ total: ' "$tap_log" | tail -n 1)
  count() { sed -n "s/.*[ {]$1: \([0-9]*\).*/\1/p" <<<"$summary"; }
  pass=$(count pass) fail=$(count fail)
  passed=$((passed + ${pass:-0}))
  failed=$((failed + ${fail:-0}))
  # A file that crashed or timed out, an empty run, a skipped test (there are to be none): never a success.
  if [ "${pass:-0}" -eq 0 ] || { [ "$code" -ne 0 ] && [ "${fail:-0}" -eq 0 ]; }; then failed=$((failed + 1)); fi
  if [ -n "$(count skip)$(count todo)" ]; then
    echo "skipped or todo tests: $summary" >&2
    failed=$((failed + 1))
  fi
}
# What measures times (a pod's release within 300 ms), or has a whole lab or cluster, has the machine to itself.
together=() alone=()
for file in "${files[@]}"; do
  case $file in
    */netns/e2e.test.js | */netns/lab.test.js | */netns/race.test.js | */netns/clients.test.js) alone+=("$file") ;;
    */netns/owners.test.js | */netns/vrrp.test.js | */netns/failover.test.js | */api/lab.test.js) alone+=("$file") ;;
    *) together+=("$file") ;;
  esac
done
run_tap 2 "${together[@]}"
run_tap 1 "${alone[@]}"
trap - EXIT
sweep
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
