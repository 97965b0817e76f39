//! Who may ask what of the scheduler's port: clients by the tokens of the cache or by ID tokens, builders by tokens of their
//! own or by JWT.

use super::exchange::{Exchange, Refusal, credentials};
use super::revocation::Proof;
use super::{Front, jwt, wire};
use crate::base::secret::Secret;
use crate::contract::gateway_config::WrongToken;
use crate::gateway::access::{self, Caller, Need, Verdict};
use crate::gateway::connection_limit;
use crate::gateway::http::Wire;
use crate::gateway::tls::Presented;
use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use std::net::SocketAddr;
use std::sync::Arc;

/// Longest version that is shown.
const VERSION: usize = 32;

/// What a client has shown of itself: its token, else the certificate of its connection.
#[derive(Debug, Default)]
pub(super) enum Shown {
    #[default]
    Nothing,
    Token(Secret),
    Certificate(Arc<Presented>),
}

impl Shown {
    fn of(authorization: Option<&[u8]>, presented: Option<&Arc<Presented>>) -> Shown {
        match (authorization.and_then(access::token), presented) {
            (Some(token), _) => Shown::Token(Secret::new(&String::from_utf8_lossy(&token))),
            (None, Some(presented)) => Shown::Certificate(Arc::clone(presented)),
            (None, None) => Shown::Nothing,
        }
    }

    /// What is the same whenever this client shows it, however its header is spelt.
    pub(super) fn identity(&self) -> &[u8] {
        match self {
            Shown::Nothing => b"",
            Shown::Token(token) => token.reveal().as_bytes(),
            Shown::Certificate(presented) => presented.bytes(),
        }
    }
}

impl Front {
    /// Whether whoever has shown this may use the cluster now, and who it is.
    pub(super) async fn may_distribute(&self, shown: &Shown) -> (Verdict, Caller) {
        let (token, presented) = match shown {
            Shown::Nothing => (None, None),
            Shown::Token(token) => (Some(token.reveal()), None),
            Shown::Certificate(presented) => (None, Some(&**presented)),
        };
        let bytes = token.map(str::as_bytes);
        let caller = self.identity.caller_with(bytes, presented);
        let verdict = match (caller.may_distribute(), token) {
            // A JWT of an issuer that a rule lets use the cluster: what `jwt_validate` is to sccache's scheduler, but `aud`
            // and `iss` must be there.
            (Verdict::Unauthorized, Some(token)) if jwt::is_one(token) => {
                match self.identity.may_distribute(token).await {
                    true => Verdict::Allowed,
                    false => Verdict::Unauthorized,
                }
            }
            (verdict, _) => verdict,
        };
        (verdict, caller)
    }
}

