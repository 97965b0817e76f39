//! Builders that have joined with a token of the file get no more jobs when that is taken out of it.

use super::Front;
use crate::base::secret::Secret;
use crate::gateway::Gateway;
use crate::gateway::access::{Need, Verdict};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;
use tracing::warn;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);

impl Front {
    /// A builder has proven itself with a token of the file, or with that of the settings.
    pub(super) fn joined(&self, gateway: &Gateway, builder: SocketAddr, token: Option<Secret>) {
        let name = token.as_ref().and_then(|token| {
            let holder = gateway.access.holder(token.reveal().as_bytes());
            holder.name().map(str::to_owned)
        });
        self.registry().joined_with(&builder, name);
        let mut tokens = self.tokens.lock();
        match token {
            Some(token) => tokens.insert(builder, token),
            None => tokens.remove(&builder),
        };
    }

    /// Looks whether the tokens of builders are still good, for ever.
    pub(super) async fn look_after_tokens(self: &Arc<Front>, gateway: &Gateway) {
        loop {
            sleep(LOOK).await;
            for builder in self.revoked(gateway) {
                warn!("the token of builder {builder} is good no more: it gets no jobs");
                self.registry().leave(&builder);
                self.relay_leaves(&builder);
            }
        }
    }

    fn revoked(&self, gateway: &Gateway) -> Vec<SocketAddr> {
        let mut tokens = self.tokens.lock();
        let is_bad = |token: &Secret| {
            let holder = gateway.access.holder(token.reveal().as_bytes());
            holder.may(Need::Build) != Verdict::Allowed
        };
        let revoked = tokens.extract_if(|_, token| is_bad(token));
        revoked.map(|(builder, _)| builder).collect()
    }
}
