//! What a browser asks for: the status page, its style and script, and the login that leads to it.
//!
//! A login sets a cookie (see `logins.rs`) that opens this page and `/api/status`, nothing else. Login and logout are
//! taken from our own pages only: a browser says where a form came from.

use super::grants::whose;
use super::{Answer, Refusal, full, permit, refused, text};
use crate::base::time::unix_seconds;
use crate::explain::report::Report;
use crate::gateway::access::{Caller, Need, Verdict};
use crate::gateway::body::{Piecewise, short_body};
use crate::gateway::page::{self, View};
use crate::gateway::peer::Peer;
use crate::gateway::{Gateway, logins};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use percent_encoding::percent_decode;
use std::sync::Arc;
use tokio::task::spawn_blocking;

/// Style and script are named by what is in them.
const KEEP: &str = "public, max-age=604800, immutable";

/// For programs that read no HTML.
const PLAIN: &str = concat!(
    "sccache-dock ",
    env!("CARGO_PKG_VERSION"),
    ": a compiler cache for sccache, ccache, Bazel and Gradle.\n\
    \n\
    To use it, run `sccache-dock client-env` in the container: it prints the settings of your client.\n\
    \n\
    /            the status page, in a browser (needs a token)\n\
    /healthz     is it alive?\n\
    /readyz      does it take writes?\n\
    /metrics     Prometheus metrics (needs a token)\n\
    /api/status  everything at a glance, JSON (needs a token)\n"
);

/// Set on requests that came over TLS.
#[derive(Debug, Clone, Copy)]
pub(super) struct OverTls;

/// The status page, the login, or a few words for those who read no HTML.
pub(super) async fn page(
    gateway: &Gateway,
    peer: &Peer,
    caller: &Caller,
    parts: &Parts,
) -> Result<Answer, Refusal> {
    let accepted = field(parts, &header::ACCEPT);
    if !accepted.is_some_and(|types| types.contains("text/html")) {
        return Ok(text(StatusCode::OK, PLAIN));
    }
    let login = logged_in(gateway, caller, parts);
    let viewer = login.as_ref().unwrap_or(caller);
    if viewer.may(Need::Read) == Verdict::Unauthorized && !viewer.has_sent_a_token() {
        return login_page(StatusCode::OK, parts, None);
    }
    permit(gateway, peer, viewer, Need::Read)?;
    let (now_unix, nonce) = (unix_seconds(), nonce()?);
    let status = gateway.status(viewer);
    let range = page::range(parts.uri.query());
    let namespaces = viewer.scope().names();
    let lifetime = namespaces.is_none().then(|| gateway.lifetime()).flatten();
    let builds = (!viewer.is_anonymous())
        .then(|| gateway.builds(whose(viewer)))
        .flatten();
    let scheme = if is_tls(parts) { "https" } else { "http" };
    let snippets = page::snippets(
        &format!("{scheme}://{}", host(gateway, parts)),
        viewer.scope().folder(),
        // Its front knows no namespaces and is closed to tokens of some only.
        (!viewer.is_restricted())
            .then(|| gateway.scheduler_port())
            .flatten(),
    );
    let html = page::status(&View {
        status: &status,
        services: gateway.services.ask().await,
        traffic: (!viewer.is_restricted()).then(|| gateway.traffic(range)),
        lifetime,
        builds,
        viewer: viewer.name().unwrap_or_default(),
        logged_in: login.is_some(),
        namespaces: namespaces.as_deref(),
        host: &host(gateway, parts),
        snippets: &snippets,
        now_unix,
        nonce: &nonce,
    });
    Ok(document(StatusCode::OK, html, &nonce))
}

/// One build on a page of its own.
pub(super) fn build(report: &Report) -> Result<Answer, Refusal> {
    let nonce = nonce()?;
    Ok(document(
        StatusCode::OK,
        page::build(report, &nonce),
        &nonce,
    ))
}

pub(super) fn style() -> Answer {
    asset("text/css; charset=utf-8", page::STYLE)
}

pub(super) fn script() -> Answer {
    asset("text/javascript; charset=utf-8", page::SCRIPT)
}

