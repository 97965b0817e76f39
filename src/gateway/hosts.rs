//! Under which names the cache is asked, where anyone may read. Pure.
//!
//! A page of a stranger's site can make a browser ask any machine that the browser reaches: its own name is made to
//! point there (DNS rebinding), and what comes back belongs to that page. The browser sends the stranger's name as
//! `Host`, and that alone gives it away: over plain HTTP such a request has no `Origin` and no `Sec-Fetch-Site`. So who
//! sends no token gets nothing under a name that a stranger could own. Those are names of the public DNS: addresses are
//! none, nor is a name without a dot, as those of containers and Compose services, nor one that is for private networks.
//! A request with a token is served under any name, because no stranger's page has one. One that came over TLS is, too:
//! the browser has seen a certificate of that name.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Last parts of names that the public DNS never has, by a standard or because they are in use everywhere: Docker's
/// `host.docker.internal`, `NAME.NAMESPACE.svc` and `svc.cluster.local` of Kubernetes.
const PRIVATE: [&str; 9] = [
    "localhost",
    "local",
    "internal",
    "svc",
    "lan",
    "home",
    "corp",
    "test",
    "home.arpa",
];

/// Names that are ours.
#[derive(Debug, Default)]
pub(super) struct Hosts(Vec<String>);

impl Hosts {
    /// `names` as in `SCCACHE_HOSTS`: `cache.example.com`, `*.example.com` for all below it, `*` for any.
    pub(super) fn new(names: impl IntoIterator<Item = String>) -> Hosts {
        let names = names.into_iter();
        Hosts(names.map(|name| name.to_ascii_lowercase()).collect())
    }

    /// Whether a `Host`, with a port or without, is ours.
    pub(super) fn is_ours(&self, host: &str) -> bool {
        let host = host.trim();
        if let Some(rest) = host.strip_prefix('[') {
            let literal = rest.split_once(']').map_or("", |(literal, _)| literal);
            return literal.parse::<Ipv6Addr>().is_ok();
        }
        let name = host.split_once(':').map_or(host, |(name, _)| name);
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        // Of an underscore no name of the DNS has one in its last part: Compose's networks.
        let last = name.rsplit('.').next().unwrap_or_default();
        !name.contains('.')
            || last.contains('_')
            || name.parse::<Ipv4Addr>().is_ok()
            || PRIVATE.iter().any(|private| is_below(&name, private))
            || self.0.iter().any(|ours| match ours.strip_prefix('*') {
                Some("") => true,
                Some(end) => is_below(&name, end.trim_start_matches('.')),
                None => name == *ours,
            })
    }
}

fn is_below(name: &str, end: &str) -> bool {
    let before = name.strip_suffix(end);
    before.is_some_and(|before| before.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_stranger_could_own_are_not_ours() {
        let hosts = Hosts::new(["Cache.Example.com", "*.team.example"].map(str::to_owned));
        for (host, ours) in [
            ("127.0.0.1:4226", true),
            ("[::1]:4226", true),
            ("[fe80::1]", true),
            ("192.168.1.4", true),
            ("localhost:4226", true),
            ("sccache", true),
            ("SCCACHE:4226", true),
            ("host.docker.internal:4226", true),
            ("cache.ci.svc", true),
            ("cache.ci.svc.cluster.local.", true),
            ("cache.project_default", true),
            ("nas.home.arpa", true),
            ("cache.example.com:4226", true),
            ("CACHE.example.COM.", true),
            ("a.b.team.example", true),
            ("", true),
            ("team.example", false),
            ("evilteam.example", false),
            ("cache.example.com.evil.org", false),
            ("evil.example.com", false),
            ("127.0.0.1.nip.io", false),
            ("localhost.evil.org:4226", false),
            ("internal.evil.org", false),
            ("evilinternal.org", false),
            ("cache.ci", false),
            ("1.2.3", false),
            ("[evil.org]", false),
            ("[::1", false),
            ("user@evil.org", false),
            ("\u{e9}vil.org", false),
        ] {
            assert_eq!(hosts.is_ours(host), ours, "{host}");
        }
        assert!(Hosts::new(["*".to_owned()]).is_ours("evil.org"));
    }
}
