//! The schema's history: one set of files for both databases, built into the binary.
//!
//! Migrations are append-only. A line that starts with `--@sqlite ` or `--@postgres ` is active on that database alone.

use sqlx::migrate::{Migration, MigrationType, Migrator};

use super::Dialect;

const FILES: &[(i64, &str, &str)] = &[
    (1, "users", include_str!("../../migrations/0001_users.sql")),
    (2, "channels", include_str!("../../migrations/0002_channels.sql")),
    (3, "sliding_sign_ins", include_str!("../../migrations/0003_sliding_sign_ins.sql")),
    (4, "lookups", include_str!("../../migrations/0004_lookups.sql")),
    (5, "status_ends", include_str!("../../migrations/0005_status_ends.sql")),
    (6, "drafts_in_the_log", include_str!("../../migrations/0006_drafts_in_the_log.sql")),
    (7, "cluster", include_str!("../../migrations/0007_cluster.sql")),
    (8, "last_seen", include_str!("../../migrations/0008_last_seen.sql")),
];

/// Returns the migrations as `dialect` runs them.
pub(super) fn migrator(dialect: Dialect) -> Migrator {
    let migrations = FILES.iter().map(|(version, name, text)| {
        let sql = sqlx::AssertSqlSafe(for_dialect(text, dialect));
        Migration::new(*version, (*name).into(), MigrationType::Simple, sqlx::SqlSafeStr::into_sql_str(sql), false)
    });
    Migrator::with_migrations(migrations.collect())
}

fn for_dialect(text: &str, dialect: Dialect) -> String {
    let prefix = match dialect {
        Dialect::Postgres => "--@postgres ",
        Dialect::Sqlite => "--@sqlite ",
    };
    let mut sql = String::with_capacity(text.len());
    for line in text.lines() {
        sql.push_str(line.strip_prefix(prefix).unwrap_or(line));
        sql.push('\n');
    }
    sql
}

/// Returns the newest version that this binary knows.
pub fn newest() -> i64 {
    FILES.last().map_or(0, |file| file.0)
}
