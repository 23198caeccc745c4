# What tools/test, tools/try and tools/fuzz-campaign share: installing what is missing, building.
# Sourced, never run; the caller has set -euo pipefail and is in the project's root.

# Prints the packages of tools/packages that are not installed.
missing_packages()
{
    local package

    for package in $(sed 's/#.*//' tools/packages); do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
            echo "$package"
    done
}

# Installs what is missing; says what to do when that needs another user.
install_packages()
{
    local missing

    missing=$(missing_packages | tr '\n' ' ')
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" -ne 0 ]; then
        echo "These packages are missing: $missing" >&2
        echo "Install them, or run this once as root." >&2
        exit 1
    fi
    echo "== installing $missing"
    export DEBIAN_FRONTEND=noninteractive
    # Services must not start by themselves here: tests and benchmarks run their own.
    local policy=/usr/sbin/policy-rc.d made=
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod +x $policy
        made=1
    fi
    local result=0
    { apt-get update -q && apt-get install -qy --no-install-recommends $missing; } || result=$?
    [ -z "$made" ] || rm -f $policy
    return $result
}

# build_dir DIR MESON-OPTION...: configures once and builds all, or what $build_targets names; shows
# output only when something fails.
build_dir()
{
    local dir=$1 log

    shift
    log=$(mktemp)
    if [ ! -e "$dir/build.ninja" ] && ! meson setup "$dir" "$@" >"$log" 2>&1; then
        tail -n 40 "$log"
        rm -f "$log"
        rm -rf "$dir"
        return 1
    fi
    if ! ninja -C "$dir" ${build_targets:-} >"$log" 2>&1; then
        grep -v '^\[' "$log" | tail -n 80
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}
