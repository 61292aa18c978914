#!/usr/bin/env bash
# Builds siw.ko, soft-iWARP, for Debian's stock kernel, which comes without it: ci/vm/siw.sh OUTPUT
set -euo pipefail
output=$(realpath -m "$1")
package=$("$(dirname "$0")/kernel.sh")
version=${package#linux-image-}
series=$(cut -d. -f1,2 <<< "$version")
sudo=$([ "$(id -u)" = 0 ] || echo sudo)
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "linux-headers-$version" xz-utils make > /dev/null
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq "linux-source-$series" 2>/dev/null
source=linux-source-$series/drivers/infiniband/sw/siw
dpkg-deb --fsys-tarfile linux-source-*.deb | tar -xO "./usr/src/linux-source-$series.tar.xz" | tar -xJ "$source"
make -s -C "/lib/modules/$version/build" M="$work/$source" CONFIG_RDMA_SIW=m modules
strip -g "$source/siw.ko" -o "$output"
