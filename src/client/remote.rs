//! The gateway as a client's commands ask it: where it is, and its JSON.

use super::endpoint::Endpoint;
use super::{proxy, sccache_file};
use crate::base::secret::Secret;
use crate::contract::gateway_config::ClientCertificate;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::time::Duration;
use ureq::tls::TlsConfig;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest answer.
const LONGEST: u64 = 256 << 20;

/// A gateway.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    agent: ureq::Agent,
    tls: TlsConfig,
    proxy: Option<ureq::Proxy>,
    certificate: Option<ClientCertificate>,
    base: String,
    token: Option<Secret>,
    folder: String,
}

/// Why there was no answer that could be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Nothing says where it is.
    #[error(
        "no cache is set: neither SCCACHE_WEBDAV_ENDPOINT nor a config file names one\n\
         hint: eval the output of sccache-dock client-env in this shell, or name it with --endpoint"
    )]
    NotSet,
    /// It is not a URL.
    #[error("{0}")]
    Endpoint(super::endpoint::BadEndpoint),
    /// Its certificate.
    #[error(transparent)]
    Certificate(#[from] super::tls::BadCertificate),
    /// It is away.
    #[error("cannot ask {base}: {cause}\nhint: sccache-dock doctor looks for the reason")]
    Away {
        base: String,
        cause: Box<ureq::Error>,
    },
    /// It does not want to.
    #[error("{base} answers {code}: {text}")]
    Refused {
        base: String,
        code: u16,
        text: String,
    },
    /// It is older than this program, or something else.
    #[error(
        "cannot understand the answer of {base}: {cause}\nhint: the cache may be older than this program"
    )]
    Strange { base: String, cause: String },
}

/// The gateway that a client with this environment uses.
pub(crate) fn find(
    environment: &BTreeMap<String, String>,
    given: Option<&str>,
) -> Result<Remote, Error> {
    let seen = sccache_file::load(environment).map(|conf| conf.under(environment));
    let seen = seen.as_ref().unwrap_or(environment);
    let set = |name: &str| seen.get(name).filter(|it| !it.is_empty()).cloned();
    let own_port = || {
        // Clients that speak sccache's own protocol reach the same port.
        set("SCCACHE_CLIENT_SIDE")?;
        Some(format!("http://127.0.0.1:{}", set("SCCACHE_SERVER_PORT")?))
    };
    let endpoint = given
        .map(str::to_owned)
        .or_else(|| set("SCCACHE_WEBDAV_ENDPOINT"))
        .or_else(own_port)
        .ok_or(Error::NotSet)?;
    let endpoint = Endpoint::parse(&endpoint).map_err(Error::Endpoint)?;
    // A password is as good: the cache takes it for the token. Sccache sends it where there is no token.
    let token = set("SCCACHE_WEBDAV_TOKEN").or_else(|| set("SCCACHE_WEBDAV_PASSWORD"));
    let token = token.map(|token| Secret::new(&token));
    let certificate = super::tls::own_files()?;
    let tls = super::tls::config(certificate.as_ref())?;
    let proxy = proxy::for_agent(seen, &endpoint.url);
    Ok(Remote {
        agent: agent(&tls, proxy.as_ref(), Some(TIMEOUT)),
        tls,
        proxy,
        certificate,
        // The cache's own pages are at its root, whatever path its blobs have.
        base: endpoint.with_port(endpoint.port),
        token,
        folder: [
            endpoint.path(),
            &set("SCCACHE_WEBDAV_KEY_PREFIX").unwrap_or_default(),
        ]
        .map(|part| part.trim_matches('/'))
        .join("/")
        .trim_matches('/')
        .to_owned(),
    })
}

fn agent(tls: &TlsConfig, proxy: Option<&ureq::Proxy>, limit: Option<Duration>) -> ureq::Agent {
    ureq::Agent::config_builder()
        .tls_config(tls.clone())
        .http_status_as_error(false)
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_global(limit)
        .proxy(proxy.cloned())
        .max_redirects(0)
        .build()
        .into()
}

impl Remote {
    /// Its URL, without a path.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// What this client shows it.
    pub(crate) fn token(&self) -> Option<&Secret> {
        self.token.as_ref()
    }

    /// The certificate that it is shown, if it is one of `https://`.
    pub(crate) fn certificate(&self) -> Option<&ClientCertificate> {
        (self.certificate.as_ref()).filter(|_| self.base.starts_with("https://"))
    }

    /// The folder of this client's entries, empty or such as `team/x`.
    pub(crate) fn folder(&self) -> &str {
        &self.folder
    }

    /// The same with more patience.
    pub(crate) fn within(&self, limit: Duration) -> Remote {
        Remote {
            agent: agent(&self.tls, self.proxy.as_ref(), Some(limit)),
            ..self.clone()
        }
    }

    /// The same for an answer that may take any time.
    pub(crate) fn without_limit(&self) -> Remote {
        Remote {
            agent: agent(&self.tls, self.proxy.as_ref(), None),
            ..self.clone()
        }
    }

