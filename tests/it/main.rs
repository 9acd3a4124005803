//! The black-box tests: a whole node in this process, and clients that know nothing but its wire.
//!
//! [`world`] starts a node and makes its people, [`http`] is REST and [`socket`] the gateway, both as plain as bytes; [`logs`] is what it logs;
//! [`binary`] is the program itself, as a process. Each other file is one promise of the product. Every wait has a limit ([`world::within`]).
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod binary;
#[path = "../common/forward.rs"]
mod forward;
mod http;
mod logs;
mod socket;
#[path = "../common/topic.rs"]
mod topic;
mod world;

mod accounts;
mod administration;
mod answers;
mod away;
mod canary;
mod channels;
mod cli;
mod client;
mod cluster;
mod cluster_presence;
mod consumers;
mod deadlines;
mod dev_cluster;
mod drafts;
mod durability;
mod ending;
mod fallback;
mod floods;
mod frames;
mod groups;
mod health;
mod pages;
mod peers;
mod permissions;
mod pooler;
mod presence;
mod profiles;
mod protocol;
mod queues;
mod relay;
mod releases;
mod repeats;
mod replica;
mod rest;
mod resume;
mod saved;
mod search;
mod slow;
mod starting;
mod store_copy;
mod threads;
mod typing;
mod writes;
