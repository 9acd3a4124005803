//! Refusals as RFC 9457 problem details.
//!
//! A handler returns a [`Refusal`]; it travels in the response's extensions to the outermost layer, which alone knows
//! the request id, and becomes `application/problem+json` there.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::error::{Code, Refusal, unavailable};
use crate::storage::StoreError;

/// Problem details (RFC 9457).
#[derive(Debug, Serialize, JsonSchema)]
pub struct Problem {
    /// `about:blank`: the code says what it is.
    pub r#type: &'static str,
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The stable code to match on.
    pub code: &'static str,
    /// One sentence for people.
    pub detail: String,
    /// The request, as it stands in the server's log.
    pub request_id: String,
    /// Whether the same request may succeed later.
    pub temporary: bool,
    /// Seconds after which trying again makes sense.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<f64>,
}

/// A refusal on its way to the outermost layer.
#[derive(Clone)]
pub struct Refused(pub Refusal);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Refused(refusal)
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Refused(refusal(error))
    }
}

/// Turns a failure of the store into what the caller is told; the failure itself goes to the log.
pub fn refusal(error: StoreError) -> Refusal {
    match error {
        StoreError::Refused(refusal) => refusal,
        StoreError::Database(error) => {
            tracing::error!(%error, "a query failed");
            unavailable("the database does not answer now")
        }
    }
}

/// Renders a refusal.
pub fn problem(refusal: &Refusal, request_id: &str) -> Response {
    let status = StatusCode::from_u16(refusal.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let problem = Problem {
        r#type: "about:blank",
        title: status.canonical_reason().unwrap_or("Error").to_owned(),
        status: status.as_u16(),
        code: refusal.code.as_str(),
        detail: refusal.message.to_string(),
        request_id: request_id.to_owned(),
        temporary: refusal.code.temporary(),
        retry_after: refusal.retry_after,
    };
    let body = serde_json::to_vec(&problem).expect("a problem has only string keys");
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if let Some(seconds) = refusal.retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.ceil().max(1.0) as u64));
    }
    if refusal.code == Code::Unauthenticated {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}
