#!/usr/bin/env bash
# Installs with apt-get what the virtual machine is made of.
set -euo pipefail
missing=()
for package in qemu-system-x86 busybox-static kmod cpio iproute2 ibverbs-providers libfabric1 binutils; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed' || missing+=("$package")
done
if ((${#missing[@]})); then
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    $sudo apt-get update -qq
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
fi
