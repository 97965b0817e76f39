//! `login --oidc`: exchanges the ID token that a CI service has made for its job for a session of a cache.
//!
//! Before sccache's daemon starts: that takes its token once. Sources: GitHub's page "OpenID Connect reference", GitLab's
//! page "ID token authentication".

use super::endpoint::Endpoint;
use super::proxy;
use crate::contract::gateway_status::LoginAnswer;
use crate::exit;
use clap::ValueEnum;
use serde::Deserialize;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

/// How long each of the two questions may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer.
const LONGEST: u64 = 64 << 10;
/// What sccache's client reads its token from.
const VARIABLE: &str = "SCCACHE_WEBDAV_TOKEN";
/// And where its cache is.
const ENDPOINT: &str = "SCCACHE_WEBDAV_ENDPOINT";
/// Where GitHub's runner gives out ID tokens, and with which secret.
const GITHUB: [&str; 2] = [
    "ACTIONS_ID_TOKEN_REQUEST_URL",
    "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
];

/// How the session's token is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// POSIX shell: eval "$(sccache-dock login --oidc ...)"
    Sh,
    /// For later steps of a GitHub job: written to "$GITHUB_ENV" and masked in the log
    Github,
    /// Only the token
    Token,
}

/// Arguments of `login`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// With the ID token of a CI job (OpenID Connect)
    #[arg(long, required = true)]
    oidc: bool,
    /// URL of the cache, such as https://build-cache:4226 [default: SCCACHE_WEBDAV_ENDPOINT]
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Audience of the ID token that GitHub issues [default: the endpoint]
    #[arg(long, value_name = "TEXT")]
    audience: Option<String>,
    /// Variable that holds the ID token, as GitLab sets it
    #[arg(long, value_name = "NAME", default_value = "SCCACHE_ID_TOKEN")]
    id_token_env: String,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Sh)]
    format: Format,
    /// Print JSON, regardless of --format
    #[arg(long)]
    pub json: bool,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The endpoint is no URL.
    #[error(transparent)]
    Endpoint(#[from] super::endpoint::BadEndpoint),
    /// Its certificate.
    #[error(transparent)]
    Certificate(#[from] super::tls::BadCertificate),
    /// Neither service has left a trace.
    #[error(
        "cannot find an ID token: {0} is not set, and this is no job of GitHub's that may ask for one\n\
         hint: on GitHub give the job `permissions: id-token: write`; on GitLab name the variable in `id_tokens:`"
    )]
    NoToken(String),
    /// GitHub.
    #[error("cannot get an ID token from GitHub's runner: {0}")]
    Github(String),
    /// The cache.
    #[error("cannot log in to {endpoint}: {cause}")]
    Cache {
        /// Where.
        endpoint: String,
        /// Why not.
        cause: String,
    },
    /// The output.
    #[error("cannot give the token: {0}")]
    Output(#[from] io::Error),
}

#[derive(Deserialize)]
struct GithubAnswer {
    value: String,
}

/// Logs in and gives the session's token.
///
/// # Errors
/// There is no ID token, or the cache does not take it.
pub fn run(args: &Args) -> Result<u8, Error> {
    let set = || std::env::var(ENDPOINT).ok();
    let endpoint = args.endpoint.clone().or_else(set).unwrap_or_default();
    let endpoint = Endpoint::parse(&endpoint)?.url;
    let audience = args.audience.as_deref().unwrap_or(&endpoint);
    let id_token = id_token(&args.id_token_env, audience)?;
    let fail = |cause: String| Error::Cache {
        endpoint: endpoint.clone(),
        cause,
    };
    // Sessions are the cache's, whatever folder the client's URL names.
    let scheme_end = endpoint.find("://").map_or(0, |at| at + 3);
    let host_end = endpoint[scheme_end..]
        .find('/')
        .map_or(endpoint.len(), |at| scheme_end + at);
    let agent = agent(&endpoint)?;
    let answer = proxy::or_direct(&endpoint[..host_end], |is_direct| {
        let mut request = agent.post(format!("{}/api/session", &endpoint[..host_end]));
        if is_direct {
            request = request.config().proxy(None).build();
        }
        request.send(id_token.trim())
    });
    let answer = answer.map_err(|error| fail(error.to_string()))?;
    let code = answer.status();
    let text = read(answer).map_err(&fail)?;
    if !code.is_success() {
        return Err(fail(format!("{code}: {}", text.trim())));
    }
    let session: LoginAnswer =
        serde_json::from_str(&text).map_err(|error| fail(error.to_string()))?;
    if args.json {
        // With the number of the schema in front, as the other commands print theirs.
        let value = serde_json::json!({"schema": 1, "session": session});
        writeln!(io::stdout(), "{value:#}")?;
        return Ok(exit::OK);
    }
    give(args.format, &session)?;
    let _ = writeln!(
        io::stderr(),
        "logged in as {}: {}",
        session.name,
        session.grants
    );
    Ok(exit::OK)
}

fn give(format: Format, session: &LoginAnswer) -> io::Result<()> {
    let (mut out, token) = (io::stdout().lock(), &session.token);
    match format {
        Format::Sh => writeln!(out, "export {VARIABLE}='{token}'"),
        Format::Token => writeln!(out, "{token}"),
        Format::Github => {
            // Masked first: from then on no line of the job's log shows it.
            writeln!(out, "::add-mask::{token}")?;
            let file = std::env::var_os("GITHUB_ENV").map(PathBuf::from);
            let file = file.ok_or_else(|| io::Error::other("GITHUB_ENV is not set"))?;
            let mut file = OpenOptions::new().append(true).create(true).open(file)?;
            writeln!(file, "{VARIABLE}={token}")
        }
    }
}

fn id_token(variable: &str, audience: &str) -> Result<String, Error> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if let Some(token) = set(variable) {
        return Ok(token);
    }
    let [Some(url), Some(secret)] = GITHUB.map(set) else {
        return Err(Error::NoToken(variable.to_owned()));
    };
    let asked = agent(&url)?
        .get(url)
        .query("audience", audience)
        .header("Authorization", format!("Bearer {secret}"))
        .call();
    let answer = asked.map_err(|error| Error::Github(error.to_string()))?;
    let code = answer.status();
    let text = read(answer).map_err(Error::Github)?;
    if !code.is_success() {
        return Err(Error::Github(format!("it answers {code}")));
    }
    let answer: Result<GithubAnswer, _> = serde_json::from_str(&text);
    Ok(answer
        .map_err(|error| Error::Github(error.to_string()))?
        .value)
}

fn read(mut answer: ureq::http::Response<ureq::Body>) -> Result<String, String> {
    let body = answer.body_mut().with_config().limit(LONGEST);
    body.read_to_string().map_err(|error| error.to_string())
}

/// For requests to the server of `url`.
fn agent(url: &str) -> Result<ureq::Agent, Error> {
    let tls = super::tls::config(super::tls::own_files()?.as_ref())?;
    let config = ureq::Agent::config_builder()
        .tls_config(tls)
        .timeout_global(Some(PATIENCE))
        .proxy(proxy::for_agent(&super::environment(), url))
        .http_status_as_error(false)
        // What is sent is for whom it is sent to.
        .max_redirects(0);
    Ok(config.build().into())
}