    /// Posts a value, and gives what is answered.
    pub(crate) fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        value: &impl Serialize,
    ) -> Result<T, Error> {
        let mut body = self.send(path, value)?;
        let text = body.with_config().limit(LONGEST).read_to_string();
        let text = text.map_err(|cause| self.away(cause))?;
        serde_json::from_str(&text).map_err(|cause| Error::Strange {
            base: self.base.clone(),
            cause: cause.to_string(),
        })
    }

    /// Posts a value, and gives the body of the answer.
    pub(crate) fn send(&self, path: &str, value: &impl Serialize) -> Result<ureq::Body, Error> {
        let body = serde_json::to_vec(value).map_err(|cause| Error::Strange {
            base: self.base.clone(),
            cause: cause.to_string(),
        })?;
        let response = proxy::or_direct(&self.base, |is_direct| {
            let mut request = self.agent.post(format!("{}{path}", self.base));
            if is_direct {
                request = request.config().proxy(None).build();
            }
            request = request.header("Content-Type", "application/json");
            if let Some(token) = &self.token {
                request = request.header("Authorization", format!("Bearer {}", token.reveal()));
            }
            request.send(&body[..])
        });
        let response = response.map_err(|cause| self.away(cause))?;
        let code = response.status().as_u16();
        let mut body = response.into_body();
        if code == 200 {
            return Ok(body);
        }
        let text = body.with_config().limit(1024).read_to_string();
        Err(Error::Refused {
            base: self.base.clone(),
            code,
            text: text.unwrap_or_default().trim().to_owned(),
        })
    }

    fn away(&self, cause: ureq::Error) -> Error {
        Error::Away {
            base: self.base.clone(),
            cause: Box::new(cause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::net::TcpListener;
    use std::sync::mpsc;

    fn found(pairs: &[(&str, &str)]) -> Result<(String, bool), String> {
        let pairs = pairs.iter();
        let environment = pairs
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let found = find(&environment, None);
        found
            .map(|it| (it.base, it.token.is_some()))
            .map_err(|cause| cause.to_string())
    }

    /// Answers each request with the first line of `answer`, and tells what was asked.
    fn server(answer: &'static str) -> (std::net::SocketAddr, mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (tell, asked) = mpsc::channel();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut head = String::new();
                let mut lines = BufReader::new(stream.try_clone().unwrap());
                while lines.read_line(&mut head).unwrap() > 2 {}
                let length = head.lines().find_map(|it| {
                    let (name, value) = it.split_once(": ")?;
                    let is_it = name.eq_ignore_ascii_case("content-length");
                    is_it.then(|| value.parse().unwrap())
                });
                let mut body = vec![0; length.unwrap_or(0)];
                lines.read_exact(&mut body).unwrap();
                let _ = tell.send(head.lines().next().unwrap_or_default().to_owned());
                let rest = "Content-Length: 2\r\nConnection: close\r\n\r\n{}";
                let _ = write!(stream, "HTTP/1.1 {answer}\r\n{rest}");
            }
        });
        (address, asked)
    }

    #[test]
    fn proxy_that_makes_no_tunnel_is_not_in_the_way_of_plain_http() {
        let (cache, at_cache) = server("200 OK");
        let (proxy, at_proxy) = server("403 Forbidden");
        let environment = [
            ("SCCACHE_WEBDAV_ENDPOINT", format!("http://{cache}")),
            ("http_proxy", format!("http://{proxy}")),
        ];
        let environment = environment
            .map(|(name, value)| (name.to_owned(), value))
            .into();
        let remote = find(&environment, None).unwrap();
        let answer: serde_json::Value = remote.post("/x", &"text").unwrap();
        assert_eq!(answer, serde_json::json!({}));
        let asked = at_proxy.recv().unwrap();
        assert_eq!(asked, format!("CONNECT {cache} HTTP/1.1"));
        assert_eq!(at_cache.recv().unwrap(), "POST /x HTTP/1.1");
    }

    #[test]
    fn gateway_is_the_one_that_sccache_uses() {
        let endpoint = ("SCCACHE_WEBDAV_ENDPOINT", "http://cache:4226/team");
        let at = |base: &str, token| Ok((base.to_owned(), token));
        assert_eq!(found(&[endpoint]), at("http://cache:4226", false));
        let token = ("SCCACHE_WEBDAV_TOKEN", "x");
        assert_eq!(found(&[endpoint, token]), at("http://cache:4226", true));
        let password = ("SCCACHE_WEBDAV_PASSWORD", "x");
        assert_eq!(found(&[endpoint, password]), at("http://cache:4226", true));
        let own = [
            ("SCCACHE_CLIENT_SIDE", "1"),
            ("SCCACHE_SERVER_PORT", "4300"),
        ];
        assert_eq!(found(&own), at("http://127.0.0.1:4300", false));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config");
        std::fs::write(
            &file,
            "[cache.webdav]\nendpoint = 'https://c'\ntoken = 'y'\n",
        )
        .unwrap();
        let conf = ("SCCACHE_CONF", file.to_str().unwrap());
        assert_eq!(found(&[conf]), at("https://c:443", true));
        let text = "[cache.webdav]\nendpoint = 'https://c'\nusername = 'me'\npassword = 'y'\n";
        std::fs::write(&file, text).unwrap();
        assert_eq!(found(&[conf]), at("https://c:443", true));
        assert!(found(&[]).unwrap_err().contains("client-env"));
        let user = ("SCCACHE_WEBDAV_ENDPOINT", "http://me:hunter2@cache:4226");
        let said = found(&[user]).unwrap_err();
        assert!(said.contains("http://***@cache:4226"), "{said}");
    }
}
