//! The gateway's URL as clients write it; checked.

use crate::explain::print::without_users;
use hyper::Uri;

/// Sccache's default port, and the gateway's.
pub(crate) const GATEWAY_PORT: u16 = 4226;

/// Why a URL cannot be the gateway's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("cannot use endpoint \"{endpoint}\": {cause}\nhint: {hint}")]
pub struct BadEndpoint {
    /// As it was given, without a user's password.
    pub endpoint: String,
    /// What is wrong with it.
    pub cause: &'static str,
    /// What to do instead.
    pub hint: String,
}

/// An `http` or `https` URL without user, query or trailing slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) url: String,
    pub(crate) tls: bool,
    /// Without the brackets of an IPv6 address.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Endpoint {
    pub(crate) fn parse(given: &str) -> Result<Endpoint, BadEndpoint> {
        let refused = |cause, hint: String| BadEndpoint {
            endpoint: without_users(given),
            cause,
            hint,
        };
        let url = given.trim();
        let example = || "write it as http://HOST:4226".to_owned();
        let Some((scheme, rest)) = url.split_once("://") else {
            let authority: Option<hyper::http::uri::Authority> = url.parse().ok();
            let hint = match authority {
                Some(authority) if authority.port().is_some() => format!("write http://{url}"),
                Some(authority) => format!("write http://{authority}:{GATEWAY_PORT}"),
                None => example(),
            };
            return Err(refused("it has no scheme", hint));
        };
        let tls = match scheme {
            "http" => false,
            "https" => true,
            "tcp" => {
                let cause = "sccache does not support tcp:// URLs";
                return Err(refused(cause, format!("write http://{rest}")));
            }
            _ => return Err(refused("its scheme is not http", example())),
        };
        let url = format!("{scheme}://{}", rest.trim_end_matches('/'));
        let uri: Uri = url
            .parse()
            .map_err(|_| refused("it is not a URL", example()))?;
        let host = uri.host().unwrap_or_default();
        if host.is_empty() {
            return Err(refused("it has no host", example()));
        }
        if uri.authority().is_some_and(|it| it.as_str().contains('@')) {
            let hint = "leave the user out: clients send the token".to_owned();
            return Err(refused("it contains a user", hint));
        }
        if uri.query().is_some() || url.contains('#') {
            return Err(refused("it contains more than a path", example()));
        }
        Ok(Endpoint {
            url,
            tls,
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
        })
    }

    /// Another port of the same host, without a path.
    pub(crate) fn with_port(&self, port: u16) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.place_of(port))
    }

    /// Host and port, as messages name them.
    pub(crate) fn place(&self) -> String {
        self.place_of(self.port)
    }

    fn place_of(&self, port: u16) -> String {
        let host = &self.host;
        match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        }
    }

    /// The same server without a path, by `https` where this is `http`, and the reverse.
    pub(crate) fn with_other_scheme(&self) -> String {
        let url = self.with_port(self.port);
        match url.strip_prefix("https://") {
            Some(rest) => format!("http://{rest}"),
            None => url.replacen("http://", "https://", 1),
        }
    }

    /// Whether there is more than scheme, host and port.
    pub(crate) fn has_path(&self) -> bool {
        !self.path().is_empty()
    }

    /// What comes after scheme, host and port, without the first slash.
    pub(crate) fn path(&self) -> &str {
        self.url.splitn(4, '/').nth(3).unwrap_or_default()
    }

    /// Whether sccache's own protocol can reach it: sccache connects to 127.0.0.1 and nowhere else.
    pub(crate) fn is_loopback(&self) -> bool {
        matches!(self.host.as_str(), "127.0.0.1" | "localhost")
    }

    /// The port for sccache's own protocol.
    pub(super) fn loopback_port(&self, given: &str) -> Result<u16, BadEndpoint> {
        let (cause, hint) = if self.tls {
            (
                "sccache's own protocol does not support TLS",
                "use --lane webdav, or an http:// endpoint on this host",
            )
        } else if !self.is_loopback() {
            (
                "sccache's own protocol only ever talks to 127.0.0.1",
                "use --lane webdav for another host or another container, or publish the port on 127.0.0.1",
            )
        } else {
            return Ok(self.port);
        };
        Err(BadEndpoint {
            endpoint: given.to_owned(),
            cause,
            hint: hint.to_owned(),
        })
    }
}
