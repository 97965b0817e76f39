//! Who may do what: tokens of HTTP requests and peers of sccache's own protocol. Pure but for one edge,
//! [`default_gateways`], which reads the kernel's routing table.

use crate::base::secret::Secret;
use crate::contract::gateway_config::{Config, IpcPolicy};
use crate::contract::key::shown_namespace;
use crate::contract::tokens::{Grant, Named};
use crate::gateway::sessions::Sessions;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

/// What an HTTP request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Reads blobs, metrics or the status.
    Read,
    /// Changes the store.
    Write,
    /// Is a builder of the cluster.
    Build,
}

/// The answer to a request with given credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Allowed,
    /// No token, or one that nobody handed out: 401.
    Unauthorized,
    /// A token that may not do this: 403.
    Forbidden,
    /// No token, under a name that is not ours: 421.
    Misdirected,
}

/// What was done with one token.
#[derive(Debug, Default)]
pub struct Uses {
    /// Requests that came with it.
    pub requests: AtomicU64,
    /// Blobs found.
    pub hits: AtomicU64,
    /// Blobs asked for that are not there.
    pub misses: AtomicU64,
    /// Bytes of blobs taken from the client.
    pub received_bytes: AtomicU64,
    /// Bytes of blobs sent to the client.
    pub sent_bytes: AtomicU64,
    /// Requests that the token does not allow.
    pub refusals: AtomicU64,
}

/// One token, as a digest: all are of one length, so comparing them leaks neither a token's text nor its length.
#[derive(Debug)]
struct Entry {
    name: String,
    /// `None` for those who need no token.
    digest: Option<[u8; 32]>,
    grant: Grant,
    namespaces: Option<Vec<String>>,
    uses: Arc<Uses>,
}

/// The tokens in force. They can be replaced while requests are judged.
#[derive(Debug)]
pub struct Access {
    /// Those of the configuration, which stay.
    fixed: Vec<Arc<Entry>>,
    // A lock for the time of a copy of the pointer.
    entries: RwLock<Arc<Vec<Arc<Entry>>>>,
    anonymous: Option<Arc<Entry>>,
    sessions: Sessions,
}

impl Access {
    /// Takes over the tokens of `config`. `logins` is what [`Access::logins`] gave before; `secret` must be new each time.
    pub fn new(config: &Config, logins: Option<&str>, secret: [u8; 32]) -> Access {
        let (writers, readers) = (Arc::<Uses>::default(), Arc::<Uses>::default());
        let entry = |name: &str, digest, grant, uses: &Arc<Uses>| {
            Arc::new(Entry {
                name: name.to_owned(),
                digest,
                grant,
                namespaces: None,
                uses: Arc::clone(uses),
            })
        };
        let mut fixed = Vec::new();
        for (name, tokens, grant, uses) in [
            ("auth", &config.write_tokens, Grant::Write, &writers),
            ("read", &config.read_tokens, Grant::Read, &readers),
        ] {
            let digests = tokens.iter().map(|token| digest(token.reveal().as_bytes()));
            fixed.extend(digests.map(|digest| entry(name, Some(digest), grant, uses)));
        }
        let anonymous = config
            .anonymous_read
            .then(|| entry("anonymous", None, Grant::Read, &Arc::default()));
        let own = fixed.iter().filter(|entry| entry.name == "auth");
        let own = own.filter_map(|entry| entry.digest.as_ref());
        Access {
            sessions: Sessions::new(own, logins, secret),
            entries: RwLock::new(Arc::new(fixed.clone())),
            fixed,
            anonymous,
        }
    }

    /// Puts `named` beside the tokens of the configuration, instead of those that were there before. Who keeps the
    /// name keeps the counters.
    ///
    /// # Errors
    /// The name of the one that is a token of the configuration too; nothing has changed then.
    pub fn replace(&self, named: &[Named]) -> Result<(), String> {
        let before = self.entries();
        let mut entries = self.fixed.clone();
        for one in named {
            let digest = digest(one.token.reveal().as_bytes());
            if let Some(same) = self.fixed.iter().find(|fixed| fixed.digest == Some(digest)) {
                return Err(format!(
                    "\"{}\" is the same token as \"{}\"",
                    one.name, same.name
                ));
            }
            let known = before.iter().find(|entry| entry.name == one.name);
            entries.push(Arc::new(Entry {
                name: one.name.clone(),
                digest: Some(digest),
                grant: one.access,
                namespaces: one.namespaces.clone(),
                uses: known.map_or_else(Arc::default, |entry| Arc::clone(&entry.uses)),
            }));
        }
        *self.entries.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(entries);
        Ok(())
    }

