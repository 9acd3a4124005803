//! The beginning of a connection: hello, who is there, and the session that they open or take up again.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::connection::{Connection, End};
use crate::actors::Hub;
use crate::actors::session::resume::Resumed;
use crate::actors::session::{Attached, OpenError, too_many};
use crate::domain::command::Principal;
use crate::domain::error::{Code, Refusal};
use crate::domain::rate::Rate;
use crate::http::{auth, error};
use crate::protocol::client::{self, Identify, Request as Asked, Resume};
use crate::protocol::close::CloseCode;
use crate::protocol::server;
use crate::storage::tokens::Secret;

/// Returns who a token speaks for. An address that showed too many unknown ones is not looked up for, unless the token is
/// known: behind one address may be a whole office, or a proxy with everybody.
pub(super) async fn whose(hub: &Hub, from: IpAddr, token: &str) -> Result<Principal, Refusal> {
    let per_minute = hub.config.gateway.identifies_per_minute.saturating_mul(10);
    let rate = Rate { per_minute, burst: per_minute };
    let key = format!("unknown tokens of {}", auth::counted(from));
    let wait = hub.sign_ins.wait(&key, rate, hub.clock.now());
    if !wait.is_zero() && hub.cache.identity(&Secret::hash(token)).is_none() {
        return Err(too_many(wait));
    }
    let found = auth::identify(hub, token).await;
    if found.as_ref().is_err_and(|refusal| refusal.code == Code::Unauthenticated) {
        // Counted, and refused either way.
        let _ = hub.sign_ins.take(key, rate, hub.clock.now());
    }
    found
}

/// How a session came to be on this connection.
enum Opened {
    Session(Attached),
    /// Nothing came of it; the client may try again.
    Again,
}

impl Connection {
    /// Says hello and waits for identify or resume.
    pub(super) async fn greet(&mut self, known: Option<Principal>, early: Bytes) -> Result<Attached, End> {
        let gateway = &self.hub.config.gateway;
        let timeout = Duration::from_millis(gateway.identify_timeout_ms);
        let hello = server::hello(&self.hub.node, gateway.heartbeat_interval_ms, gateway.max_message_bytes);
        let deadline = (!timeout.is_zero()).then(|| Instant::now() + timeout);
        let closing = self.hub.closing.clone();
        let opened = async {
            self.send(&hello).await?;
            self.unread = early.to_vec();
            loop {
                let text = self.read_text().await?;
                if let Opened::Session(session) = self.open(known, &text).await? {
                    return Ok(session);
                }
            }
        };
        let late = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            opened = opened => opened,
            () = late => Err(CloseCode::NotAuthenticated.into()),
            () = closing.cancelled() => Err(CloseCode::Restart.into()),
        }
    }

    /// Waits for the next whole message. What comes behind it is kept for later.
    async fn read_text(&mut self) -> Result<String, End> {
        loop {
            let (mut answers, mut text) = (Vec::new(), None);
            if self.unread.is_empty() {
                self.stream.readable().await?;
            }
            self.read(&mut answers, |message| {
                text = Some(message.to_owned());
                Ok(false)
            })?;
            self.flush(&mut answers).await?;
            if let Some(text) = text {
                return Ok(text);
            }
        }
    }

    async fn open(&mut self, known: Option<Principal>, text: &str) -> Result<Opened, End> {
        let frame = client::decode(text).map_err(|_| End::from(CloseCode::Decode))?;
        if self.hub.draining.is_cancelled() {
            return Err(CloseCode::Draining.into());
        }
        if matches!(frame.request, Ok(Asked::Identify(_) | Asked::Resume(_))) {
            self.attempts += 1;
            let most = self.hub.config.gateway.identifies_per_minute;
            if most > 0 && self.attempts > most {
                return Err(CloseCode::RateLimited.into());
            }
        }
        let opened = match frame.request {
            Ok(Asked::Identify(identify)) => self.identify(known, identify).await,
            Ok(Asked::Resume(resume)) => self.resume(known, resume).await,
            Ok(Asked::Heartbeat(_)) => {
                self.send(server::HEARTBEAT_ACK).await?;
                return Ok(Opened::Again);
            }
            Ok(_) => return Err(CloseCode::NotAuthenticated.into()),
            Err(refusal) => Ok(Err(refusal)),
        }?;
        match opened {
            Ok(opened) => Ok(opened),
            Err(refusal) => {
                self.send(&server::refused(frame.id, &refusal)).await?;
                Ok(Opened::Again)
            }
        }
    }

    async fn principal(
        &self,
        known: Option<Principal>,
        token: Option<&str>,
    ) -> Result<Result<Principal, Refusal>, End> {
        let principal = match (token, known) {
            (Some(token), _) => whose(&self.hub, self.from, token).await,
            (None, Some(known)) => Ok(known),
            (None, None) => return Err(CloseCode::NotAuthenticated.into()),
        };
        match principal {
            Ok(principal) => Ok(self.within_rate(principal)),
            Err(refusal) if refusal.code == Code::Unauthenticated => Err(CloseCode::AuthFailed.into()),
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    fn within_rate(&self, principal: Principal) -> Result<Principal, Refusal> {
        let per_minute = self.hub.config.gateway.identifies_per_minute;
        let rate = Rate { per_minute, burst: per_minute };
        let key = format!("identify {}", principal.token_id);
        let taken = self.hub.sign_ins.take(key, rate, self.hub.clock.now());
        taken.map(|_| principal).map_err(too_many)
    }

    async fn identify(&mut self, known: Option<Principal>, identify: Identify) -> Result<Result<Opened, Refusal>, End> {
        let principal = match self.principal(known, identify.token.as_deref()).await? {
            Ok(principal) => principal,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let opened = self.hub.open_session(principal, identify.intents.as_deref(), self.number);
        match self.hub.store.in_time(opened).await {
            Ok((session, ready)) => {
                self.send(&ready).await?;
                Ok(Ok(Opened::Session(session)))
            }
            Err(error) => self.not_opened(error),
        }
    }

    async fn resume(&mut self, known: Option<Principal>, resume: Resume) -> Result<Result<Opened, Refusal>, End> {
        let principal = match self.principal(known, resume.token.as_deref()).await? {
            Ok(principal) => principal,
            Err(refusal) => return Ok(Err(refusal)),
        };
        match self.hub.store.in_time(self.hub.resume_session(principal, &resume, self.number)).await {
            Ok(Resumed::Yes { session, text }) => {
                self.send(&text).await?;
                Ok(Ok(Opened::Session(session)))
            }
            Ok(Resumed::No { text }) => {
                self.send(&text).await?;
                Ok(Ok(Opened::Again))
            }
            Ok(Resumed::BadCursor) => Err(CloseCode::BadCursor.into()),
            Err(error) => self.not_opened(error),
        }
    }

    fn not_opened(&self, error: OpenError) -> Result<Result<Opened, Refusal>, End> {
        match error {
            OpenError::TooMany => Err(CloseCode::TooMany.into()),
            OpenError::Store(error) => match error::refusal(error) {
                refusal if refusal.code == Code::Unauthenticated => Err(CloseCode::AuthFailed.into()),
                refusal => Ok(Err(refusal)),
            },
        }
    }
}
