#!/bin/sh
# Debian 12 packages, by what they are for. The only script of this project that installs anything on a machine.
#
#   sudo infra/debian.sh services       PostgreSQL, Redis, and Ceph's S3 gateway: what the tests marked `services` run against
#   sudo infra/debian.sh browser        Chromium, for tests of pages
#   sudo infra/debian.sh monitoring     Prometheus, promtool, Alertmanager
#   sudo infra/debian.sh containers     podman, buildah, runc: images without a daemon
#   sudo infra/debian.sh all
#   infra/debian.sh list                say what would be installed, and install nothing
#
# No daemon is left running: tests start their own, on ports of their own.
set -eu

packages_of() {
    case "$1" in
    services) echo "postgresql-15 redis-server ceph-mon ceph-osd ceph-common radosgw" ;;
    browser) echo "chromium fonts-dejavu-core" ;;
    monitoring) echo "prometheus prometheus-alertmanager" ;;
    containers) echo "podman buildah runc debootstrap" ;;
    all) echo "$(packages_of services) $(packages_of browser) $(packages_of monitoring) $(packages_of containers)" ;;
    *) return 1 ;;
    esac
}

usage() {
    sed -n '2,11s/^# \{0,1\}//p' "$0"
}

[ $# -gt 0 ] || { usage; exit 2; }

if [ "$1" = list ]; then
    for feature in services browser monitoring containers; do
        echo "$feature: $(packages_of "$feature")"
    done
    exit 0
fi

packages=""
for feature in "$@"; do
    packages="$packages $(packages_of "$feature")" || { echo "error: '$feature' is none of services, browser, monitoring, containers, all" >&2; usage >&2; exit 2; }
done

[ "$(id -u)" -eq 0 ] || { echo "error: packages are installed as root: sudo $0 $*" >&2; exit 1; }
command -v apt-get >/dev/null || { echo "error: apt-get is not here: this script is for Debian 12" >&2; exit 1; }

# Debian starts what it installs; we want the programs, not daemons on default ports. A policy of somebody's own stays.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
mkdir -p /etc/postgresql-common
[ -e /etc/postgresql-common/createcluster.conf ] || echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf

apt-get update -q
# shellcheck disable=SC2086  # a list of words
DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $packages
echo "installed:$packages"
