//! Builders that have joined with a token or certificate of the file get no more jobs when that is taken out of it, until it
//! is put in again.

use super::Front;
use crate::base::secret::Secret;
use crate::gateway::access::{Caller, Need, Verdict};
use crate::gateway::identity::Identity;
use crate::gateway::tls::Presented;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
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

/// A proof, and whether it was valid at the last look.
#[derive(Debug)]
struct Joined {
    proof: Proof,
    is_good: bool,
}

/// Proofs by builder. A builder is barred or admitted under this lock, so that what is noted here is also what was done
/// last.
#[derive(Debug, Default)]
pub(super) struct Proofs(Mutex<HashMap<SocketAddr, Joined>>);

impl Proofs {
    /// A builder has proven itself with this, or with the token of the settings; `admit` is for one that was barred.
    fn join(&self, builder: SocketAddr, proof: Option<Proof>, admit: impl FnOnce()) {
        let is_good = true;
        let joined = proof.map(|proof| Joined { proof, is_good });
        let mut proofs = self.0.lock();
        let former = match joined {
            Some(joined) => proofs.insert(builder, joined),
            None => proofs.remove(&builder),
        };
        if former.is_some_and(|former| !former.is_good) {
            admit();
        }
    }

    /// Calls `bar` for those of these builders whose proof has become good or bad, and forgets the others.
    fn look(
        &self,
        known: &HashSet<SocketAddr>,
        is_good: impl Fn(&Proof) -> bool,
        bar: impl Fn(SocketAddr, bool),
    ) {
        let mut proofs = self.0.lock();
        proofs.retain(|builder, _| known.contains(builder));
        for (builder, joined) in proofs.iter_mut() {
            let is_good = is_good(&joined.proof);
            if std::mem::replace(&mut joined.is_good, is_good) != is_good {
                bar(*builder, !is_good);
            }
        }
    }
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
        self.proofs
            .join(builder, proof, || self.bar(builder, false));
    }

    /// Looks whether that with which builders have joined is still good, for ever.
    pub(super) async fn look_after_proofs(self: &Arc<Front>) {
        loop {
            sleep(LOOK).await;
            let known = self.registry().addresses();
            let is_good = |proof: &Proof| proof.is_good(&self.identity);
            let bar = |builder, is_barred| self.bar(builder, is_barred);
            self.proofs.look(&known, is_good, bar);
        }
    }

    /// Gives a builder no more jobs, or jobs again.
    fn bar(self: &Arc<Front>, builder: SocketAddr, is_barred: bool) {
        if is_barred {
            warn!(
                "the token or certificate of builder {builder} is no longer valid: it gets no jobs"
            );
        } else {
            info!("the token or certificate of builder {builder} is valid again: it gets jobs");
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn builder_that_joins_again_while_its_former_proof_is_found_bad_gets_jobs() {
        let (proofs, is_barred) = (Proofs::default(), Mutex::new(false));
        let builder = SocketAddr::from(([10, 0, 0, 1], 10501));
        let proof = |text| Some(Proof::Token(Secret::new(text)));
        let admit = || *is_barred.lock() = false;
        proofs.join(builder, proof("former"), admit);
        std::thread::scope(|scope| {
            let is_good =
                |proof: &Proof| matches!(proof, Proof::Token(token) if token.reveal() == "new");
            proofs.look(&HashSet::from([builder]), is_good, |_, bar| {
                let (done, is_done) = mpsc::channel();
                let proofs = &proofs;
                scope.spawn(move || {
                    proofs.join(builder, proof("new"), admit);
                    let _ = done.send(());
                });
                // Long enough for it, if nothing makes it wait.
                let _ = is_done.recv_timeout(Duration::from_millis(300));
                *is_barred.lock() = bar;
            });
        });
        assert!(!*is_barred.lock());
    }
}
