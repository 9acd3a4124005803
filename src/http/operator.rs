//! The door for the operator's command line on the machine where the server runs.
//!
//! Its secret is made anew at every start and stands in the data directory, readable by the server's owner alone: who can
//! read it can read the database too. It is no part of the public API.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use subtle::ConstantTimeEq as _;

use super::endpoint::json_response;
use super::error::Refused;
use crate::actors::Hub;
use crate::domain::command::{Command, Principal, unknown_type};
use crate::domain::error::{Code, Refusal, invalid, not_found};
use crate::domain::id::{TokenId, UserId};
use crate::storage::accounts::{Account, SYSTEM};
use crate::storage::search::index::Index;
use crate::storage::tokens::Secret;
use crate::storage::users;
use crate::storage::writer::Work;

/// What the operator wants done.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Account work.
    Account(Account),
    /// A command.
    Command {
        /// In whose name; the operator's own, if absent.
        user: Option<UserId>,
        /// The command's type.
        name: String,
        /// Its fields.
        d: Box<RawValue>,
        /// An idempotency key.
        key: Option<String>,
    },
    /// How the cluster is.
    Cluster,
    /// How the search index is.
    Search {
        /// Whether the node's own is to be made anew.
        rebuild: bool,
    },
}

/// `POST /operator`
pub async fn run(State(hub): State<Arc<Hub>>, request: Request) -> Result<Response, Refused> {
    let (parts, body) = request.into_parts();
    let shown = parts.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()?.strip_prefix("Bearer "));
    let right = Secret::hash(shown.unwrap_or("")).ct_eq(&hub.operator);
    if !bool::from(right) {
        return Err(Refusal::new(Code::Unauthenticated, "this is not the operator").into());
    }
    let body = axum::body::to_bytes(body, hub.config.server.max_body_bytes).await;
    let body = body.map_err(|_| Refusal::new(Code::TooLarge, "the order is too large"))?;
    let order: Order = serde_json::from_slice(&body).map_err(|e| invalid(e.to_string()))?;
    let reply = match order {
        Order::Account(account) => hub.writer.write(SYSTEM, Work::Account(account), None).await?,
        Order::Command { user, name, d, key } => {
            let caller = match user {
                Some(user) => in_the_name_of(&hub, user).await?,
                None => SYSTEM,
            };
            let command = Command::decode(&name, d.get()).ok_or_else(|| unknown_type(&name))??;
            hub.run(caller, command, key).await?
        }
        Order::Cluster => {
            let status = serde_json::to_vec(&hub.cluster_status().await?).expect("it has only string keys");
            return Ok(json_response(StatusCode::OK, status.into()));
        }
        Order::Search { rebuild } => {
            if let (true, Index::Embedded(index)) = (rebuild, hub.search.index()) {
                index.ask_for_rebuild();
            }
            let status = serde_json::to_vec(&hub.search.status(&hub.store).await?).expect("it has only string keys");
            return Ok(json_response(StatusCode::OK, status.into()));
        }
    };
    Ok(json_response(StatusCode::OK, reply.json.into()))
}

async fn in_the_name_of(hub: &Hub, user_id: UserId) -> Result<Principal, Refused> {
    let user = hub.store.in_half_the_time(async { users::by_id(&mut hub.store.read().await?, user_id).await }).await?;
    let user = user.ok_or_else(|| not_found("user"))?;
    Ok(Principal { user_id, role: user.role, token_id: TokenId(uuid::Uuid::nil()) })
}
