#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes a Debian 12 machine a place to try scope-ebpf in: a BEAM with USDT probes, RabbitMQ, the daemon,
# Prometheus, and Grafana with the dashboards. Run as root, again as often as you like.
#
#   vagrant/provision.sh [FOLDER OF THE SOURCES]      default: the folder above this file
#
# The deb must lie in dist/ there: `make packages`. Variables:
#
#   SCOPE_GRAFANA   where Grafana comes from, since Debian has none: the path or the address of its .deb,
#                   or a line for apt's sources.list. Unset: everything else goes on without it.
#   SCOPE_USDT      a folder with a BEAM that tests/beams/build-usdt.sh built; else it is built, which
#                   takes some minutes.
#
# Everything listens on all addresses, with RabbitMQ's well-known password, as forwarded ports need it:
# this is for a machine that nobody else can reach. Where systemd is not the first process, as in a
# chroot, services are set up and not started.
set -euo pipefail

sources=$(cd "${1:-$(dirname "$0")/..}" && pwd)
export DEBIAN_FRONTEND=noninteractive

say() { echo "provision: $*" >&2; }
die() {
    say "$*"
    exit 1
}

[ "$(id -u)" -eq 0 ] || die "this takes root"
grep -q '^VERSION_CODENAME=bookworm' /etc/os-release || say "this is made for Debian 12; going on"
deb=$(find "$sources/dist" -maxdepth 1 -name 'scope-ebpf_*_amd64.deb' 2>/dev/null | sort -V | tail -n 1) || true
[ -n "$deb" ] || die "no package in $sources/dist; \`make packages\` builds it"

has_systemd() { [ -d /run/systemd/system ]; }

start() { # SERVICE...
    if has_systemd; then
        systemctl daemon-reload
        systemctl enable "$@"
        systemctl restart "$@"
    else
        say "no systemd here, so not started: $*"
    fi
}

install() { apt-get -qq -y -o Dpkg::Options::=--force-confold --no-install-recommends install "$@" >/dev/null; }

packages() {
    say "installing RabbitMQ, Prometheus and scope-ebpf"
    apt-get -qq update
    install erlang-base erlang-crypto rabbitmq-server prometheus curl ca-certificates
    # A copy, because apt reads packages as a user who may not see every folder.
    cp "$deb" /tmp/scope-ebpf.deb
    chmod 644 /tmp/scope-ebpf.deb
    install --reinstall --allow-downgrades /tmp/scope-ebpf.deb
    rm /tmp/scope-ebpf.deb
}

# A node that sells things, on an emulator with USDT probes.
usdt_beam() {
    local built=${SCOPE_USDT:-}
    if [ -z "$built" ]; then
        say "building a BEAM with USDT probes"
        install gcc g++ make perl libc6-dev libncurses-dev zlib1g-dev dpkg-dev systemtap-sdt-dev xz-utils
        built=$("$sources/tests/beams/build-usdt.sh" /var/cache/scope-usdt)
    fi
    mkdir -p /opt/scope-usdt
    # The node may run: a file that is executed can be replaced, but not written to.
    cp -r --remove-destination "$built/bin" /opt/scope-usdt/
    erlc -o /opt/scope-usdt "$sources/docs/demo/shop.erl"
    cat >/usr/local/bin/scope-usdt-node <<'NODE'
#!/bin/sh
# Starts the demo on the BEAM that has USDT probes.
export EMU=beam ROOTDIR=/usr/lib/erlang PROGNAME=erl BINDIR=/opt/scope-usdt/bin
exec "$BINDIR/erlexec" -noinput -boot no_dot_erlang -pa /opt/scope-usdt -s shop "$@"
NODE
    chmod 755 /usr/local/bin/scope-usdt-node
    cat >/etc/systemd/system/scope-usdt-node.service <<'UNIT'
[Unit]
Description=A demo node on a BEAM with USDT probes
[Service]
ExecStart=/usr/local/bin/scope-usdt-node
Environment=HOME=/tmp
DynamicUser=yes
Restart=on-failure
[Install]
WantedBy=multi-user.target
UNIT
    start scope-usdt-node
}

