//! How a start that has to wait is stopped.

use std::process::{Command, Stdio};

use sqlx::{Connection as _, PgConnection};

use crate::binary::{Running, Serving, heard, lines};
use crate::world::{LIMIT, new_postgres_database, postgres_is_there};

/// The first half of the key of the lock that whoever migrates a database holds.
const MIGRATES: i32 = 0x636f_6c6d;

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_waits_for_another_program_to_migrate_says_so_and_can_be_stopped() {
    if !postgres_is_there() {
        return;
    }
    let database = new_postgres_database().await;
    let mut other = PgConnection::connect(&database).await.unwrap();
    let sql = "SELECT pg_advisory_lock($1, hashtext(COALESCE(current_schema(), '')))";
    sqlx::query(sql).bind(MIGRATES).execute(&mut other).await.unwrap();
    let data = tempfile::tempdir().unwrap();
    for signal in ["-TERM", "-INT"] {
        let mut command = Serving::command(data.path(), &["--set", &format!("database.url={database}")]);
        let mut server = Running(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
        let said = lines(server.0.stderr.take().unwrap());
        heard(&said, "another program migrates this database");
        assert!(Command::new("kill").args([signal, &server.0.id().to_string()]).status().unwrap().success());
        // Ends when the server closes its standard error.
        while said.recv_timeout(LIMIT).is_ok() {}
        assert_eq!(server.0.wait().unwrap().code(), Some(0), "{signal}");
    }
}
