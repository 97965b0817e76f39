//! The proxy between this client and a server, by the rules of sccache: those of the library that its HTTP client has. Our
//! own commands take the same way, so that they see what sccache sees.

use hyper::Uri;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::sync::Once;

const ALL: [&str; 2] = ["ALL_PROXY", "all_proxy"];

/// A proxy that takes the requests for a server.
#[derive(Debug, Clone)]
pub(crate) struct Between {
    /// The variable that names it.
    pub(crate) variable: &'static str,
    /// As it is set, perhaps with a password.
    given: String,
    /// Where it is, and what it is shown.
    pub(crate) proxy: Intercept,
}

/// The one before the server of `url`, if there is one in this environment.
pub(crate) fn between(environment: &BTreeMap<String, String>, url: &str) -> Option<Between> {
    // In a CGI script HTTP_PROXY may be a header of a stranger's request.
    if environment.contains_key("REQUEST_METHOD") {
        return None;
    }
    // The first name that is there counts, be it set to nothing.
    let of = |names: [&'static str; 2]| {
        let mut set = names.into_iter();
        set.find_map(|name| Some((name, environment.get(name)?.as_str())))
    };
    let target: Uri = url.parse().ok()?;
    let own = match target.scheme_str() {
        Some("https") => of(["HTTPS_PROXY", "https_proxy"]),
        _ => of(["HTTP_PROXY", "http_proxy"]),
    };
    let direct = of(["NO_PROXY", "no_proxy"]).map_or("", |it| it.1);
    let mut named = [own, of(ALL)].into_iter().flatten();
    // What is no URL of a proxy counts as not set.
    named.find_map(|(variable, given)| {
        let rules = Matcher::builder().all(given).no(direct).build();
        Some(Between {
            variable,
            given: given.to_owned(),
            proxy: rules.intercept(&target)?,
        })
    })
}

/// The same for a request of this process.
pub(crate) fn for_agent(environment: &BTreeMap<String, String>, url: &str) -> Option<ureq::Proxy> {
    between(environment, url)?.for_agent()
}

/// The answer to a request to `url`, which `send` makes through the proxy of its agent, by a tunnel. Many proxies refuse
/// tunnels to ports other than 443, though they take plain HTTP to them: `send(true)` then asks directly.
pub(crate) fn or_direct<T>(
    url: &str,
    send: impl Fn(bool) -> Result<T, ureq::Error>,
) -> Result<T, ureq::Error> {
    static SAID: Once = Once::new();
    match send(false) {
        Err(cause @ ureq::Error::ConnectProxyFailed(_)) if url.starts_with("http://") => {
            SAID.call_once(|| {
                let _ = writeln!(
                    io::stderr(),
                    "warning: the proxy makes no tunnel to {url} ({cause}): asking it directly\n\
                     hint: name its host in NO_PROXY"
                );
            });
            send(true)
        }
        answer => answer,
    }
}

impl Between {
    /// For a request of ours, which has a tunnel made for plain HTTP too.
    pub(crate) fn for_agent(&self) -> Option<ureq::Proxy> {
        ureq::Proxy::new(&self.given).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(url: &str, pairs: &[(&str, &str)]) -> Option<&'static str> {
        let pairs = pairs.iter();
        let owned = pairs.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        between(&owned.collect(), url).map(|it| it.variable)
    }

    #[test]
    fn proxy_is_the_one_that_sccache_takes() {
        let (plain, tls) = ("http://build-cache:4226", "https://build-cache");
        let http = ("http_proxy", "proxy:3128");
        assert_eq!(named(plain, &[http]), Some("http_proxy"));
        assert_eq!(named(tls, &[http]), None);
        let all = ("ALL_PROXY", "http://me:secret@proxy:3128");
        assert_eq!(named(tls, &[http, all]), Some("ALL_PROXY"));
        assert_eq!(named(plain, &[http, all]), Some("http_proxy"));
        let empty = ("HTTP_PROXY", "");
        assert_eq!(named(plain, &[http, empty]), None, "it beats the other");
        assert_eq!(named(plain, &[http, empty, all]), Some("ALL_PROXY"));
        assert_eq!(named(plain, &[http, ("REQUEST_METHOD", "GET")]), None);
        for (direct, is_named) in [
            ("localhost, build-cache", false),
            ("*", false),
            (".build-cache", false),
            ("cache", true),
            ("", true),
        ] {
            let found = named(plain, &[http, ("no_proxy", direct)]);
            assert_eq!(found.is_some(), is_named, "{direct:?}");
        }
        let both = [http, ("NO_PROXY", ""), ("no_proxy", "*")];
        assert_eq!(named(plain, &both), Some("http_proxy"));
    }
}
