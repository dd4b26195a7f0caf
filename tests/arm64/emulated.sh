#!/usr/bin/env bash
# The agent's unit tests in an arm64 user space, emulated by qemu: make test-arm64
# Needs root (chroot, binfmt_misc), mmdebstrap, arch-test and qemu-user-static, and says so.
set -euo pipefail
cd "$(dirname "$0")/../.."

uv=${1:?usage: emulated.sh UV}
folder=$PWD/build/arm64
root=$folder/root
wheels=$folder/wheels

lacking() {
  echo "arm64 tests left out: $1" >&2
  [ -z "${SHOAL_REQUIRE_COMPONENTS:-}" ]
  exit
}
[ "$(id -u)" = 0 ] || lacking "they need root for chroot and binfmt_misc"
for command in mmdebstrap qemu-aarch64-static arch-test; do
  command -v $command >/dev/null || lacking "$command is missing: apt install mmdebstrap qemu-user-static arch-test"
done

# The kernel starts arm64 programs through qemu, which it opens once (flag F), so that it is found
# inside the chroot, too. Magic and mask are those of qemu's own binfmt configuration.
formats=/proc/sys/fs/binfmt_misc
[ -e $formats/register ] || mount -t binfmt_misc binfmt_misc $formats 2>/dev/null ||
  echo "arm64 tests left out: this kernel has no binfmt_misc" >&2
[ -e $formats/register ] || exit 0
if [ ! -e $formats/qemu-aarch64 ]; then
  magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
  mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
  echo ":qemu-aarch64:M::$magic:$mask:$(command -v qemu-aarch64-static):OCF" >$formats/register
fi

if [ ! -e "$root/.complete" ]; then
  rm -rf "$root"
  mkdir -p "$folder"
  if ! mmdebstrap --quiet --variant=apt --architectures=arm64 \
    --include=python3,python3-venv,ca-certificates bookworm "$root"; then
    echo "arm64 tests left out: the arm64 user space could not be made, as said above" >&2
    exit 0
  fi
  touch "$root/.complete"
fi

# Resolved and downloaded outside: the emulation is slow, and wheels are all that is allowed.
"$uv" pip compile pyproject.toml tests/arm64/requirements.in --extra cpu --quiet --no-header --no-annotate \
  --python-platform aarch64-manylinux_2_35 --python-version 3.11 --only-binary :all: -o "$folder/pins.txt"
if ! cmp -s "$folder/pins.txt" "$root/opt/pins.txt"; then
  rm -rf "$root/opt/shoal"
  mkdir -p "$root/opt/shoal/lib"
  "$uv" pip install --quiet --requirements "$folder/pins.txt" --target "$root/opt/shoal/lib" \
    --python-platform aarch64-manylinux_2_35 --python-version 3.11 --only-binary :all:
  cp "$folder/pins.txt" "$root/opt/pins.txt"
fi
rm -rf "$root/opt/src"
mkdir -p "$root/opt/src"
cp -r agent shared tests pyproject.toml CONTRIBUTING.md "$root/opt/src"

printf '%s\n' /opt/shoal/lib /opt/src/agent /opt/src/shared >"$root/usr/local/lib/python3.11/dist-packages/shoal.pth"

mountpoint -q "$root/proc" || mount -t proc proc "$root/proc"
# qemu itself writes to standard error when a program crashes, and limits no memory.
trial=tests/unit/shoal_agent/runtimes/test_trial.py
without="--deselect $trial::test_whatever_becomes_of_the_child_is_one_sentence"
without="$without --deselect $trial::test_of_endless_noise_only_the_end_is_kept"

trap 'umount "$root/proc"' EXIT
echo "agent and shared on $(chroot "$root" uname -m):"
chroot "$root" env -i PATH=/usr/bin:/bin HOME=/root LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 \
  bash -c 'cd /opt/src && python3 -m pytest -q -p no:cacheprovider --timeout 600 '"$without"' tests/unit/shoal_agent tests/unit/shoal_shared'
