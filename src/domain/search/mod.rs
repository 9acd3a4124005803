//! What search looks for and where: pure, the same for every index, and for what no index has yet.
//!
//! ```text
//!  a message's text ──▶ analysis: words in a row, joined spellings, stems ──▶ index
//!  what was asked  ──▶ query: words, phrases, filters ──▶ index ──▶ which messages
//!                                └──▶ matching: what the index does not have yet; what to highlight
//! ```
//!
//! All words are cut here, for documents and queries alike: an index keeps what it is given, and has no language of its own.

pub mod analysis;
pub mod document;
pub mod query;
pub mod wanted;
