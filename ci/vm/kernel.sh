#!/usr/bin/env bash
# Prints the name of the package of Debian's stock kernel.
set -euo pipefail
find_it() { apt-cache depends linux-image-amd64 2>/dev/null | awk '/Depends: linux-image-/ && !n++ {print $2}'; }
name=$(find_it)
if [ -z "$name" ]; then
    apt-get update -qq
    name=$(find_it)
fi
[ -n "$name" ] || { echo "apt knows no linux-image-amd64" >&2; exit 1; }
echo "$name"