fn asset(kind: &'static str, body: &'static str) -> Answer {
    let mut answer = full(StatusCode::OK, kind, body);
    set(&mut answer, header::CACHE_CONTROL, KEEP);
    set(&mut answer, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    answer
}

/// Takes a token for a cookie. Wrong tokens count as they do everywhere.
pub(super) async fn log_in(
    gateway: &Gateway,
    peer: &Peer,
    parts: &Parts,
    body: &mut impl Piecewise,
) -> Result<Answer, Refusal> {
    from_our_own_page(parts)?;
    let bad = |cause: String| Refusal::new(StatusCode::BAD_REQUEST, "login", cause);
    let body = short_body(body).await.map_err(bad)?;
    let caller = gateway.identity.access.holder(&token(&body));
    if let Err(refusal) = permit(gateway, peer, &caller, Need::Read) {
        // Counted and logged like all others; but a browser must not ask for a password of its own.
        let refused = refused(gateway, peer, parts, &refusal);
        let trouble = match refusal.status {
            StatusCode::TOO_MANY_REQUESTS => {
                "Too many wrong tokens came from your address. Wait a little; the right one is taken at any time."
            }
            _ => "This is no token of this cache.",
        };
        let mut page = login_page(refused.status(), parts, Some(trouble))?;
        for name in [header::RETRY_AFTER, header::CONNECTION] {
            if let Some(value) = refused.headers().get(&name) {
                page.headers_mut().insert(name, value.clone());
            }
        }
        return Ok(page);
    }
    let cookie = gateway
        .identity
        .access
        .log_in(&caller, unix_seconds(), random()?)
        .ok_or_else(|| bad("this takes a token".to_owned()))?;
    tracing::info!(token = caller.name(), %peer, "logged in to the status page");
    Ok(moved_to_front(parts, &cookie, logins::LIFE))
}

/// Takes the cookie back, and answers when that is written down.
pub(super) async fn log_out(gateway: &Arc<Gateway>, parts: &Parts) -> Result<Answer, Refusal> {
    from_our_own_page(parts)?;
    let cookie = cookie(parts).unwrap_or_default().as_bytes();
    if gateway
        .identity
        .access
        .log_out(cookie, unix_seconds(), random()?)
    {
        let gateway = Arc::clone(gateway);
        // It ends with an error only when the runtime does.
        let _ = spawn_blocking(move || gateway.keep_logins()).await;
    }
    Ok(moved_to_front(parts, "", 0))
}

/// Who has logged in with this browser; nobody where the request has a token of its own.
pub(super) fn logged_in(gateway: &Gateway, caller: &Caller, parts: &Parts) -> Option<Caller> {
    let cookie = cookie(parts).filter(|_| !caller.has_sent_a_token())?;
    gateway
        .identity
        .access
        .logged_in(cookie.as_bytes(), unix_seconds())
}

/// Refuses what pages of other sites send, be it with a token that the browser keeps for us: browsers name the site.
pub(super) fn from_our_own_page(parts: &Parts) -> Result<(), Refusal> {
    let site = field(parts, &HeaderName::from_static("sec-fetch-site"));
    let site_is_ours = site.is_none_or(|site| matches!(site, "same-origin" | "none"));
    let origin = field(parts, &header::ORIGIN);
    let host = field(parts, &header::HOST).unwrap_or_default();
    let origin_is_ours = origin.is_none_or(|origin| {
        let named = origin.split_once("://").map(|(_, named)| named);
        named.is_some_and(|named| named.eq_ignore_ascii_case(host))
    });
    if site_is_ours && origin_is_ours {
        return Ok(());
    }
    let message = "a page of another site sent this: use the status page itself, or a program that is no browser";
    Err(Refusal::new(StatusCode::FORBIDDEN, "cross_site", message))
}

/// The token of a form's body, `token=...`.
fn token(body: &[u8]) -> Vec<u8> {
    let fields = body.split(|byte| *byte == b'&');
    let mut values = fields.filter_map(|field| field.strip_prefix(b"token="));
    let value = values.next().unwrap_or_default();
    let spaced: Vec<u8> = value
        .iter()
        .map(|byte| if *byte == b'+' { b' ' } else { *byte })
        .collect();
    let token: Vec<u8> = percent_decode(&spaced).collect();
    token.trim_ascii().to_vec()
}

fn login_page(status: StatusCode, parts: &Parts, trouble: Option<&str>) -> Result<Answer, Refusal> {
    let nonce = nonce()?;
    let host = field(parts, &header::HOST).unwrap_or("this address");
    Ok(document(status, page::login(host, trouble, &nonce), &nonce))
}

/// A page whose scripts and styles are the two of this answer's nonce, and which nobody may frame or keep.
fn document(status: StatusCode, html: String, nonce: &str) -> Answer {
    let mut answer = full(status, "text/html; charset=utf-8", html);
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; \
         connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    );
    set(&mut answer, header::CONTENT_SECURITY_POLICY, &policy);
    set(&mut answer, header::CACHE_CONTROL, "no-store");
    set(&mut answer, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(&mut answer, header::REFERRER_POLICY, "same-origin");
    set(&mut answer, header::VARY, "Accept, Cookie");
    answer
}

/// 303, so that a reload of the page does not send the form again.
fn moved_to_front(parts: &Parts, cookie: &str, life: u64) -> Answer {
    let mut answer = full(
        StatusCode::SEE_OTHER,
        "text/plain; charset=utf-8",
        Bytes::new(),
    );
    let (name, secure) = (
        cookie_name(parts),
        if is_tls(parts) { "; Secure" } else { "" },
    );
    let cookie =
        format!("{name}={cookie}; Path=/; Max-Age={life}; HttpOnly; SameSite=Strict{secure}");
    set(&mut answer, header::SET_COOKIE, &cookie);
    set(&mut answer, header::LOCATION, "/");
    set(&mut answer, header::CACHE_CONTROL, "no-store");
    answer
}

fn set(answer: &mut Answer, name: HeaderName, value: &str) {
    // All of them are ASCII of our own making.
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().insert(name, value);
    }
}