rabbitmq() {
    # Its user guest may come from the machine's own 127.0.0.1 only, where no forwarded port arrives.
    grep -qs '^loopback_users' /etc/rabbitmq/rabbitmq.conf ||
        echo 'loopback_users = none' >>/etc/rabbitmq/rabbitmq.conf
    rabbitmq-plugins --offline enable rabbitmq_management rabbitmq_prometheus >/dev/null
    start rabbitmq-server
}

metrics() {
    # Forwarded ports arrive at the machine's other address. One that a user has chosen stays.
    grep -q '^listen' /etc/scope-ebpf/config.toml ||
        sed -i 's/^#listen = .*/listen = "0.0.0.0:9568"/' /etc/scope-ebpf/config.toml
    cat >/etc/prometheus/prometheus.yml <<'YAML'
global:
  scrape_interval: 5s
  evaluation_interval: 5s
rule_files:
  - /usr/share/scope-ebpf/rules.yml
scrape_configs:
  - job_name: scope-ebpf
    static_configs:
      - targets: ["127.0.0.1:9568"]
  - job_name: rabbitmq
    static_configs:
      - targets: ["127.0.0.1:15692"]
YAML
    promtool check config /etc/prometheus/prometheus.yml >/dev/null
    start scope-ebpfd prometheus
}

# What Grafana reads when it starts, now or later.
grafana_files() {
    mkdir -p /etc/grafana/provisioning/{datasources,dashboards}
    cat >/etc/grafana/provisioning/datasources/scope-ebpf.yaml <<'YAML'
apiVersion: 1
datasources:
  - name: Prometheus
    type: prometheus
    access: proxy
    url: http://127.0.0.1:9090
    isDefault: true
    jsonData: { timeInterval: 5s }
YAML
    cat >/etc/grafana/provisioning/dashboards/scope-ebpf.yaml <<'YAML'
apiVersion: 1
providers:
  - name: scope-ebpf
    folder: scope-ebpf
    type: file
    options: { path: /usr/share/scope-ebpf/dashboards }
YAML
}

grafana_package() { # 0 once it is installed
    local file=/tmp/grafana.deb
    case ${SCOPE_GRAFANA:-} in
    "")
        say "no Grafana: SCOPE_GRAFANA does not say where it comes from (its .deb, or a line for apt)"
        return 1
        ;;
    deb\ *)
        echo "$SCOPE_GRAFANA" >/etc/apt/sources.list.d/grafana.list
        apt-get -qq update && install grafana
        ;;
    *://*) curl -fsSL --retry 2 -o "$file" "$SCOPE_GRAFANA" && chmod 644 "$file" && install "$file" ;;
    *) cp "$SCOPE_GRAFANA" "$file" && chmod 644 "$file" && install "$file" ;;
    esac
}

grafana() {
    grafana_files
    if command -v grafana-server >/dev/null || grafana_package; then
        start grafana-server
    else
        say "going on without Grafana; its datasource and dashboards are set up for when it comes"
    fi
}

# What a person looks at first. A forwarded port arrives where *address* is, so that is what is asked.
summary() {
    local name port address
    if ! has_systemd; then
        say "done; nothing was started"
        return
    fi
    address=$(hostname -I | cut -d ' ' -f 1)
    for name in scope-ebpfd:9568 prometheus:9090 rabbitmq:15672 grafana:3000; do
        port=${name#*:}
        for _ in $(seq 60); do
            curl -so /dev/null "http://$address:$port/" && break
            sleep 1
        done
        if curl -so /dev/null "http://$address:$port/"; then
            say "${name%:*}: http://127.0.0.1:$port/"
        else
            say "${name%:*} does not answer on $address:$port"
        fi
    done
    say "RabbitMQ's user is guest with the password guest; \`vagrant port\` lists ports that were moved"
}

packages
usdt_beam
rabbitmq
metrics
grafana
summary
