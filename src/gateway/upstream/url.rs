//! What an upstream's URL says: which store is behind it, and what of it may be shown.

use super::Error;
use crate::contract::gateway_config::Upstream as Config;
use crate::gateway::tls::presented::client_config;
use opendal::{HttpTransporter, Operator, OperatorRegistry};
use opendal_http_transport_reqwest::ReqwestTransport;
use percent_encoding::percent_decode_str;
use std::time::Duration;

/// How long a connection to it may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long it may stand still in mid-answer.
const SILENCE: Duration = Duration::from_secs(15);

/// What follows if the certificate's files cannot be used.
const BY_TOKEN_ONLY: &str = "without a certificate the upstream takes this cache only by its token";

/// A client for HTTP, which presents the certificate of `config` to an upstream over HTTPS.
///
/// # Errors
/// There is none, because the certificates of the system cannot be read.
pub(super) fn client(config: &Config) -> Result<reqwest::Client, Error> {
    // Fails only where a provider was chosen before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut client = reqwest::Client::builder()
        .connect_timeout(CONNECT)
        .read_timeout(SILENCE);
    if let Some(files) = &config.client_certificate {
        let tls = client_config(Some(files.clone()), BY_TOKEN_ONLY).map_err(Error::Tls)?;
        client = client.tls_backend_preconfigured(tls);
    }
    client.build().map_err(Error::Client)
}

/// The store behind `config.url`: `s3://BUCKET/FOLDER?endpoint=...&region=...`, `redis://HOST:PORT/...`, or
/// `http(s)://HOST:PORT/...` for another sccache-dock or any WebDAV server.
///
/// # Errors
/// The URL cannot be used. Nothing is sent yet.
pub fn operator(config: &Config) -> Result<Operator, Error> {
    opendal::init_default_registry();
    // The first one stays, and they are all alike.
    HttpTransporter::install_default(ReqwestTransport::from(client(config)?));
    let url = config.url.reveal();
    let web = url.starts_with("http://") || url.starts_with("https://");
    if web {
        let (endpoint, root) = split_web(url);
        let mut webdav = opendal::services::Webdav::default()
            .endpoint(endpoint)
            .root(root)
            // Ours has every folder; for other servers the writes would each cost two requests more.
            .disable_create_dir(true);
        if let Some(token) = &config.token {
            webdav = webdav.token(token.reveal());
        }
        return Operator::new(webdav).map_err(Error::Url);
    }
    if url.starts_with("redis") {
        return Operator::new(redis(url)).map_err(Error::Url);
    }
    OperatorRegistry::get().load(url).map_err(Error::Url)
}

/// Redis by its usual URL, of which OpenDAL leaves out user and password:
/// `redis[s]://[USER][:PASSWORD]@HOST/DB/FOLDER`.
fn redis(url: &str) -> opendal::services::Redis {
    let (scheme, rest) = url.split_once("://").unwrap_or(("redis", url));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (login, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let (db, root) = match path.split_once('/').unwrap_or((path, "")) {
        (first, rest) if first.parse::<i64>().is_ok() => (first.parse().unwrap_or(0), rest),
        _ => (0, path),
    };
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let redis = opendal::services::Redis::default()
        .endpoint(&format!("{scheme}://{host}"))
        .root(&format!("/{root}"))
        .db(db);
    let redis = if user.is_empty() {
        redis
    } else {
        redis.username(&decoded(user))
    };
    if password.is_empty() {
        redis
    } else {
        redis.password(&decoded(password))
    }
}

/// Scheme and host, and the path below it.
pub(super) fn split_web(url: &str) -> (&str, &str) {
    let host = url.find("://").map_or(0, |at| at + 3);
    match url[host..].find('/') {
        Some(at) => url.split_at(host + at),
        None => (url, "/"),
    }
}

/// The URL without user, password and query, which may hold keys.
pub(super) fn public_name(url: &str) -> String {
    let bare = url.split(['?', '#']).next().unwrap_or_default();
    match bare.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            let host = host.rsplit('@').next().unwrap_or_default();
            let slash = if path.is_empty() { "" } else { "/" };
            format!("{scheme}://{host}{slash}{path}")
        }
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_shows_no_secret() {
        for (url, name) in [
            ("redis://:secret@host:6379/2", "redis://host:6379/2"),
            ("s3://bucket/folder?access_key_id=a", "s3://bucket/folder"),
            ("http://host:4226", "http://host:4226"),
            ("nonsense", ""),
        ] {
            assert_eq!(public_name(url), name, "{url}");
        }
    }

    #[test]
    fn web_addresses_are_split_at_the_path() {
        assert_eq!(
            split_web("http://host:4226/team/x"),
            ("http://host:4226", "/team/x")
        );
        assert_eq!(split_web("https://host"), ("https://host", "/"));
    }
}
