//! Why a command or a query was refused.
//!
//! A [`Refusal`] is a value, not a fault: it carries a stable code that clients may match on, a sentence for people, and
//! whether trying again can help. REST turns it into RFC 9457 problem details, the gateway into an error reply.

use std::borrow::Cow;

/// A refused request.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The stable code.
    pub code: Code,
    /// One lowercase sentence that names the thing and, where there is one, the way out.
    pub message: Cow<'static, str>,
    /// Seconds after which trying again makes sense.
    pub retry_after: Option<f64>,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:literal, $temporary:literal;)*) => {
        /// What went wrong, in the words that REST (`code`) and the gateway (`error`) share.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// Every code, for the documents.
            pub const ALL: &[Code] = &[$(Code::$name,)*];

            /// Returns the stable text of this code.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }

            /// Returns the HTTP status that REST answers with.
            #[must_use]
            pub fn status(self) -> u16 {
                match self { $(Code::$name => $status,)* }
            }

            /// Returns whether the same request may succeed later.
            #[must_use]
            pub fn temporary(self) -> bool {
                match self { $(Code::$name => $temporary,)* }
            }
        }
    };
}

codes! {
    /// A field is missing, malformed or out of bounds.
    Invalid = "invalid_request", 400, false;
    /// No token, or one that is unknown, expired or revoked.
    Unauthenticated = "unauthenticated", 401, false;
    /// Signed in, but without the right.
    Forbidden = "forbidden", 403, false;
    /// There is no such thing, or the caller may not know of it.
    NotFound = "not_found", 404, false;
    /// The path exists, the method does not.
    MethodNotAllowed = "method_not_allowed", 405, false;
    /// It clashes with what is there, such as a taken name.
    Conflict = "conflict", 409, false;
    /// The channel is archived and takes no changes.
    Archived = "channel_archived", 409, false;
    /// The session's queue is gone: register anew.
    QueueGone = "queue_gone", 410, false;
    /// The body or the query is larger than allowed.
    TooLarge = "too_large", 413, false;
    /// The path is longer than any of the API's.
    UriTooLong = "uri_too_long", 414, false;
    /// The body is not JSON.
    NotJson = "unsupported_media_type", 415, false;
    /// The idempotency key was used with another body.
    KeyReused = "idempotency_key_reused", 422, false;
    /// Too many requests.
    RateLimited = "rate_limited", 429, true;
    /// The request's head is larger than allowed, or has too many headers.
    HeadersTooLarge = "headers_too_large", 431, false;
    /// The gateway knows no such frame type.
    UnknownType = "unknown_type", 400, false;
    /// A fault of the server's own; it is in the log under the request id.
    Internal = "internal", 500, true;
    /// The channel or a service behind it cannot answer now.
    Unavailable = "unavailable", 503, true;
    /// The answer did not come in time; whether it took effect is not known, so repeat with the same key.
    Timeout = "timeout", 504, true;
}

impl Refusal {
    /// Makes a refusal with a code and a sentence.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Refusal { code, message: message.into(), retry_after: None }
    }

    /// Says when to come back.
    #[must_use]
    pub fn retry_after(mut self, seconds: f64) -> Self {
        self.retry_after = Some(seconds);
        self
    }
}

/// Refuses a malformed or out-of-bounds field.
pub fn invalid(message: impl Into<Cow<'static, str>>) -> Refusal {
    Refusal::new(Code::Invalid, message)
}

/// Refuses because `thing` does not exist or may not be known.
pub fn not_found(thing: &str) -> Refusal {
    Refusal::new(Code::NotFound, format!("{thing} not found"))
}

/// Refuses because the caller has no right to do it.
pub fn forbidden(message: impl Into<Cow<'static, str>>) -> Refusal {
    Refusal::new(Code::Forbidden, message)
}

/// Refuses because it clashes with what is there.
pub fn conflict(message: impl Into<Cow<'static, str>>) -> Refusal {
    Refusal::new(Code::Conflict, message)
}

/// Refuses because something behind the request cannot answer now.
pub fn unavailable(message: impl Into<Cow<'static, str>>) -> Refusal {
    Refusal::new(Code::Unavailable, message).retry_after(1.0)
}
