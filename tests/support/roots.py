"""Root file systems over this host's own, with the program in ``/opt/checkout``.

What is changed in one is in memory, and gone with the mount namespace that it is in.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"

# For a shell in a mount namespace of its own; afterwards it stands in the new root.
# The program is this checkout's, with the packages of this environment.
ENTER = """
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755 root "$ROOT"
mkdir "$ROOT/upper" "$ROOT/work" "$ROOT/root"
mount -t overlay root "$ROOT/root" \
    -o "lowerdir=/,upperdir=$ROOT/upper,workdir=$ROOT/work"
cd "$ROOT/root"

# Whatever happens there, nothing here is written or removed.
show() {
    mkdir -p "$2"
    mount --bind "$1" "$2"
    mount -o remount,bind,ro "$2"
}
rm -rf opt/ddump opt/checkout
show "$PREFIX" opt/python
show "$PACKAGES" opt/checkout/packages
for each in common worker; do
    show "$CHECKOUT/$each/src" "opt/checkout/src/$each"
done
mkdir -p "opt/checkout/lib/$PYTHON/site-packages" opt/checkout/bin
printf '%s\n' /opt/checkout/packages /opt/checkout/src/common /opt/checkout/src/worker \
    >"opt/checkout/lib/$PYTHON/site-packages/ddump.pth"
echo 'home = /opt/python/bin' >opt/checkout/pyvenv.cfg
ln -s "/opt/python/bin/$PYTHON" opt/checkout/bin/python
printf '%s\n' '#!/opt/checkout/bin/python' 'from ddump_worker.cli import main' 'main()' \
    >opt/checkout/bin/ddump-worker
chmod 755 opt/checkout/bin/ddump-worker
echo /opt/python/lib >etc/ld.so.conf.d/python.conf
ldconfig -r .

mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty; do
    : >"dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/pts dev/shm
ln -s /proc/self/fd dev/fd
ln -s pts/ptmx dev/ptmx
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
for folder in dev/shm run; do
    mount -t tmpfs -o mode=755 tmpfs "$folder"
done
chmod 1777 dev/shm
mount -t tmpfs -o noexec tmpfs tmp
"""


def environment(root: Path, **others: str) -> dict[str, str]:
    """Return what ``ENTER`` needs; ``root`` is an empty folder for its mounts."""
    return {
        "CHECKOUT": str(CHECKOUT),
        "PACKAGES": sysconfig.get_path("purelib"),
        "PATH": os.environ["PATH"],
        "PREFIX": sys.base_prefix,
        "PYTHON": _PYTHON,
        "ROOT": str(root),
        **others,
    }