impl Exchange<'_> {
    /// Checks that the client may use the cluster, and returns the token or certificate by which it may.
    pub(super) async fn check_client(&self) -> Result<Shown, Refusal> {
        let authorization = self.parts.headers.get(header::AUTHORIZATION);
        let shown = Shown::of(authorization.map(HeaderValue::as_bytes), self.presented());
        let (verdict, caller) = self.front.may_distribute(&shown).await;
        let message = match verdict {
            Verdict::Allowed => {
                connection_limit::recognized();
                return Ok(shown);
            }
            Verdict::Forbidden => format!(
                "token {:?} may not use the cluster (hint: `distribute = true` in its table or rule in \
                 SCCACHE_TOKENS_FILE, or use the token that `client-env` prints)",
                caller.name().unwrap_or_default()
            ),
            Verdict::Unauthorized | Verdict::Misdirected => "the client's token is not this scheduler's, or its session \
                is over (hint: log in again, or write the client's file anew with `client-env --lane dist`)"
                .to_owned(),
        };
        self.wrong_token()?;
        let status = match self.front.config.wrong_token {
            WrongToken::Fail => StatusCode::UNAUTHORIZED,
            WrongToken::Fallback => StatusCode::SERVICE_UNAVAILABLE,
        };
        Err(Refusal::new(status, "dist_client_token", message))
    }

    /// The certificate of its connection.
    fn presented(&self) -> Option<&Arc<Presented>> {
        match self.wire {
            Wire::Plain => None,
            Wire::Tls(presented) => presented.as_ref(),
        }
    }

    pub(super) fn check_builder(&self) -> Result<SocketAddr, Refusal> {
        Ok(self.builder_and_proof()?.0)
    }

    /// The version of ours that a builder's machine has; stock builders tell none.
    pub(super) fn version(&self) -> Option<String> {
        let agent = self.parts.headers.get(header::USER_AGENT)?;
        let version = agent.to_str().ok()?.strip_prefix("sccache-dock/")?;
        Some(version.chars().take(VERSION).collect())
    }

    /// The builder, and the entry of the file with which it proves itself, where that is no token of the settings.
    pub(super) fn builder_and_proof(&self) -> Result<(SocketAddr, Option<Proof>), Refusal> {
        let token = &self.front.config.builder_token;
        let given = credentials(&self.parts.headers);
        if let (Some(given), Some(key)) = (given, &self.front.config.builder_jwt_key)
            && let Some(address) = jwt::builder(given, &key.bytes())
        {
            connection_limit::recognized();
            return Ok((address, None));
        }
        if let Some((address, given)) = given.and_then(wire::builder_bearer) {
            let is_named = || {
                let holder = self.front.identity.holder(given.as_bytes());
                holder.may(Need::Build) == Verdict::Allowed
            };
            let is_the_one = access::is_same(token, given.as_bytes());
            if is_the_one || is_named() {
                connection_limit::recognized();
                let proof = (!is_the_one).then(|| Proof::Token(Secret::new(given)));
                return Ok((address, proof));
            }
            if let Some(presented) = self.presented() {
                let certified = self.front.identity.certified(presented);
                let builds = |holder: &Caller| holder.may(Need::Build) == Verdict::Allowed;
                let why = match certified {
                    Ok(holder) if builds(&holder) => {
                        connection_limit::recognized();
                        return Ok((address, Some(Proof::Certificate(Arc::clone(presented)))));
                    }
                    Ok(_) => {
                        "its table in SCCACHE_TOKENS_FILE has no access = \"build\"".to_owned()
                    }
                    Err(why) => why,
                };
                let message = format!("the builder's certificate is not accepted: {why}");
                return Err(Refusal::new(
                    StatusCode::UNAUTHORIZED,
                    "dist_server_token",
                    message,
                ));
            }
        }
        self.wrong_token()?;
        let message = "the builder's token is not this scheduler's (hint: give both the same SCCACHE_SERVER_TOKEN, or the \
                       builder one of SCCACHE_TOKENS_FILE with access = \"build\")";
        Err(Refusal::new(
            StatusCode::UNAUTHORIZED,
            "dist_server_token",
            message,
        ))
    }

    /// Counts a wrong token, on one account with those that came to the cache's port; an error if it is one too many.
    fn wrong_token(&self) -> Result<(), Refusal> {
        self.front.refusals.unauthorized();
        if !self.front.refusals.is_flood(self.peer) {
            return Ok(());
        }
        let status = match self.front.config.wrong_token {
            WrongToken::Fail => StatusCode::TOO_MANY_REQUESTS,
            WrongToken::Fallback => StatusCode::SERVICE_UNAVAILABLE,
        };
        let message = "too many wrong tokens came from this address; with the right one requests are served at any time";
        Err(Refusal::new(status, "auth_flood", message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_is_the_same_however_its_token_is_spelt_and_nothing_else_is_kept() {
        // The passwords of `me` and of `somebody` are both `team`.
        for header in [
            "Bearer team",
            "bearer    team",
            "Basic bWU6dGVhbQ==",
            "basic  c29tZWJvZHk6dGVhbQ==",
        ] {
            let shown = Shown::of(Some(header.as_bytes()), None);
            assert_eq!(shown.identity(), b"team", "{header}");
        }
        assert_eq!(Shown::of(Some(b"Digest team"), None).identity(), b"");
    }
}
