//! A row as bytes that are the same whichever database it comes from: a tuple of Postgres' binary `COPY`.
//!
//! Postgres reads and writes tuples as they are; SQLite's values are put into that form and taken out of it. A tuple is
//! the number of its fields (2 bytes) and each field's length (4 bytes; -1: NULL) and bytes, all big-endian. The columns
//! of the key come first.

use std::cmp::Ordering;
use std::fmt::Write as _;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use sha2::{Digest as _, Sha256};
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Row as _, Sqlite, ValueRef as _};
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::storage::types::POSTGRES_EPOCH;

/// What kind of value a column has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Uuid,
    Integer,
    Boolean,
    Text,
    Bytes,
    Time,
}

impl Kind {
    /// Returns the kind of a type, as either database names it.
    pub(super) fn of(declared: &str) -> Option<Kind> {
        Some(match declared {
            "uuid" => Kind::Uuid,
            "bigint" => Kind::Integer,
            "boolean" => Kind::Boolean,
            "text" => Kind::Text,
            "bytea" => Kind::Bytes,
            "timestamptz" | "timestamp with time zone" => Kind::Time,
            _ => return None,
        })
    }
}

/// A column of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) nullable: bool,
    /// Whether no two rows may have the same value, other than by their key.
    pub(super) unique: bool,
}

/// What of a table is read or written: some of its columns, those of the key first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    pub(super) table: String,
    pub(super) columns: Vec<Column>,
    /// How many columns the key has.
    pub(super) keys: usize,
}

impl Shape {
    /// Returns the columns of the key.
    pub(super) fn key(&self) -> &[Column] {
        &self.columns[..self.keys]
    }

    /// Returns the key, and of the rest the columns that `keep` takes.
    pub(super) fn narrowed(&self, keep: impl Fn(&Column) -> bool) -> Shape {
        let rest = self.columns[self.keys..].iter().filter(|column| keep(column));
        let columns = self.key().iter().chain(rest).cloned().collect();
        Shape { table: self.table.clone(), columns, keys: self.keys }
    }

    /// Compares the keys of two rows in the order that both databases read them in.
    pub(super) fn compare(&self, one: &[u8], other: &[u8]) -> Ordering {
        for ((column, one), other) in self.key().iter().zip(fields(one)).zip(fields(other)) {
            let order = match column.kind {
                Kind::Integer | Kind::Time => one.map(integer).cmp(&other.map(integer)),
                Kind::Uuid | Kind::Boolean | Kind::Text | Kind::Bytes => one.cmp(&other),
            };
            if order.is_ne() {
                return order;
            }
        }
        Ordering::Equal
    }

    /// Returns the tuple of a row's key alone.
    pub(super) fn key_of(&self, row: &[u8]) -> Vec<u8> {
        let mut key = Vec::new();
        key.put_u16(self.keys as u16);
        for field in fields(row).take(self.keys) {
            put(&mut key, field);
        }
        key
    }

    /// Tells a row's key to people.
    pub(super) fn tell(&self, row: &[u8]) -> String {
        let mut told = String::new();
        for (column, field) in self.key().iter().zip(fields(row)) {
            let separator = if told.is_empty() { "" } else { ", " };
            let value = match (column.kind, field) {
                (_, None) => "NULL".to_owned(),
                (Kind::Uuid, Some(bytes)) => Uuid::from_slice(bytes).unwrap_or_default().to_string(),
                (Kind::Integer, Some(bytes)) => integer(bytes).to_string(),
                (Kind::Time, Some(bytes)) => Timestamp(integer(bytes) + POSTGRES_EPOCH).to_string(),
                (Kind::Text | Kind::Boolean | Kind::Bytes, Some(bytes)) => {
                    format!("{:?}", String::from_utf8_lossy(bytes))
                }
            };
            let _ = write!(told, "{separator}{} {value}", column.name);
        }
        told
    }
}

/// Returns the fields of a tuple.
pub(super) fn fields(tuple: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    let mut rest = tuple.get(2..).unwrap_or_default();
    std::iter::from_fn(move || {
        let len = rest.try_get_i32().ok()?;
        let Ok(len) = usize::try_from(len) else { return Some(None) };
        let (field, behind) = rest.split_at_checked(len)?;
        rest = behind;
        Some(Some(field))
    })
}

