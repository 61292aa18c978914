#!/usr/bin/env bash
# Everything that must hold before a change lands: installs what is missing, then checks and tests.
set -euo pipefail
cd "$(dirname "$0")/.."

ci/install.sh
ci/format.sh
ci/clippy.sh
ci/docs.sh
ci/features.sh
ci/without-libfabric.sh
ci/fabric-2.sh
ci/verbs-vm.sh
ci/test.sh