fn field<'a>(parts: &'a Parts, name: &HeaderName) -> Option<&'a str> {
    parts.headers.get(name)?.to_str().ok()
}

pub(super) fn is_tls(parts: &Parts) -> bool {
    parts.extensions.get::<OverTls>().is_some()
}

/// Where the browser found us.
fn host(gateway: &Gateway, parts: &Parts) -> String {
    let named = field(parts, &header::HOST);
    named.map_or_else(|| gateway.config.listen.to_string(), str::to_owned)
}

/// Browsers share cookies between all ports of a host, so that two caches would log each other out.
fn cookie_name(parts: &Parts) -> String {
    let host = field(parts, &header::HOST).unwrap_or_default();
    let port = host.rsplit_once(':').map_or("", |(_, port)| port);
    let port: String = port.chars().filter(char::is_ascii_digit).collect();
    let prefix = if is_tls(parts) { "__Host-" } else { "" };
    format!("{prefix}sccache-dock-{port}")
}

fn cookie(parts: &Parts) -> Option<&str> {
    let name = cookie_name(parts);
    let fields = parts.headers.get_all(header::COOKIE).into_iter();
    let pairs = fields
        .filter_map(|field| field.to_str().ok())
        .flat_map(|field| field.split(';'));
    let mut values = pairs.filter_map(|pair| pair.trim().split_once('='));
    values
        .find(|(known, _)| *known == name)
        .map(|(_, value)| value)
}

fn nonce() -> Result<String, Refusal> {
    random::<16>().map(|random| URL_SAFE_NO_PAD.encode(random))
}

fn random<const LENGTH: usize>() -> Result<[u8; LENGTH], Refusal> {
    let mut random = [0; LENGTH];
    getrandom::fill(&mut random)
        .map_err(|cause| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", cause))?;
    Ok(random)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Request;

    fn parts(fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder();
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn token_is_taken_from_the_form_as_browsers_write_it() {
        for (body, expected) in [
            ("token=abc", "abc"),
            ("x=1&token=a%2Bb%26c%20", "a+b&c"),
            ("token=+abc%0A", "abc"),
            ("token=", ""),
            ("nothing", ""),
        ] {
            assert_eq!(token(body.as_bytes()), expected.as_bytes(), "{body}");
        }
    }

    #[test]
    fn cookie_is_the_one_of_our_port() {
        let fields = [
            ("host", "cache:4226"),
            (
                "cookie",
                "a=b; sccache-dock-4227=other; sccache-dock-4226=ours",
            ),
        ];
        assert_eq!(cookie(&parts(&fields)), Some("ours"));
        assert_eq!(cookie(&parts(&fields[1..])), None);
        let mut secure = parts(&fields);
        secure.extensions.insert(OverTls);
        assert_eq!(cookie(&secure), None, "set over plain HTTP");
    }

    #[test]
    fn forms_of_other_sites_are_refused() {
        let host = ("host", "cache:4226");
        for (fields, ours) in [
            (&[host][..], true),
            (&[host, ("origin", "http://cache:4226")], true),
            (&[host, ("sec-fetch-site", "same-origin")], true),
            (&[host, ("origin", "http://cache:4227")], false),
            (&[host, ("origin", "http://evil.example")], false),
            (&[host, ("origin", "null")], false),
            (&[host, ("sec-fetch-site", "cross-site")], false),
            (&[host, ("sec-fetch-site", "same-site")], false),
        ] {
            assert_eq!(
                from_our_own_page(&parts(fields)).is_ok(),
                ours,
                "{fields:?}"
            );
        }
    }
}
