#!/usr/bin/env bash
# Instructions per message of the paths over TCP, which hardly differ from run to run, whatever else the machine does:
# a path that became longer is noticed without trusting clocks. Fails where one takes over a tenth more than
# ci/instructions.txt says, or over a fifth where a thread sends: it takes turns with the loop, which changes the count by a
# twentieth. After a change that is worth it, `ci/instructions.sh --write` notes the new counts.
set -euo pipefail
cd "$(dirname "$0")/.."

list=ci/instructions.txt
cargo build --release -p netio3-bench
program=$(realpath "${CARGO_TARGET_DIR:-target}/release/netio3-bench")
scratch=$(mktemp -d)
# The C library's copy for processors with AVX takes up to 27 instructions more or less at 1 KiB from run to run, and copies
# long stretches by `rep movsb`, of which each byte counts as one: here it takes the one for any processor, which does neither.
export GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX_Fast_Unaligned_Load,-ERMS,-SSSE3
trap 'rm -rf "$scratch"; jobs -p | xargs -r kill 2> /dev/null || true' EXIT

# run SIDE PASSIVE ACTIVE OPTIONS...: instructions of one side of a run.
run() {
    local side=$1 passive=$2 active=$3 peer address
    shift 3
    # as ROLE COMMAND...: under valgrind if the role is the side.
    as() {
        local role=$1 counting=()
        shift
        [ "$role" != "$side" ] || counting=(valgrind --tool=callgrind --callgrind-out-file=/dev/null --log-file="$scratch/log")
        ${counting[@]+"${counting[@]}"} "$program" "$@"
    }
    rm -f "$scratch/address"
    mkfifo "$scratch/address"
    as passive "$passive" --listen 127.0.0.1:0 > "$scratch/address" &
    peer=$!
    exec 3< "$scratch/address"
    read -r _ _ address <&3
    as active "$active" --connect "$address" "$@" > /dev/null
    cat <&3 > /dev/null
    exec 3<&-
    wait "$peer"
    sed -n 's/.*Collected : //p' "$scratch/log"
}

# measure SIDE PASSIVE ACTIVE OPTION COUNT OPTIONS...: instructions per message, what comes once per run left out.
measure() {
    local side=$1 passive=$2 active=$3 option=$4 count=$5 few many
    shift 5
    few=$(run "$side" "$passive" "$active" "$option" "$count" "$@")
    many=$(run "$side" "$passive" "$active" "$option" $((5 * count)) "$@")
    echo $(((many - few) / (4 * count)))
}

# check FILE: whether its paths are in the list and take no more than they may.
check() {
    awk 'NR == FNR { known[$1] = $2; next }
        !($1 in known) { print $1 " is not in the list: run ci/instructions.sh --write"; bad = 1; next }
        { most = known[$1] * ($1 ~ /thread/ ? 1.2 : 1.1) }
        $2 > most { print $1 " takes " $2 " instructions, more than " most " (" known[$1] " are noted)"; bad = 1 }
        $2 < known[$1] * 0.8 { print $1 " takes " $2 " instructions instead of " known[$1] ": note that with --write" }
        END { exit bad }' "$list" "$1"
}

# A side that waited for the other one, which the machine kept from running, has woken up more often: that only adds, and happens
# to one run, not to three.
found=$scratch/found
note() {
    local name=$1 least= count try
    shift
    for try in 1 2 3; do
        count=$(measure "$@")
        if [ -z "$least" ] || [ "$count" -lt "$least" ]; then
            least=$count
        fi
        echo "$name $least" > "$scratch/one"
        check "$scratch/one" > /dev/null && break
        echo "$name: $count in try $try" >&2
    done
    tee -a "$found" < "$scratch/one"
}
echo "instructions per message"
for mode in copy zero-copy; do
    note "send-$mode-64" active recv send --messages 50000 --size 64 --mode "$mode"
    note "send-$mode-1024" active recv send --messages 20000 --size 1024 --mode "$mode"
done
note send-batch-64 active recv send --messages 50000 --size 64 --mode copy --batch 64
note send-buffered-1024 active recv send --messages 20000 --size 1024 --mode buffered
# The loop's included.
note send-thread-64 active recv send --messages 50000 --size 64 --mode copy --threads
note send-thread-1024 active recv send --messages 20000 --size 1024 --mode copy --threads
note send-thread-batch-64 active recv send --messages 50000 --size 64 --mode copy --threads --batch 64
note send-zero-copy-65536 active recv send --messages 1000 --size 65536 --mode zero-copy
note recv-64 passive recv send --messages 50000 --size 64
note recv-1024 passive recv send --messages 20000 --size 1024
note ping-64 active echo ping --count 2000 --size 64

if [ "${1:-}" = --write ]; then
    cp "$found" "$list"
    exit
fi
check "$found"
