//! Why the server ends a connection, and whether the client should come back: the one table.

macro_rules! close_codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $reason:literal, $come_back:ident;)*) => {
        /// A close code of RFC 6455 or of this protocol.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum CloseCode { $($(#[$doc])* $name,)* }

        impl CloseCode {
            /// Every code, for the documents and the tests.
            pub const ALL: &[CloseCode] = &[$(CloseCode::$name,)*];

            /// Returns the code of this number.
            #[must_use]
            pub fn of(number: u16) -> Option<CloseCode> {
                CloseCode::ALL.iter().copied().find(|code| code.code() == number)
            }

            /// Returns the number on the wire.
            #[must_use]
            pub fn code(self) -> u16 {
                match self { $(CloseCode::$name => $code,)* }
            }

            /// Returns the reason text on the wire.
            #[must_use]
            pub fn reason(self) -> &'static str {
                match self { $(CloseCode::$name => $reason,)* }
            }

            /// Returns what the client should do next.
            #[must_use]
            pub fn come_back(self) -> ComeBack {
                match self { $(CloseCode::$name => ComeBack::$come_back,)* }
            }
        }
    };
}

/// What a client should do after a connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ComeBack {
    /// Connect and resume.
    Resume,
    /// Connect and identify anew.
    Identify,
    /// Stay away until a person did something.
    No,
}

close_codes! {
    /// The client closed, and the server answers in kind.
    Normal = 1000, "bye", Resume;
    /// The server goes away.
    GoingAway = 1001, "going away", Resume;
    /// The bytes were no WebSocket frames.
    ProtocolError = 1002, "protocol error", Resume;
    /// A binary message: this protocol is JSON text.
    Unsupported = 1003, "only text messages are understood", No;
    /// Text that is not UTF-8.
    NotUtf8 = 1007, "text is not UTF-8", No;
    /// A message above `max_frame`.
    TooBig = 1009, "message too big", No;
    /// The server restarts.
    Restart = 1012, "restart", Resume;
    /// A fault of the server's own.
    Unknown = 4000, "unknown error", Resume;
    /// A message that is not a JSON object with a type.
    Decode = 4002, "message is not understood", No;
    /// A command before identify, or no identify in time.
    NotAuthenticated = 4003, "not authenticated", Identify;
    /// The token is unknown, expired or revoked.
    AuthFailed = 4004, "authentication failed", No;
    /// A cursor or `s` that the server never gave.
    BadCursor = 4007, "bad cursor", Identify;
    /// Too many frames, even after being told.
    RateLimited = 4008, "rate limited", Resume;
    /// No heartbeat for two intervals, or another connection took the session over.
    SessionExpired = 4009, "session expired", Resume;
    /// The client did not read for too long.
    SlowConsumer = 4010, "slow consumer", Resume;
    /// The node is being drained.
    Draining = 4011, "draining", Resume;
    /// The client speaks no version that the server does.
    Version = 4012, "unsupported protocol version", No;
    /// The user has too many sessions.
    TooMany = 4013, "too many connections", No;
    /// The sign-in ended: logout, deactivation, a changed password, or its time.
    Revoked = 4014, "session revoked", No;
}
