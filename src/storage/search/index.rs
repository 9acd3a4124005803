//! What an index is: of two kinds, one that is built in and one that is OpenSearch's, which find the same.
//!
//! It is given messages whose words are cut ([`Forms`](crate::domain::search::document::Forms)), and is asked for those that fit a
//! [`Search`](crate::domain::search::wanted::Search). It says which ones, and where they stand; whoever asks reads them from the database.

use std::sync::Arc;

use tantivy::TantivyError;

use super::embedded::Embedded;
use super::opensearch::Remote;
use crate::domain::id::ChannelId;
use crate::domain::search::wanted::{Key, Rank};

/// Comes before every message.
pub const NOTHING: Key = (ChannelId(uuid::Uuid::nil()), 0);

/// Why an index could not do it.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The folder or the index in it.
    #[error("the search index: {0}")]
    Index(TantivyError),
    /// A thread of the index gave up; it does not say why.
    #[error("the search index: it cannot write; is there room on its disk?")]
    Thread,
    /// The folder.
    #[error("the folder of the search index: {0}")]
    Folder(#[from] std::io::Error),
    /// OpenSearch cannot be reached.
    #[error("OpenSearch cannot be reached: {0}")]
    Away(String),
    /// OpenSearch answered something else.
    #[error("OpenSearch answered {status}: {why}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What it said.
        why: String,
    },
    /// There is no index yet.
    #[error("the search index is being built")]
    Unbuilt,
}

/// What was found.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Found {
    /// Which messages, the first first.
    pub hits: Vec<(Rank, Key)>,
    /// How many there are in all.
    pub total: u64,
}

/// An index.
pub enum Index {
    /// In the node itself.
    Embedded(Arc<Embedded>),
    /// OpenSearch's, for all nodes.
    Remote(Arc<Remote>),
}
