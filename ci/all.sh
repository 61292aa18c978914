#!/usr/bin/env bash
# Everything that must hold before a change lands: installs what is missing, then checks and tests.
set -euo pipefail
cd "$(dirname "$0")/.."

# A build that is run once needs neither; together they were more than half of 10 GB.
export CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_DEBUG=line-tables-only

ci/install.sh
ci/format.sh
ci/clippy.sh
ci/docs.sh
ci/features.sh
ci/without-libfabric.sh
ci/fabric-2.sh
ci/verbs-vm.sh
ci/instructions.sh
ci/test.sh
