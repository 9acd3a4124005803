#!/usr/bin/env bash
# What Postgres' own full-text search takes for the questions of `colink load search`, on the database that was left by it:
#
#   createdb bench && colink load search --database postgres://…/bench --corpus 1000000 --corpus-rooms 5000 --seen-rooms 200 --readers 2
#   benches/search_postgres.sh postgres://…/bench 20
#
# It adds a column of words and an index on it to the table of messages, which no server should use after that, and asks by pgbench
# for 20 seconds a kind: one common word, one rare word, two words; the 20 that fit best, in the channels of whoever is in most that are not their own.
set -euo pipefail
url=${1:?the URL of the database} seconds=${2:-20}
for bin in "$(command -v pgbench || true)" $(ls /usr/lib/postgresql/*/bin/pgbench 2>/dev/null | sort -rV); do
  [ -x "$bin" ] && break
done
[ -x "${bin:-}" ] || { echo "pgbench is not here: install postgresql" >&2; exit 1; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

sql() { psql "$url" -qAt -v ON_ERROR_STOP=1 -c "$1"; }

begun=$(date +%s%N)
sql "ALTER TABLE messages ADD COLUMN IF NOT EXISTS fts tsvector GENERATED ALWAYS AS (to_tsvector('english', text)) STORED"
sql "CREATE INDEX IF NOT EXISTS messages_by_fts ON messages USING gin (fts)"
sql "ANALYZE messages"
built=$(( ($(date +%s%N) - begun) / 1000000 ))
size=$(sql "SELECT pg_size_pretty(pg_relation_size('messages_by_fts') + (SELECT sum(pg_column_size(fts)) FROM messages)::bigint)")
echo "built in $built ms; the index and its column take $size"

user=$(sql "SELECT m.user_id FROM members m JOIN channels c ON c.id = m.channel_id WHERE c.created_by <> m.user_id GROUP BY 1 ORDER BY count(*) DESC LIMIT 1")
# Words of messages that may be read: the longest of each is a rare one; the shortest, of all, are common ones.
sql "DROP TABLE IF EXISTS fts_words" 2>/dev/null
sql "CREATE TABLE fts_words AS SELECT row_number() OVER () AS n, rare, common, two FROM (
  SELECT (SELECT w FROM unnest(words) w ORDER BY length(w) DESC LIMIT 1) AS rare,
         (SELECT w FROM unnest(words) w ORDER BY length(w), w LIMIT 1) AS common, words[1] || ' ' || words[2] AS two
  FROM (SELECT string_to_array(text, ' ') AS words FROM messages
        WHERE channel_id IN (SELECT channel_id FROM members WHERE user_id = '$user') ORDER BY md5(id::text) LIMIT 1000) m) w"
sql "CREATE INDEX ON fts_words (n)"
sql "ANALYZE fts_words"

for kind in common rare two; do
  cat >"$dir/$kind.sql" <<SQL
\\set n random(1, 1000)
SELECT $kind AS words FROM fts_words WHERE n = :n \\gset
SELECT count(*) OVER (), m.channel_id, m.seq FROM messages m WHERE m.fts @@ plainto_tsquery('english', ':words')
AND m.channel_id IN (SELECT channel_id FROM members WHERE user_id = '$user')
ORDER BY ts_rank(m.fts, plainto_tsquery('english', ':words')) DESC LIMIT 20;
SQL
  (cd "$dir" && "$bin" "$url" -n -M simple -c 2 -j 1 -T "$seconds" -f "$kind.sql" -l --log-prefix="$kind" >"$kind.out" 2>&1)
  cut -d' ' -f3 "$dir/$kind".[0-9]* | sort -n | awk -v kind="$kind" \
    '{ t[NR] = $1 } END { printf "%-7s p50 %.2f ms  p95 %.2f ms  p99 %.2f ms  %d asked\n", kind, t[int(NR*.5)+1]/1000, t[int(NR*.95)+1]/1000, t[int(NR*.99)+1]/1000, NR }'
done
