#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run all tests with PYTEST. Up to three that fail are named and run once more with nothing beside
# them: what fails then has failed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
failed=.pytest_cache/v/cache/lastfailed

rm -f "$failed"
"$PYTEST" -n 2 --dist loadscope && exit
code=$?
count=$(grep -c '::' "$failed" 2>/dev/null || true)
if ((code != 1 || ${count:-0} < 1 || count > 3)); then
  exit "$code"
fi
echo "unsteady, or broken: these $count failed beside others and run once more, alone:"
grep -o '"tests/.*"' "$failed"
"$PYTEST" --last-failed --last-failed-no-failures none
