#!/usr/bin/env bash
# Runs a command in a throw-away virtual machine that has a verbs device, on any x86-64 machine: nothing but
# software emulation, Debian's stock kernel, and soft-RoCE on a network interface that leads nowhere.
#
#   ci/vm/run.sh [options] -- COMMAND...
#
#   -p PATH   puts this file or directory into the machine as /payload/NAME, with the shared libraries it needs
#   -k FILE   a siw.ko for the same kernel (ci/vm/siw.sh builds it): soft-iWARP as well
#   -n ADDR   soft-RoCE on a real interface with this address instead; needs -l
#   -l LINK   what that interface is joined to: an argument of `-netdev socket`, as udp=HOST:PORT,localaddr=HOST:PORT
#   -m MIB    memory (2048)
#   -t SEC    time limit (300)
#   -v        the kernel's log goes to standard error
#
# COMMAND is run by /bin/sh in /payload, with RXE_ADDR and, with -k, SIW_ADDR: the devices' addresses. Its output
# is the standard output, its exit status the exit status; 124 after the time limit, 125 when there was no boot.
# The kernel and the base system are kept in $NETIO3_VM_CACHE (target/verbs-vm).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${NETIO3_VM_CACHE:-$here/../../target/verbs-vm}
memory=2048 limit=300 verbose='' siw='' address='' link=''
payload=()
usage() { sed -n '2,/^set/s/^#\( \|$\)//p' "$0" >&2; exit 2; }
while getopts p:k:n:l:m:t:v option; do
    case $option in
        p) payload+=("$OPTARG") ;;
        k) siw=$OPTARG ;;
        n) address=$OPTARG ;;
        l) link=$OPTARG ;;
        m) memory=$OPTARG ;;
        t) limit=$OPTARG ;;
        v) verbose=1 ;;
        *) usage ;;
    esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || usage
[ "$(uname -m)" = x86_64 ] || { echo "the virtual machine is for x86-64 only" >&2; exit 125; }
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)

# The cloud kernel has no soft-RoCE, the stock one does.
package=$("$here/kernel.sh")
version=${package#linux-image-}
kernel=$cache/$version
if [ ! -e "$kernel/complete" ]; then
    rm -rf "$kernel"
    mkdir -p "$kernel/package"
    (
        cd "$kernel/package"
        apt-get download -qq "$package" 2>/dev/null || { apt-get update -qq; apt-get download -qq "$package"; }
    )
    dpkg-deb --fsys-tarfile "$kernel"/package/*.deb | tar -x -C "$kernel" --wildcards './boot/vmlinuz-*' './lib/modules'
    rm -rf "$kernel/package"
    depmod -b "$kernel" "$version"
    touch "$kernel/complete"
fi

# Prints the shared libraries that programs or libraries load.
libraries() {
    local file
    for file in "$@"; do
        ldd "$file" 2>/dev/null | awk '/=> \//{print $3} $1 ~ /^\//{print $1}' || true
    done | sort -u
}
copy() { # copy ROOT FILE...: to the same place under ROOT, where /lib is /usr/lib as in Debian
    local root=$1 file place
    shift
    for file in "$@"; do
        place=$root$(realpath "$(dirname "$file")")
        mkdir -p "$place"
        [ -e "$place/${file##*/}" ] || cp -L "$file" "$place"
    done
}