    fn entries(&self) -> Arc<Vec<Arc<Entry>>> {
        Arc::clone(&self.entries.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Who sends this `Authorization` header: `Bearer TOKEN`, or `Basic` with any user name and the token as password.
    pub fn caller(&self, authorization: Option<&[u8]>) -> Caller {
        let token = authorization.and_then(token);
        let found = token.as_deref().and_then(|token| self.find(token));
        Caller {
            entry: found.or_else(|| self.anonymous.clone()),
            has_sent_a_token: token.is_some(),
            is_misdirected: false,
        }
    }

    /// Who logs in with this token; what everybody may do does not count here.
    pub fn holder(&self, token: &[u8]) -> Caller {
        Caller {
            entry: self.find(token),
            has_sent_a_token: true,
            is_misdirected: false,
        }
    }

    fn find(&self, token: &[u8]) -> Option<Arc<Entry>> {
        let token = digest(token);
        let entries = self.entries();
        let same = entries.iter();
        choose(
            &entries,
            same.map(|entry| entry.digest.unwrap_or_default().ct_eq(&token)),
        )
    }

    /// A cookie that stands for the caller's token; `None` where there is none. `random` must be new each time.
    pub fn begin_session(
        &self,
        caller: &Caller,
        now_unix: u64,
        random: [u8; 16],
    ) -> Option<String> {
        let digest = caller.entry.as_ref()?.digest?;
        Some(self.sessions.begin(&digest, now_unix, random))
    }

    /// Whose token this cookie stands for, with all that this token is good for now.
    pub fn session(&self, cookie: &[u8], now_unix: u64) -> Option<Caller> {
        let entries = self.entries();
        let tokens = entries.iter();
        let same = self.sessions.check(
            cookie,
            now_unix,
            tokens.map(|entry| entry.digest.unwrap_or_default()),
        );
        Some(Caller {
            entry: Some(choose(&entries, same.into_iter())?),
            has_sent_a_token: true,
            is_misdirected: false,
        })
    }

    /// Lets a cookie be good no more; `secret` must be new each time. One that was not good to begin with takes up no
    /// room. Whether there is news for [`Access::logins`].
    pub fn end_session(&self, cookie: &[u8], now_unix: u64, secret: [u8; 32]) -> bool {
        let is_good = self.session(cookie, now_unix).is_some();
        if is_good {
            self.sessions.end(cookie, now_unix, secret);
        }
        is_good
    }

    /// What must be kept so that logins, and log-outs, outlive the process. It is a secret.
    pub fn logins(&self) -> String {
        self.sessions.text()
    }

    /// Judges an `Authorization` header where no namespace is asked for; a token of some namespaces only is refused.
    pub fn check(&self, authorization: Option<&[u8]>, need: Need) -> Verdict {
        match self.caller(authorization) {
            caller if caller.is_restricted() => Verdict::Forbidden,
            caller => caller.may(need),
        }
    }

    /// What was done with each token in force, by name.
    pub fn uses(&self) -> Vec<(String, Arc<Uses>)> {
        let entries = self.entries();
        let all = entries.iter().chain(&self.anonymous);
        let mut uses: Vec<_> = all
            .map(|entry| (entry.name.clone(), Arc::clone(&entry.uses)))
            .collect();
        uses.dedup_by(|one, other| one.0 == other.0);
        uses
    }
}

/// Who sends a request, as far as its token tells.
#[derive(Debug, Clone)]
pub struct Caller {
    entry: Option<Arc<Entry>>,
    has_sent_a_token: bool,
    is_misdirected: bool,
}

impl Caller {
    /// The same, who has asked under a name that is not ours: without a token nobody may read there.
    pub fn misdirected(self) -> Caller {
        let is_misdirected = self.is_anonymous();
        Caller {
            is_misdirected,
            ..self
        }
    }

    /// What the token allows, wherever.
    pub fn may(&self, need: Need) -> Verdict {
        match (&self.entry, need) {
            (None, _) => Verdict::Unauthorized,
            (Some(_), Need::Read) if self.is_misdirected => Verdict::Misdirected,
            (Some(entry), Need::Write | Need::Build) if entry.digest.is_none() => {
                Verdict::Unauthorized
            }
            (Some(entry), need) => match (entry.grant, need) {
                (Grant::Read | Grant::Write, Need::Read)
                | (Grant::Write, Need::Write)
                | (Grant::Build, Need::Build) => Verdict::Allowed,
                (Grant::Read, Need::Write | Need::Build)
                | (Grant::Write, Need::Build)
                | (Grant::Build, Need::Read | Need::Write) => Verdict::Forbidden,
            },
        }
    }

    /// Whether the token is good for this namespace, empty for the default one.
    pub fn may_use(&self, namespace: &str) -> bool {
        let namespace = shown_namespace(namespace);
        let allowed = self
            .entry
            .as_ref()
            .and_then(|entry| entry.namespaces.as_ref());
        allowed.is_none_or(|allowed| {
            allowed.iter().any(|one| {
                let below = namespace.strip_prefix(one.as_str());
                below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
            })
        })
    }

    /// Whether it is one of those who may read without a token.
    pub fn is_anonymous(&self) -> bool {
        self.entry
            .as_ref()
            .is_some_and(|entry| entry.digest.is_none())
    }

    /// Whether the token is good for some namespaces only.
    pub fn is_restricted(&self) -> bool {
        self.entry
            .as_ref()
            .is_some_and(|entry| entry.namespaces.is_some())
    }

    /// The namespaces that the token is good for; `None` for all.
    pub fn namespaces(&self) -> Option<&[String]> {
        self.entry.as_ref()?.namespaces.as_deref()
    }

    /// Whether a token came, right or wrong.
    pub fn has_sent_a_token(&self) -> bool {
        self.has_sent_a_token
    }

    /// The token's name; `None` without a token.
    pub fn name(&self) -> Option<&str> {
        self.entry.as_ref().map(|entry| entry.name.as_str())
    }

    /// Adds `count` to one of the token's figures.
    pub fn count(&self, figure: impl FnOnce(&Uses) -> &AtomicU64, count: u64) {
        if let Some(entry) = &self.entry {
            figure(&entry.uses).fetch_add(count, Relaxed);
        }
    }
}

/// The entry that was found to be the same. All are looked at, so that the time says nothing about which one matched.
fn choose(entries: &[Arc<Entry>], same: impl Iterator<Item = Choice>) -> Option<Arc<Entry>> {
    let mut place = u32::MAX;
    for (index, same) in (0_u32..).zip(same) {
        place = u32::conditional_select(&place, &index, same);
    }
    entries.get(usize::try_from(place).ok()?).cloned()
}

/// Is `given` the secret? The time it takes says nothing about either.
pub fn is_same(secret: &Secret, given: &[u8]) -> bool {
    bool::from(digest(secret.reveal().as_bytes()).ct_eq(&digest(given)))
}

fn digest(token: &[u8]) -> [u8; 32] {
    *blake3::hash(token).as_bytes()
}

/// The token of an `Authorization` header.
fn token(header: &[u8]) -> Option<Vec<u8>> {
    let space = header.iter().position(|&byte| byte == b' ')?;
    let (scheme, rest) = (&header[..space], header[space..].trim_ascii());
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(rest.to_vec());
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let decoded = STANDARD.decode(rest).ok()?;
    let colon = decoded.iter().position(|&byte| byte == b':')?;
    Some(decoded[colon + 1..].to_vec())
}

/// May the peer `peer`, connected to our address `local`, speak sccache's own protocol on the TCP port?
/// `gateways` is asked only when it matters.
pub fn may_speak_ipc(
    policy: &IpcPolicy,
    peer: IpAddr,
    local: IpAddr,
    gateways: impl FnOnce() -> Vec<Ipv4Addr>,
) -> bool {
    let ourselves = is_ourselves(peer, local);
    let peer = peer.to_canonical();
    match policy {
        IpcPolicy::Off => false,
        IpcPolicy::Local => ourselves,
        IpcPolicy::Beyond { bridge, networks } => {
            ourselves
                || networks.iter().any(|network| network.contains(&peer))
                || *bridge && gateways().into_iter().any(|gateway| peer == gateway)
        }
    }
}

/// Is `peer` this very machine (or container)? Its address is loopback, or the one that it connected to.
pub fn is_ourselves(peer: IpAddr, local: IpAddr) -> bool {
    let (peer, local) = (peer.to_canonical(), local.to_canonical());
    peer.is_loopback() || peer == local
}

/// Who may speak sccache's own protocol on the port, in words.
pub fn describe_ipc(policy: &IpcPolicy, gateways: impl FnOnce() -> Vec<Ipv4Addr>) -> String {
    let (bridge, networks) = match policy {
        IpcPolicy::Off => return "nobody (SCCACHE_IPC=off)".to_owned(),
        IpcPolicy::Local => (false, &[][..]),
        IpcPolicy::Beyond { bridge, networks } => (*bridge, networks.as_slice()),
    };
    let mut text = "this machine or container itself".to_owned();
    if bridge {
        let gateways: Vec<String> = gateways().iter().map(Ipv4Addr::to_string).collect();
        text += &format!(
            ", and whoever comes from its default gateway {}, which is the Docker host and everybody whom Docker's proxy \
             forwards (\"bridge\" in SCCACHE_IPC: right only where the port is published on loopback)",
            gateways.join(", ")
        );
    }
    for network in networks {
        text += &format!(", and {network}");
    }
    text
}

/// The default gateways of this network namespace: a published port shows the host under that address.
pub fn default_gateways() -> Vec<Ipv4Addr> {
    std::fs::read_to_string("/proc/net/route")
        .map(|table| parse_routes(&table))
        .unwrap_or_default()
}

/// The gateways of the default routes in the text of `/proc/net/route`.
pub fn parse_routes(table: &str) -> Vec<Ipv4Addr> {
    const FLAG_GATEWAY: u32 = 0x2;
    let mut gateways = Vec::new();
    for line in table.lines().skip(1) {
        let columns: Vec<&str> = line.split_ascii_whitespace().collect();
        let (Some(destination), Some(gateway), Some(flags), Some(mask)) = (
            hex(&columns, 1),
            hex(&columns, 2),
            hex(&columns, 3),
            hex(&columns, 7),
        ) else {
            continue;
        };
        if destination == 0 && mask == 0 && flags & FLAG_GATEWAY != 0 && gateway != 0 {
            // The kernel prints the address's bytes as one number of the machine's own byte order.
            gateways.push(Ipv4Addr::from(gateway.to_ne_bytes()));
        }
    }
    gateways
}

fn hex(columns: &[&str], index: usize) -> Option<u32> {
    u32::from_str_radix(columns.get(index)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn access(anonymous_read: bool) -> Access {
        let config = Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            socket: "/s".into(),
            store_dir: "/c".into(),
            budget_bytes: 0,
            policies: Default::default(),
            ipc: IpcPolicy::Off,
            server_socket: "/t".into(),
            sccache: None,
            control_socket: None,
            write_tokens: vec![Secret::new("writer"), Secret::new("writer2")],
            read_tokens: vec![Secret::new("reader")],
            anonymous_read,
            hosts: Vec::new(),
            tokens_file: None,
            tls: None,
            drain: Duration::ZERO,
            dist: None,
            upstream: None,
        };
        Access::new(&config, None, [9; 32])
    }

    fn named(name: &str, token: &str, access: Grant, namespaces: Option<&[&str]>) -> Named {
        Named {
            name: name.to_owned(),
            token: Secret::new(token),
            access,
            namespaces: namespaces.map(|list| list.iter().map(|&one| one.to_owned()).collect()),
        }
    }

    fn basic(user: &str, password: &str) -> String {
        format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
    }

    #[test]
    fn matrix_of_credentials_and_needs() {
        use Verdict::{Allowed, Forbidden, Unauthorized};
        let matrix = [
            (Some("Bearer writer".to_owned()), Allowed, Allowed),
            (Some("bearer  writer2".to_owned()), Allowed, Allowed),
            (Some(basic("any:one", "writer")), Unauthorized, Unauthorized),
            (Some(basic("anyone", "writer")), Allowed, Allowed),
            (Some(basic("", "reader")), Allowed, Forbidden),
            (Some("Bearer reader".to_owned()), Allowed, Forbidden),
            (Some("Bearer write".to_owned()), Unauthorized, Unauthorized),
            (Some("Bearer ".to_owned()), Unauthorized, Unauthorized),
            (Some("Basic !!".to_owned()), Unauthorized, Unauthorized),
            (Some("Digest writer".to_owned()), Unauthorized, Unauthorized),
            (None, Unauthorized, Unauthorized),
        ];
        for (header, read, write) in matrix {
            let bytes = header.as_deref().map(str::as_bytes);
            assert_eq!(
                access(false).check(bytes, Need::Read),
                read,
                "{header:?} reads"
            );
            assert_eq!(
                access(false).check(bytes, Need::Write),
                write,
                "{header:?} writes"
            );
            assert_eq!(
                access(true).check(bytes, Need::Read),
                Allowed,
                "{header:?} reads anonymously"
            );
            assert_eq!(
                access(true).check(bytes, Need::Write),
                write,
                "{header:?} writes"
            );
        }
    }

    #[test]
    fn old_and_new_token_are_valid_together_and_the_old_one_ends() {
        let access = access(false);
        let caller = |token: &str| access.caller(Some(format!("Bearer {token}").as_bytes()));
        let old = named("ci-1", "old", Grant::Write, None);
        let new = named("ci-2", "new", Grant::Read, None);
        access.replace(&[old.clone(), new.clone()]).unwrap();
        assert_eq!(caller("old").may(Need::Write), Verdict::Allowed);
        assert_eq!(caller("new").may(Need::Write), Verdict::Forbidden);
        caller("new").count(|uses| &uses.hits, 3);
        assert_eq!(
            access
                .replace(&[named("x", "reader", Grant::Write, None)])
                .unwrap_err(),
            "\"x\" is the same token as \"read\""
        );
        assert_eq!(
            caller("old").may(Need::Read),
            Verdict::Allowed,
            "a fault changes nothing"
        );
        access.replace(&[new]).unwrap();
        assert_eq!(caller("old").may(Need::Read), Verdict::Unauthorized);
        let names: Vec<_> = access
            .uses()
            .into_iter()
            .map(|(name, uses)| (name, uses.hits.load(Relaxed)))
            .collect();
        assert_eq!(
            names,
            [
                ("auth".to_owned(), 0),
                ("read".to_owned(), 0),
                ("ci-2".to_owned(), 3)
            ]
        );
    }

    #[test]
    fn token_of_a_namespace_ends_at_its_borders() {
        let access = access(false);
        access
            .replace(&[
                named("team", "team", Grant::Write, Some(&["team", "docs/main"])),
                named("plain", "plain", Grant::Write, Some(&["default"])),
            ])
            .unwrap();
        for (token, namespace, expected) in [
            ("team", "team", true),
            ("team", "team/x", true),
            ("team", "teams", false),
            ("team", "docs", false),
            ("team", "docs/main", true),
            ("team", "", false),
            ("plain", "", true),
            ("plain", "team", false),
            ("writer", "team", true),
            ("writer", "", true),
        ] {
            let caller = access.caller(Some(format!("Bearer {token}").as_bytes()));
            assert_eq!(caller.may_use(namespace), expected, "{token} {namespace:?}");
        }
        assert_eq!(
            access.check(Some(b"Bearer team"), Need::Read),
            Verdict::Forbidden
        );
    }

    #[test]
    fn local_peers_are_loopback_and_ourselves_and_others_must_be_named() {
        let check = |policy: &IpcPolicy, peer: &str| {
            may_speak_ipc(
                policy,
                peer.parse().unwrap(),
                "172.17.0.2".parse().unwrap(),
                || vec![Ipv4Addr::new(172, 17, 0, 1)],
            )
        };
        let bridge = IpcPolicy::Beyond {
            bridge: true,
            networks: Vec::new(),
        };
        let networks = IpcPolicy::Beyond {
            bridge: false,
            networks: vec!["10.0.0.0/8".parse().unwrap()],
        };
        for (peer, local, by_bridge, by_network) in [
            ("127.0.0.1", true, true, true),
            ("127.8.8.8", true, true, true),
            ("::1", true, true, true),
            ("::ffff:127.0.0.1", true, true, true),
            ("172.17.0.2", true, true, true),
            ("172.17.0.1", false, true, false),
            ("::ffff:172.17.0.1", false, true, false),
            ("172.17.0.3", false, false, false),
            ("2001:db8::1", false, false, false),
            ("10.1.2.3", false, false, true),
            ("::ffff:10.1.2.3", false, false, true),
        ] {
            assert_eq!(check(&IpcPolicy::Local, peer), local, "{peer}");
            assert_eq!(check(&bridge, peer), by_bridge, "{peer}");
            assert_eq!(check(&networks, peer), by_network, "{peer}");
            assert!(!check(&IpcPolicy::Off, peer), "{peer}");
        }
    }

    #[test]
    fn default_gateway_is_read_from_the_routing_table() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
            eth0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0\n";
        let expected = u32::from_str_radix("010011AC", 16).unwrap().to_ne_bytes();
        assert_eq!(parse_routes(table), [Ipv4Addr::from(expected)]);
    }

    proptest! {
        #[test]
        fn any_header_and_any_table_are_judged(header in proptest::collection::vec(any::<u8>(), 0..64), table in ".{0,200}") {
            let _ = parse_routes(&table);
            prop_assert_ne!(access(false).check(Some(&header), Need::Write), Verdict::Allowed);
        }
    }
}
