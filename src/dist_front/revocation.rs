//! Builders that have joined with a token or certificate of the file get no more jobs when that is taken out of it.

use super::Front;
use crate::base::secret::Secret;
use crate::gateway::access::{Caller, Need, Verdict};
use crate::gateway::identity::Identity;
use crate::gateway::tls::Presented;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;
use tracing::warn;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);

/// With what a builder has joined.
#[derive(Debug)]
pub(super) enum Proof {
    Token(Secret),
    Certificate(Arc<Presented>),
}

impl Proof {
    /// Who has it now, if it is still good.
    fn holder(&self, identity: &Identity) -> Option<Caller> {
        match self {
            Proof::Token(token) => Some(identity.holder(token.reveal().as_bytes())),
            Proof::Certificate(presented) => identity.certified(presented).ok(),
        }
    }
}

impl Front {
    /// A builder has proven itself with an entry of the file, or with the token of the settings.
    pub(super) fn joined(&self, builder: SocketAddr, proof: Option<Proof>) {
        let name = proof.as_ref().and_then(|proof| {
            let holder = proof.holder(&self.identity)?;
            holder.name().map(str::to_owned)
        });
        self.registry().joined_with(&builder, name);
        let mut proofs = self.proofs.lock();
        match proof {
            Some(proof) => proofs.insert(builder, proof),
            None => proofs.remove(&builder),
        };
    }

    /// Looks whether that with which builders have joined is still good, for ever.
    pub(super) async fn look_after_proofs(self: &Arc<Front>) {
        loop {
            sleep(LOOK).await;
            for builder in self.revoked() {
                warn!(
                    "the token or certificate of builder {builder} is good no more: it gets no jobs"
                );
                self.registry().leave(&builder);
                self.relay_leaves(&builder);
            }
        }
    }

    fn revoked(&self) -> Vec<SocketAddr> {
        let mut proofs = self.proofs.lock();
        let is_bad = |proof: &Proof| {
            let holder = proof.holder(&self.identity);
            holder.is_none_or(|holder| holder.may(Need::Build) != Verdict::Allowed)
        };
        let revoked = proofs.extract_if(|_, proof| is_bad(proof));
        revoked.map(|(builder, _)| builder).collect()
    }
}
