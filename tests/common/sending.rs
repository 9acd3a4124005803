//! Sending over REST on a connection of its own, and what an answer means.

use std::time::Duration;

use bytes::Bytes;
use colink::client::Error;
use colink::domain::command::SendMessage;
use colink::domain::message::Sent;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use crate::checker::Answer;

/// Returns whether an error leaves nothing open about what came of the request.
pub(crate) fn is_definite(error: &Error) -> bool {
    match error {
        Error::Refused { code, status, .. } => {
            let temporary = ["timeout", "internal", "unavailable", "rate_limited"].contains(&code.as_str());
            !temporary && status.is_none_or(|status| status < 500)
        }
        _ => false,
    }
}

/// Says what came of an attempt to send.
pub(crate) fn answer_of(result: Result<Sent, Error>) -> Answer {
    match result {
        Ok(sent) => Answer::Ok { seq: sent.seq, message_id: sent.message_id, duplicate: sent.duplicate },
        Err(error) if is_definite(&error) => Answer::Refused(error.to_string()),
        Err(_) => Answer::Unknown,
    }
}

/// Posts over REST with an `Idempotency-Key`, on a connection of its own; waits no longer than `limit`.
pub(crate) async fn post(url: &str, token: &str, send: &SendMessage, limit: Duration) -> Result<Sent, Error> {
    let broken = |error: hyper::Error| Error::Io(std::io::Error::other(error));
    let key = send.text.split(' ').next().unwrap_or_default();
    let body = json!({"text": send.text, "thread_seq": send.thread_seq, "also_in_channel": send.also_in_channel});
    let host = url.trim_start_matches("http://");
    let stream = tokio::net::TcpStream::connect(host).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let driven = tokio::spawn(connection);
    let request = hyper::Request::post(format!("/v1/channels/{}/messages", send.channel_id))
        .header("host", host)
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json")
        .header("idempotency-key", key)
        .body(Full::new(Bytes::from(body.to_string())))
        .unwrap();
    let exchange = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(broken)?.to_bytes();
        let unreadable = |error: serde_json::Error| Error::Protocol(error.to_string());
        if head.status.is_success() {
            return serde_json::from_slice(&body).map_err(unreadable);
        }
        let problem: Value = serde_json::from_slice(&body).map_err(unreadable)?;
        Err(Error::Refused {
            code: problem["code"].as_str().unwrap_or_default().to_owned(),
            message: problem["detail"].as_str().unwrap_or_default().to_owned(),
            status: Some(head.status.as_u16()),
            retry_after: problem["retry_after"].as_f64(),
        })
    };
    let late = |_| Error::Io(std::io::ErrorKind::TimedOut.into());
    let result = tokio::time::timeout(limit, exchange).await.map_err(late).flatten();
    driven.abort();
    result
}