/// Returns how long the first tuple is; nothing if it is not whole.
fn tuple_len(bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes;
    for _ in 0..rest.try_get_u16().ok()? {
        let len = usize::try_from(rest.try_get_i32().ok()?).unwrap_or(0);
        rest = rest.get(len..)?;
    }
    Some(bytes.len() - rest.len())
}

/// Appends a field.
fn put(tuple: &mut Vec<u8>, field: Option<&[u8]>) {
    tuple.put_i32(field.map_or(-1, |bytes| i32::try_from(bytes.len()).expect("no value has 2 GiB")));
    tuple.extend_from_slice(field.unwrap_or_default());
}

fn integer(bytes: &[u8]) -> i64 {
    bytes.try_into().map_or(0, i64::from_be_bytes)
}

/// Puts a row of SQLite into a tuple.
pub(super) fn encode(row: &SqliteRow, columns: &[Column]) -> Result<Bytes, sqlx::Error> {
    let mut tuple = Vec::with_capacity(256);
    tuple.put_u16(columns.len() as u16);
    for (at, column) in columns.iter().enumerate() {
        if row.try_get_raw(at)?.is_null() {
            put(&mut tuple, None);
            continue;
        }
        match column.kind {
            Kind::Uuid | Kind::Bytes => put(&mut tuple, Some(row.try_get(at)?)),
            Kind::Text => put(&mut tuple, Some(row.try_get::<&str, _>(at)?.as_bytes())),
            Kind::Boolean => put(&mut tuple, Some(&[u8::from(row.try_get::<bool, _>(at)?)])),
            Kind::Integer => put(&mut tuple, Some(&row.try_get::<i64, _>(at)?.to_be_bytes())),
            Kind::Time => put(&mut tuple, Some(&(row.try_get::<i64, _>(at)? - POSTGRES_EPOCH).to_be_bytes())),
        }
    }
    Ok(tuple.into())
}

/// Binds the fields of a tuple to a statement of SQLite.
pub(super) fn bind<'q>(
    mut query: Query<'q, Sqlite, SqliteArguments>,
    columns: &[Column],
    tuple: &[u8],
) -> Query<'q, Sqlite, SqliteArguments> {
    for (column, field) in columns.iter().zip(fields(tuple)) {
        query = match (column.kind, field) {
            (_, None) => query.bind(None::<i64>),
            (Kind::Uuid | Kind::Bytes, Some(bytes)) => query.bind(bytes.to_vec()),
            (Kind::Text, Some(bytes)) => query.bind(String::from_utf8_lossy(bytes).into_owned()),
            (Kind::Boolean, Some(bytes)) => query.bind(bytes == [1]),
            (Kind::Integer, Some(bytes)) => query.bind(integer(bytes)),
            (Kind::Time, Some(bytes)) => query.bind(integer(bytes) + POSTGRES_EPOCH),
        };
    }
    query
}

/// What stands before and behind the tuples of a binary `COPY`.
const HEAD: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const FOOT: &[u8] = &[0xff, 0xff];

/// Takes tuples out of what Postgres sends.
#[derive(Default)]
pub(super) struct Tuples {
    bytes: BytesMut,
    begun: bool,
}

impl Tuples {
    /// Takes what was sent.
    pub(super) fn push(&mut self, sent: &[u8]) {
        self.bytes.extend_from_slice(sent);
    }

    /// Returns the next whole tuple.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        if !self.begun {
            if self.bytes.len() < HEAD.len() {
                return None;
            }
            self.bytes.advance(HEAD.len());
            self.begun = true;
        }
        if self.bytes.starts_with(FOOT) {
            return None;
        }
        let len = tuple_len(&self.bytes)?;
        Some(self.bytes.split_to(len).freeze())
    }
}

/// Rows on their way.
pub(super) struct Batch {
    bytes: Vec<u8>,
    rows: u64,
}

impl Default for Batch {
    fn default() -> Batch {
        Batch { bytes: HEAD.to_vec(), rows: 0 }
    }
}

impl Batch {
    /// About how many bytes go at once.
    const FULL: usize = 4 * 1_024 * 1_024;

