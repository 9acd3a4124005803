//! What administrators see of the server itself.

use std::sync::Arc;

use super::auth::Nothing;
use super::endpoint::Params;
use super::error::Refused;
use crate::actors::Hub;
use crate::actors::cluster::status::Status;
use crate::domain::command::Principal;
use crate::domain::permission::may_manage_users;

/// `GET /v1/admin/cluster`
pub async fn cluster(hub: Arc<Hub>, caller: Principal, _: Params, _: Nothing) -> Result<Status, Refused> {
    may_manage_users(caller.role)?;
    Ok(hub.cluster_status().await?)
}
