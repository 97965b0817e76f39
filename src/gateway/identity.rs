//! Who sends a request, by what it shows: a token, a certificate, or the ID token of an issuer. Both ports ask here.

use super::access::{self, Access, Caller};
use super::oidc::Oidc;
use super::tls::{Presented, Tls};
use std::sync::Arc;

/// By what clients and builders are known.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(super) access: Arc<Access>,
    pub(super) oidc: Arc<Oidc>,
    /// The certificate of both ports, where one is set.
    pub(crate) tls: Option<Arc<Tls>>,
}

impl Identity {
    /// Who sends a request with this `Authorization` header, over a connection with this certificate: the token decides where
    /// there is one.
    pub(crate) fn caller(
        &self,
        authorization: Option<&[u8]>,
        presented: Option<&Presented>,
    ) -> Caller {
        let token = authorization.and_then(access::token);
        self.caller_with(token.as_deref(), presented)
    }

    /// The same, with the token alone.
    pub(crate) fn caller_with(
        &self,
        token: Option<&[u8]>,
        presented: Option<&Presented>,
    ) -> Caller {
        let caller = self.access.caller_with(token);
        let Some(presented) = presented.filter(|_| !caller.has_sent_a_token()) else {
            return caller;
        };
        match self.certified(presented) {
            Ok(certified) => certified,
            Err(why) => caller.not_certified(&why),
        }
    }

    /// Who has this token.
    pub(crate) fn holder(&self, token: &[u8]) -> Caller {
        self.access.holder(token)
    }

    /// Who has this certificate.
    ///
    /// # Errors
    /// Why it is not accepted, in words.
    pub(crate) fn certified(&self, presented: &Presented) -> Result<Caller, String> {
        if let Some(tls) = &self.tls {
            tls.check(presented)?;
        }
        let certified = self.access.certified(&presented.names);
        certified.ok_or_else(|| {
            let names = presented.names.join(", ");
            format!("no table of SCCACHE_TOKENS_FILE has certificate = {names:?}")
        })
    }

    /// Whether the holder of an issuer's ID token may use the cluster, by a rule of the tokens' file. Begins no session:
    /// the token is good until it ends, however often it is shown.
    pub(crate) async fn may_distribute(&self, id_token: &str) -> bool {
        let taken = self.oidc.take(id_token).await;
        taken.is_ok_and(|taken| {
            let build = &taken.grant.build;
            taken.grant.distribute && !self.access.is_revoked(&taken.rule.name, build)
        })
    }
}