base=$cache/base-$version.cpio
if [ ! -e "$base" ] || [ "$0" -nt "$base" ] || [ "$here/init" -nt "$base" ]; then
    root=$(mktemp -d "$cache/root.XXXXXX")
    mkdir -p "$root"/{bin,sbin,etc/libibverbs.d,proc,sys,dev,run,tmp,payload,modules,root,usr/lib,usr/lib64}
    ln -s usr/lib usr/lib64 "$root/"
    cp "$(command -v busybox)" "$root/bin/busybox"
    libfabric=$(PATH=$PATH:/sbin ldconfig -p | awk '/libfabric\.so\.1 / && !n++ {print $NF}')
    libs=$(dirname "$(PATH=$PATH:/sbin ldconfig -p | awk '/libibverbs\.so\.1 / && !n++ {print $NF}')")
    programs=("$(command -v ip)" "$(command -v rdma)" "$libfabric" "$libs"/libibverbs/lib{rxe,siw}-rdmav*.so)
    mapfile -t needed < <(libraries "${programs[@]}")
    copy "$root" "${programs[@]}" "${needed[@]}"
    cp /etc/libibverbs.d/{rxe,siw}.driver "$root/etc/libibverbs.d/"
    printf '127.0.0.1 localhost vm\n' > "$root/etc/hosts"
    printf 'root:x:0:0::/root:/bin/sh\n' > "$root/etc/passwd"
    printf 'hosts: files\npasswd: files\ngroup: files\n' > "$root/etc/nsswitch.conf"
    # rdma_cm needs configfs; soft-RoCE asks for crc32 and soft-iWARP for crc32c only when they start.
    for module in configfs crc32_generic crc32c_generic libcrc32c dummy virtio_pci virtio_net \
        ib_core ib_uverbs iw_cm ib_cm rdma_cm rdma_ucm rdma_rxe; do
        PATH=$PATH:/sbin modprobe -d "$kernel" -S "$version" --show-depends "$module"
    done | awk '$1 == "insmod" && !seen[$2]++ {print $2}' | while read -r file; do
        cp "$file" "$root/modules/"
        basename "$file" >> "$root/modules/list"
    done
    cp "$here/init" "$root/init"
    chmod +x "$root/init"
    (cd "$root" && find . | cpio -o -H newc --quiet) > "$base.new"
    mv "$base.new" "$base"
    rm -rf "$root"
fi

work=$(mktemp -d "$cache/run.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root/payload"
for path in ${payload[@]+"${payload[@]}"}; do
    cp -RL "$path" "$root/payload/"
done
[ -z "$siw" ] || cp "$siw" "$root/modules-siw.ko"
mapfile -t programs < <(find "$root/payload" -type f -exec sh -c 'head -c 4 "$1" | grep -q ELF' _ {} \; -print)
mapfile -t needed < <(libraries ${programs[@]+"${programs[@]}"} | grep -v "^$root" || true)
copy "$root" ${needed[@]+"${needed[@]}"}
printf '%s\n' "$*" > "$root/payload/.command"
(cd "$root" && find . | cpio -o -H newc --quiet) > "$work/payload.cpio"
# The kernel unpacks archives one behind the other.
cat "$base" "$work/payload.cpio" > "$work/initrd"
rm -rf "$root"

append="console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on nokaslr"
network=()
if [ -n "$address" ]; then
    append+=" netio3.address=$address"
    network=(-netdev "socket,id=link,$link" -device "virtio-net-pci,netdev=link,mac=52:54:00:00:00:$(printf %02x "${address##*.}")")
fi
status=0
timeout -k 5 "$limit" qemu-system-x86_64 -M q35 -accel tcg,thread=multi -cpu max -m "$memory" -smp 2 \
    -nodefaults -no-reboot -display none -monitor none ${network[@]+"${network[@]}"} \
    -serial "file:$work/console" -serial stdio -serial "file:$work/status" \
    -kernel "$kernel/boot/vmlinuz-$version" -initrd "$work/initrd" -append "$append" < /dev/null || status=$?
told=$(tr -d '\r' < "$work/status" 2>/dev/null || true)
[ -z "$verbose" ] || cat "$work/console" >&2
case $told in
    *EXIT*) exit "$(awk '$1 == "EXIT" {print $2}' <<< "$told")" ;;
    *UP*) [ "$status" = 124 ] && echo "the time limit of $limit s is over" >&2 || echo "the virtual machine died" >&2; exit 124 ;;
esac
[ -n "$verbose" ] || cat "$work/console" >&2 || true
echo "the virtual machine did not boot" >&2
exit 125
