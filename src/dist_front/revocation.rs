//! Builders that have joined with a token or certificate of the file get no more jobs when that is taken out of it, until it
//! is put in again.

use super::Front;
use crate::base::secret::Secret;
use crate::gateway::access::{Caller, Need, Verdict};
use crate::gateway::identity::Identity;
use crate::gateway::tls::Presented;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;
use tracing::{info, warn};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);

/// With what a builder has joined.
#[derive(Debug)]
pub(super) enum Proof {
    Token(Secret),
    Certificate(Arc<Presented>),
}

/// The same, and whether it was good when somebody last looked.
#[derive(Debug)]
pub(super) struct Joined {
    proof: Proof,
    is_good: bool,
}

impl Proof {
    /// Who has it now, if it is still good.
    fn holder(&self, identity: &Identity) -> Option<Caller> {
        match self {
            Proof::Token(token) => Some(identity.holder(token.reveal().as_bytes())),
            Proof::Certificate(presented) => identity.certified(presented).ok(),
        }
    }

    fn is_good(&self, identity: &Identity) -> bool {
        let holder = self.holder(identity);
        holder.is_some_and(|holder| holder.may(Need::Build) == Verdict::Allowed)
    }
}

impl Front {
    /// A builder has proven itself with an entry of the file, or with the token of the settings.
    pub(super) fn joined(self: &Arc<Front>, builder: SocketAddr, proof: Option<Proof>) {
        let name = proof.as_ref().and_then(|proof| {
            let holder = proof.holder(&self.identity)?;
            holder.name().map(str::to_owned)
        });
        self.registry().joined_with(&builder, name);
        let is_good = true;
        let joined = proof.map(|proof| Joined { proof, is_good });
        let former = {
            let mut proofs = self.proofs.lock();
            match joined {
                Some(joined) => proofs.insert(builder, joined),
                None => proofs.remove(&builder),
            }
        };
        if former.is_some_and(|former| !former.is_good) {
            self.bar(builder, false);
        }
    }

    /// Looks whether that with which builders have joined is still good, for ever.
    pub(super) async fn look_after_proofs(self: &Arc<Front>) {
        loop {
            sleep(LOOK).await;
            for (builder, is_good) in self.changed_proofs() {
                self.bar(builder, !is_good);
            }
        }
    }

    /// Those whose proof has become good or bad.
    fn changed_proofs(&self) -> Vec<(SocketAddr, bool)> {
        let known = self.registry().addresses();
        let mut proofs = self.proofs.lock();
        proofs.retain(|builder, _| known.contains(builder));
        let changed = proofs.iter_mut().filter_map(|(builder, joined)| {
            let is_good = joined.proof.is_good(&self.identity);
            let was_good = std::mem::replace(&mut joined.is_good, is_good);
            (is_good != was_good).then_some((*builder, is_good))
        });
        changed.collect()
    }

    /// Gives a builder no more jobs, or jobs again.
    fn bar(self: &Arc<Front>, builder: SocketAddr, is_barred: bool) {
        if is_barred {
            warn!("the token or certificate of builder {builder} is good no more: it gets no jobs");
        } else {
            info!("the token or certificate of builder {builder} is good again: it gets jobs");
        }
        self.registry().bar(&builder, is_barred);
        if let Some(relay) = self.relay() {
            relay.bar(&builder, is_barred);
            self.provide();
        }
        self.changed.notify_waiters();
        self.news.notify_one();
    }
}
