//! The client's certificate, which our own commands present and sccache itself cannot.

use super::http::Http;
use super::probe::{NO_TOKEN, PROBE_TEXT, Place};
use super::{Check, Environment, Verdict};
use crate::client::tls;
use std::path::PathBuf;

const WHAT: &str = "client certificate";

/// Tries what the certificate alone is good for at the gateway, after it was asked without one; `checks` is what was found
/// then. Adds nothing if the environment names no certificate.
pub(super) fn judge(place: &Place, environment: &Environment, checks: &mut Vec<Check>) {
    let (endpoint, probe) = (&place.endpoint, &place.probe());
    let set = |name: &str| environment.get(name).map(PathBuf::from);
    let files = match tls::files(set) {
        Ok(None) => return,
        Ok(Some(files)) => files,
        Err(cause) => return checks.push(unusable(&cause)),
    };
    let tls = match tls::config(Some(&files)) {
        Ok(tls) => tls,
        Err(cause) => return checks.push(unusable(&cause)),
    };
    let name = files.cert.display();
    if !endpoint.tls {
        let found = format!("{name} is not presented: the endpoint says http");
        let hint = "use https:// if the cache has a certificate of its own";
        return checks.push(Check::warn(WHAT, found, hint));
    }
    let failed = |what: &str| {
        let mut of_it = checks.iter().filter(|check| check.what == what);
        of_it.any(|check| check.verdict == Verdict::Fail)
    };
    if failed("connection") || failed("certificate") {
        return;
    }
    let needs_one = failed("gateway");
    // Without a token: that would decide in place of the certificate.
    let http = Http::with(&endpoint.url, None, tls, None);
    let check = match http.get(probe) {
        Ok(answer) if [200, 404].contains(&answer.code) => {
            let may = match http.put(probe, PROBE_TEXT) {
                Ok(200 | 201 | 204) => "may read and write",
                Ok(_) | Err(_) => "may read",
            };
            let found = format!("{name} {may}");
            if needs_one {
                let found = format!("{found}, and nobody gets an answer without one");
                let hint = "sccache itself presents none: build by sccache-dock build --prefetch, which does, or let the \
                            server answer without one";
                Check::fail(WHAT, found, hint)
            } else {
                Check::ok(WHAT, found)
            }
        }
        Ok(answer) => {
            let said = answer.body.trim();
            let found = format!("{name} grants nothing ({}): {said}", answer.code);
            let hint = "on the cache's host: SCCACHE_TLS_CLIENT_CA, and a table of SCCACHE_TOKENS_FILE with this certificate";
            Check::fail(WHAT, found, hint)
        }
        Err(error) => {
            let found = format!("{} refuses {name}: {error}", endpoint.url);
            let hint = "the cache's log says why: it has expired, or SCCACHE_TLS_CLIENT_CA there does not name its authority";
            Check::fail(WHAT, found, hint)
        }
    };
    let token = checks.iter_mut().find(|check| check.found == NO_TOKEN);
    if let (Verdict::Ok, Some(token)) = (check.verdict, token) {
        let found = format!("{NO_TOKEN}: sccache itself presents no certificate");
        let hint =
            "build by sccache-dock build --prefetch, which presents it, or set a token as well";
        *token = Check::warn("token", found, hint);
    }
    checks.push(check);
}

fn unusable(cause: &tls::BadCertificate) -> Check {
    let cause = cause.to_string();
    let (found, hint) = cause.split_once("\nhint: ").unwrap_or((&cause, ""));
    Check::fail(WHAT, found, hint)
}