    /// Adds a row.
    pub(super) fn push(&mut self, tuple: &[u8]) {
        self.bytes.extend_from_slice(tuple);
        self.rows += 1;
    }

    /// Returns how many rows there are.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Returns whether it should go: it is full, or it is the last one and not empty.
    pub(super) fn is_due(&self, last: bool) -> bool {
        self.bytes.len() >= Batch::FULL || (last && self.rows > 0)
    }

    /// Returns the rows one by one.
    pub(super) fn tuples(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.bytes[HEAD.len()..];
        std::iter::from_fn(move || {
            let (tuple, behind) = rest.split_at_checked(tuple_len(rest)?)?;
            rest = behind;
            Some(tuple)
        })
    }

    /// Returns what `COPY … FROM STDIN (FORMAT binary)` takes.
    pub(super) fn into_copy(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(FOOT);
        self.bytes
    }
}

/// How many rows a table has, and the SHA-256 of all of them in the order of their keys.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Sum {
    /// The number of rows.
    pub rows: u64,
    /// The hash, in hexadecimal digits.
    pub hash: String,
}

/// A sum in the making.
#[derive(Default)]
pub(super) struct Summing {
    rows: u64,
    hash: Sha256,
}

impl Summing {
    /// Counts a row in.
    pub(super) fn add(&mut self, tuple: &[u8]) {
        self.rows += 1;
        self.hash.update(tuple);
    }

    /// Returns the sum.
    pub(super) fn done(self) -> Sum {
        let hash = self.hash.finalize().iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        Sum { rows: self.rows, hash }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        let column = |name: &str, kind| Column { name: name.into(), kind, nullable: false, unique: false };
        let columns = vec![column("id", Kind::Uuid), column("seq", Kind::Integer), column("text", Kind::Text)];
        Shape { table: "notes".into(), columns, keys: 2 }
    }

    fn tuple(id: u8, seq: i64, text: Option<&str>) -> Vec<u8> {
        let mut tuple = 3_u16.to_be_bytes().to_vec();
        put(&mut tuple, Some(&[id; 16]));
        put(&mut tuple, Some(&seq.to_be_bytes()));
        put(&mut tuple, text.map(str::as_bytes));
        tuple
    }

    #[test]
    fn tuples_are_found_however_they_are_cut() {
        let rows = [tuple(1, 1, Some("one")), tuple(1, 2, None), tuple(2, 1, Some(""))];
        let mut batch = Batch::default();
        rows.iter().for_each(|row| batch.push(row));
        assert_eq!((batch.rows(), batch.tuples().map(<[u8]>::to_vec).collect::<Vec<_>>()), (3, rows.to_vec()));
        let sent = batch.into_copy();
        for piece in 1..sent.len() {
            let (mut tuples, mut found) = (Tuples::default(), Vec::new());
            for bytes in sent.chunks(piece) {
                tuples.push(bytes);
                found.extend(std::iter::from_fn(|| tuples.next()));
            }
            assert_eq!(found, rows, "in pieces of {piece}");
        }
    }

    #[test]
    fn keys_are_in_the_order_of_their_values() {
        let shape = shape();
        let rows = [tuple(1, -1, None), tuple(1, 2, None), tuple(1, 300, Some("b")), tuple(2, 0, Some("a"))];
        for (n, one) in rows.iter().enumerate() {
            for (m, other) in rows.iter().enumerate() {
                assert_eq!(shape.compare(one, other), n.cmp(&m));
            }
        }
        assert_eq!(shape.key_of(&rows[1]).len(), rows[1].len() - 4);
        assert_eq!(shape.tell(&rows[1]), "id 01010101-0101-0101-0101-010101010101, seq 2");
    }

    #[test]
    fn a_sum_tells_rows_apart_and_what_is_null_from_what_is_empty() {
        let sum = |rows: &[Vec<u8>]| {
            let mut sum = Summing::default();
            rows.iter().for_each(|row| sum.add(row));
            sum.done()
        };
        let (null, empty) = (tuple(1, 1, None), tuple(1, 1, Some("")));
        assert_ne!(sum(std::slice::from_ref(&null)), sum(std::slice::from_ref(&empty)));
        assert_ne!(sum(&[null.clone(), empty.clone()]), sum(&[empty, null]));
        assert_eq!(sum(&[]).rows, 0);
    }
}
