#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prints the URI of the first Debian archive that this machine's apt is configured with.
set -euo pipefail

# Deb822 sources first, then the one-line form.
mirror=$(
    cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
        sed -n -E 's/^URIs:[[:space:]]*([^[:space:]]+).*/\1/p; s/^deb[[:space:]]+(\[[^]]*\][[:space:]]+)?([^[:space:]]+).*/\2/p' |
        grep -E '/debian/?$' | head -n 1
) || true
if [ -z "$mirror" ]; then
    echo "mirror: apt on this machine knows no Debian archive" >&2
    exit 1
fi
echo "$mirror"
