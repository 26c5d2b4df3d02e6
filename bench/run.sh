#!/usr/bin/env bash
# `npm run bench`: makes the tree ready (setup.sh), installs who is compared with, and measures. Arguments: of bench/run.ts.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
bash setup.sh
bash bench/peers/setup.sh
exec node --enable-source-maps dist/bench/run.js "$@"
