#!/usr/bin/env bash
# The wheel on aarch64, emulated: Debian 13's arm64 Python under qemu-user and proot (which is also
# what Termux's proot-distro uses), the wheel with its aarch64 dependencies from PyPI, hrm-tiny's
# golden vectors. Correctness only: emulation is about two hundred times slower than a board.
#
# Usage, on any x86-64 machine with apt and debian-archive-keyring, no root needed, in an
# environment with hrm-edge[export]:
#     benchmarks/aarch64_smoke.sh WORKDIR [VECTORS] | tee benchmarks/results/aarch64.md
# WORKDIR keeps the downloads (about 300 MB); VECTORS limits the golden vectors (default: all).
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
work=$(mkdir -p "${1:?usage: $0 WORKDIR [VECTORS]}" && cd "$1" && pwd)
vectors=${2:-0}
suite=trixie

# A package manager of its own for architecture $1, so that the system's stays as it is.
download() {
    local architecture=$1 apt=$work/apt-$1
    shift
    mkdir -p "$apt"/etc/apt/{apt.conf.d,preferences.d,trusted.gpg.d} \
        "$apt"/var/{lib/apt/lists/partial,lib/dpkg,cache/apt/archives/partial}
    touch "$apt/var/lib/dpkg/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
        "http://deb.debian.org/debian $suite main" >"$apt/etc/apt/sources.list"
    cat >"$apt/apt.conf" <<EOF
Dir "$apt";
Dir::State::status "$apt/var/lib/dpkg/status";
APT::Architecture "$architecture";
APT::Architectures { "$architecture"; };
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Languages "none";
EOF
    APT_CONFIG=$apt/apt.conf apt-get -qq update
    APT_CONFIG=$apt/apt.conf apt-get -qq -y --download-only install "$@" >/dev/null
}

# Unpack what was downloaded for architecture $1 as the root directory $2.
unpack() {
    mkdir -p "$2"/{usr/{lib,lib64,bin,sbin},tmp,proc,sys,dev,root}
    for directory in lib lib64 bin sbin; do ln -sfn "usr/$directory" "$2/$directory"; done
    for package in "$work/apt-$1"/var/cache/apt/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar -x -C "$2" --keep-directory-symlink
    done
}

board=$work/board tools=$work/tools io=$work/io
if [ ! -e "$work/unpacked" ]; then
    download arm64 python3.13-venv libstdc++6 ca-certificates
    download amd64 qemu-user proot
    unpack arm64 "$board"
    unpack amd64 "$tools"
    mkdir -p "$board/etc/ssl/certs" # what the package's script would make
    cat "$board"/usr/share/ca-certificates/mozilla/*.crt >"$board/etc/ssl/certs/ca-certificates.crt"
    touch "$work/unpacked"
fi

# Run a command on the board. What it reads is bound at the path it has here, because this proot (5.1)
# does not translate the paths of faccessat2, which os.access is there.
emulated() {
    env -i QEMU_CPU="${cpu:-max}" HOME=/root PATH=/usr/bin:/bin LANG=C.UTF-8 \
        "$tools/lib64/ld-linux-x86-64.so.2" --library-path "$tools/usr/lib/x86_64-linux-gnu" \
        "$tools/usr/bin/proot" -q "$tools/usr/bin/qemu-aarch64" \
        -r "$board" -b /proc -b /sys -b /dev -b "$io" -w /root "$@"
}

rm -rf "$io" "$board/opt/hrm-edge"
mkdir -p "$io/wheels"
pip=(python -m pip --disable-pip-version-check -q)
"${pip[@]}" wheel --no-deps -w "$io/wheels" "$repository"
platforms=()
for tag in 2_17 2_27 2_28 2_34; do platforms+=(--platform "manylinux_${tag}_aarch64"); done
"${pip[@]}" download --only-binary=:all: --python-version 3.13 "${platforms[@]}" \
    --platform manylinux2014_aarch64 --find-links "$io/wheels" -d "$io/wheels" 'hrm-edge[serve]'
tiny=$repository/hrm_edge/data/hrm_tiny
for bits in 32 8; do
    hrm-edge export "$tiny" -o "$io/kv$bits" --kv-bits "$bits" >/dev/null 2>&1
done
cp "$repository/android_demo/golden.json" "$repository/benchmarks/aarch64_check.py" "$io"

emulated python3.13 -m venv /opt/hrm-edge
emulated /opt/hrm-edge/bin/pip --disable-pip-version-check -q install --no-compile \
    --no-index --find-links "$io/wheels" 'hrm-edge[serve]'
# The kernels differ with the processor: those of a Raspberry Pi 4 and 5, and all that QEMU knows.
status=0
for cpu in cortex-a72 cortex-a76 max; do
    printf '\n## QEMU_CPU=%s\n\n' "$cpu"
    emulated /opt/hrm-edge/bin/hrm-edge generate "$io/kv8" 'Spell this word backward: PURAQUE'
    emulated /opt/hrm-edge/bin/python "$io/aarch64_check.py" "$io" "$vectors" || status=1
done
exit "$status"
