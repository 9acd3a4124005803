#!/usr/bin/env bash
# Starts what the tests need and is not given by the environment, in a directory of its own.
#
#   eval "$(tests/services.sh start)"    sets COLINK_TEST_POSTGRES and COLINK_TEST_SERVICES
#   tests/services.sh stop               stops what start started
#
# COLINK_TEST_POSTGRES=postgres://… in the environment is used as it is. Otherwise Debian's postgresql is used, and
# installed first if this runs as root with apt-get at hand. What cannot be had is said on standard error and left out.
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }

postgres_bin() {
  local dir
  for dir in $(ls -d /usr/lib/postgresql/*/bin /usr/pgsql-*/bin 2>/dev/null | sort -rV) "$(dirname "$(command -v initdb || echo /)")"; do
    if [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ]; then echo "$dir"; return 0; fi
  done
  return 1
}

install_postgres() {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
  say "tests: installing postgresql"
  # Debian starts daemons on installation unless this file says no; put back what was there.
  local policy=/usr/sbin/policy-rc.d made=
  if [ ! -e "$policy" ]; then printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod +x "$policy"; made=1; fi
  { apt-get -o DPkg::Lock::Timeout=600 update && DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y --no-install-recommends postgresql; } >&2 </dev/null || true
  [ -z "$made" ] || rm -f "$policy"
  postgres_bin >/dev/null
}

# Postgres refuses to run as root.
as_postgres() {
  if [ "$(id -u)" = 0 ]; then su postgres -s /bin/sh -c "$1"; else sh -c "$1"; fi
}

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])' 2>/dev/null || echo $((20000 + RANDOM % 20000))
}

start_postgres() {
  local bin=$1 dir=$2 port=$3
  as_postgres "$bin/initdb -D $dir/postgres -U colink -A trust --no-sync -E UTF8 --locale=C.UTF-8" >"$dir/initdb.log" 2>&1 &&
    as_postgres "$bin/pg_ctl -D $dir/postgres -l $dir/postgres.log -w -t 60 -o '-p $port -h 127.0.0.1 -k $dir -c max_connections=400' start" \
      </dev/null >"$dir/start.log" 2>&1
}

# Stops a Postgres if it runs, and removes its directory.
remove() {
  local dir=$1 bin
  if bin=$(postgres_bin) && [ -d "$dir/postgres" ]; then
    as_postgres "$bin/pg_ctl -D $dir/postgres -m immediate stop" >/dev/null 2>&1 || true
  fi
  rm -rf "$dir"
}

start() {
  if [ -n "${COLINK_TEST_POSTGRES:-}" ]; then return 0; fi
  local bin dir port
  if ! bin=$(postgres_bin); then
    if ! install_postgres || ! bin=$(postgres_bin); then
      say "tests: no Postgres here: set COLINK_TEST_POSTGRES=postgres://user@host/db, or install postgresql"
      return 0
    fi
  fi
  dir=$(mktemp -d "${TMPDIR:-/tmp}/colink-test-services.XXXXXX")
  chmod 755 "$dir"
  [ "$(id -u)" != 0 ] || chown postgres "$dir"
  # Until it runs, whatever goes wrong leaves nothing behind.
  # shellcheck disable=SC2064 # the name is wanted as it is now: it is gone with this function
  trap "remove '$dir'" EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  port=$(free_port)
  if ! start_postgres "$bin" "$dir" "$port"; then
    say "tests: Postgres does not start; its logs say:"
    tail -n 30 "$dir"/*.log >&2 || true
    return 1
  fi
  trap - EXIT INT TERM HUP
  echo "export COLINK_TEST_SERVICES=$dir"
  echo "export COLINK_TEST_POSTGRES=postgres://colink@127.0.0.1:$port/postgres"
}

stop() {
  [ -z "${COLINK_TEST_SERVICES:-}" ] || remove "$COLINK_TEST_SERVICES"
}

case "${1:-}" in
  start) start ;;
  stop) stop ;;
  *) sed -n '2,8p' "$0" >&2; exit 64 ;;
esac
