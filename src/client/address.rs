//! Where a hub is: `http://host:port`, and nothing behind it.

use hyper::Uri;

use super::{Error, Result};

/// A host and a port, out of an `http` or `ws` address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Address {
    pub(crate) fn parse(url: &str) -> Result<Self> {
        let bad = |why: &str| Error::Protocol(format!("cannot use {url}: {why}"));
        let uri: Uri = url.parse().map_err(|_| bad("it is no address such as http://127.0.0.1:8080"))?;
        match uri.scheme_str() {
            Some("http" | "ws") => {}
            Some("https" | "wss") => {
                return Err(bad(
                    "this client speaks no TLS, which ends at the reverse proxy; give the hub's http:// address",
                ));
            }
            _ => return Err(bad("it does not start with http://")),
        }
        if !matches!(uri.path(), "" | "/") {
            return Err(bad("a path does not belong to it"));
        }
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(bad("it names no host"));
        }
        Ok(Address { host: host.to_owned(), port: uri.port_u16().unwrap_or(80) })
    }

    /// Returns what stands in the `Host` header.
    pub(crate) fn authority(&self) -> String {
        let Address { host, port } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_addresses_are_taken_apart() {
        for (url, authority) in [
            ("http://127.0.0.1:8080", "127.0.0.1:8080"),
            ("ws://hub.example/", "hub.example:80"),
            ("http://[::1]:9", "[::1]:9"),
        ] {
            assert_eq!(Address::parse(url).unwrap().authority(), authority);
        }
    }

    #[test]
    fn other_addresses_are_refused_with_the_reason() {
        for (url, why) in [
            ("https://hub.example", "reverse proxy"),
            ("ftp://hub.example", "http://"),
            ("http://hub.example/chat", "path"),
            ("127.0.0.1 8080", "no address"),
        ] {
            assert!(Address::parse(url).unwrap_err().to_string().contains(why), "{url}");
        }
    }
}
