//! What is said on the wire, apart from who says it.

pub mod wire;
