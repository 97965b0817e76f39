//! Requests to one server as the doctor makes them, each bounded in time, and what it means when TLS refuses.

use super::Check;
use crate::base::secret::Secret;
use crate::client::endpoint::Endpoint;
use crate::client::tls;
use rustls::CertificateError as Cause;
use std::time::Duration;
use ureq::tls::TlsConfig;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Requests to one server, each bounded in time.
pub(super) struct Http<'a> {
    agent: ureq::Agent,
    base: String,
    pub(super) token: Option<&'a Secret>,
}

/// What it answered.
pub(super) struct Answer {
    pub(super) code: u16,
    challenge: String,
    pub(super) body: String,
}

impl Answer {
    /// A gateway of ours does not like the token.
    pub(super) fn is_our_refusal(&self) -> bool {
        match self.code {
            401 | 403 => self.challenge.contains("sccache-dock"),
            // Too many wrong ones: it names the command that prints the right one.
            429 => self.body.contains("sccache-dock"),
            _ => false,
        }
    }
}

impl<'a> Http<'a> {
    /// As sccache makes them: without a certificate.
    pub(super) fn new(base: &str, token: Option<&'a Secret>) -> Http<'a> {
        Http::with(base, token, tls::anonymous(), None)
    }

    pub(super) fn with(
        base: &str,
        token: Option<&'a Secret>,
        tls: TlsConfig,
        proxy: Option<ureq::Proxy>,
    ) -> Http<'a> {
        Http {
            agent: ureq::Agent::config_builder()
                .tls_config(tls)
                .http_status_as_error(false)
                .timeout_global(Some(ANSWER_TIMEOUT))
                .proxy(proxy)
                .max_redirects(0)
                .build()
                .into(),
            base: base.to_owned(),
            token,
        }
    }

    fn bearer(&self) -> String {
        self.token
            .map(|token| format!("Bearer {}", token.reveal()))
            .unwrap_or_default()
    }

    pub(super) fn get(&self, path: &str) -> Result<Answer, ureq::Error> {
        let request = self.agent.get(format!("{}{path}", self.base));
        let mut request = request.header("Accept", "application/json");
        if self.token.is_some() {
            request = request.header("Authorization", self.bearer());
        }
        let mut response = request.call()?;
        let challenges = response.headers().get_all("www-authenticate");
        let challenges = challenges.iter().filter_map(|it| it.to_str().ok());
        Ok(Answer {
            code: response.status().as_u16(),
            challenge: challenges.collect::<Vec<_>>().join(", "),
            body: response.body_mut().read_to_string()?,
        })
    }

    /// As sccache posts; gives the code and the body.
    pub(super) fn post(&self, path: &str, text: &str) -> Result<(u16, String), ureq::Error> {
        let request = self.agent.post(format!("{}{path}", self.base));
        let mut request = request.header("Content-Type", "application/octet-stream");
        if self.token.is_some() {
            request = request.header("Authorization", self.bearer());
        }
        let mut response = request.send(text)?;
        let code = response.status().as_u16();
        Ok((code, response.body_mut().read_to_string()?))
    }

    pub(super) fn put(&self, path: &str, text: &str) -> Result<u16, ureq::Error> {
        let mut request = self.agent.put(format!("{}{path}", self.base));
        if self.token.is_some() {
            request = request.header("Authorization", self.bearer());
        }
        Ok(request.send(text)?.status().as_u16())
    }
}

/// What is wrong with the server's certificate, if that is why there is no answer.
pub(super) fn refused_certificate(error: &ureq::Error, endpoint: &Endpoint) -> Option<Check> {
    let error = match error {
        ureq::Error::Rustls(error) => error,
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref()?,
        _ => return None,
    };
    let rustls::Error::InvalidCertificate(cause) = error else {
        return None;
    };
    let other = cause.to_string();
    let (found, hint) = match cause {
        // The second where an authority was made anew under its old name.
        Cause::UnknownIssuer | Cause::BadSignature => (
            "no authority that this machine trusts has signed it",
            "export SSL_CERT_FILE=FILE with the certificate of the cache's authority, here and for builds",
        ),
        Cause::NotValidForName | Cause::NotValidForNameContext { .. } => (
            "it is for other names than that of the endpoint",
            "use a name that is in it: client-env on the cache's host prints one",
        ),
        Cause::Expired | Cause::ExpiredContext { .. } => (
            "it has expired",
            "put a new one in place of the files on the cache's host; or this machine's clock is wrong",
        ),
        Cause::NotValidYet | Cause::NotValidYetContext { .. } => {
            ("it is not valid yet", "look at the clocks of both machines")
        }
        _ if other.contains("CaUsedAsEndEntity") => (
            "it is its own authority, which sccache refuses",
            "make an authority, and let it sign one for the cache",
        ),
        _ => (&*other, "make a new one"),
    };
    let found = format!("sccache refuses that of {}: {found}", endpoint.url);
    Some(Check::fail("certificate", found, hint))
}
