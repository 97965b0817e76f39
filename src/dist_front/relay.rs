//! The relay: one address for the whole cluster. It takes jobs from clients as a builder would, lets them wait for a
//! slot, and hands each to a builder that it chooses, again to another one where that comes to nothing.
//!
//! ```text
//! client --alloc_job-----------> ticket, our own address and certificate (authority.rs)
//!        --submit_toolchain----> the cache's store, once for all builders (archives.rs)
//!        --run_job-------------> kept (spool.rs), queue (queue.rs) -> builder (pool.rs, dispatcher.rs)
//!                                  |  assign_job, run_job (builder_client.rs), again elsewhere (job.rs)
//! toolchains ---- sent and unpacked before any job (prepare.rs) ----> builder
//! ```
//!
//! sccache's scheduler has no part in it: each heartbeat holds the key by which a builder knows jobs, so the relay signs
//! them itself. Clients and builders are sccache's own, unchanged.

mod archives;
mod arrivals;
mod authority;
mod builder_client;
mod dispatcher;
mod elf;
mod job;
mod metrics;
mod names;
mod pool;
mod prepare;
mod queue;
mod routes;
mod spool;
mod ticket;
mod tls;
mod tunnels;
pub(super) mod wire;

pub(super) use metrics::encode;
pub(super) use spool::Outgoing;
pub(super) use tls::shake_hands;

use self::archives::Archives;
use self::arrivals::Arrivals;
use self::authority::Authority;
use self::builder_client::{BuilderClient, Says};
use self::dispatcher::{Decision, Dispatcher};
use self::job::Slot;
use self::metrics::RelayMetrics;
use self::names::Names;
use self::pool::{BuilderInfo, Machine};
use self::queue::{Limits, Toolchain};
use self::tunnels::Tunnels;
use super::Front;
use super::wire::Heartbeat;
use crate::base::memory;
use crate::base::time::unix_seconds;
use crate::contract::gateway_config;
use crate::contract::gateway_status::RelayStatus;
use crate::gateway::disk::Disk;
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{info, warn};

/// How often builders are looked after that have jobs and give no sign.
const LOOK: Duration = Duration::from_secs(1);
/// A builder with jobs is asked whether it is awake when it gave no sign for so long.
const QUIET: Duration = Duration::from_secs(2);
/// After so many questions without an answer, each two seconds long, it stands still.
const QUESTIONS: u32 = 3;
/// How often the queue is looked at for what only time changes.
const TICK: Duration = Duration::from_millis(250);
/// What a job takes at most while it waits or runs: the beginning of its body, and two connections.
const MEMORY_OF_A_JOB: u64 = 376 << 10;

/// What a machine of ours tells beside what its builder says.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Told {
    /// Its kind of processor, as ELF numbers it.
    pub(super) machine: Option<u16>,
    /// Bytes of memory that are free.
    pub(super) memory: Option<u64>,
}

/// What becomes of a job that waits.
#[derive(Debug)]
enum Verdict {
    /// It goes to the builder of this slot.
    Assigned(Slot),
    /// No builder could ever take it.
    Fallback,
}

/// What the relay keeps.
#[derive(Debug)]
pub(super) struct Relay {
    settings: gateway_config::Relay,
    // Plain mutexes: held for a look-up, never across I/O or an await.
    dispatcher: Mutex<Dispatcher>,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Verdict>>>,
    builders: Mutex<HashMap<SocketAddr, Arc<BuilderClient>>>,
    tunnels: Arc<Tunnels>,
    archives: Archives,
    authority: Authority,
    arrivals: Mutex<Arrivals>,
    names: Names,
    tickets: ticket::Tickets,
    metrics: RelayMetrics,
}

impl Relay {
    /// For a port with so many connections; toolchains are kept on `disk`. Blocks; to be called once, at the start.
    ///
    /// # Errors
    /// There is no randomness.
    pub(super) fn new(
        settings: gateway_config::Relay,
        connections: usize,
        disk: Disk,
    ) -> io::Result<Relay> {
        let (mut first, mut key) = ([0; 8], [0; 32]);
        getrandom::fill(&mut first)?;
        getrandom::fill(&mut key)?;
        let opened = Authority::open(&settings.authority, unix_seconds());
        let (authority, lost) = opened.map_err(io::Error::other)?;
        if let Some(cause) = lost {
            let path = settings.authority.display();
            warn!("cannot keep the relay's certificate authority in \"{path}\": {cause}");
        }
        if let Err(cause) = std::fs::create_dir_all(&settings.spool) {
            // A full disk ends no cache; the jobs that need it go home.
            let path = settings.spool.display();
            warn!("cannot make the relay's folder for jobs \"{path}\": {cause}");
        }
        let limits = Limits {
            jobs: most_jobs(connections, memory::limit()),
            bytes: settings.queue_bytes,
        };
        let first = u64::from_ne_bytes(first);
        Ok(Relay {
            dispatcher: Mutex::new(Dispatcher::new(limits, first)),
            waiting: Mutex::default(),
            builders: Mutex::default(),
            tunnels: Arc::default(),
            archives: Archives::new(disk),
            arrivals: Mutex::default(),
            names: Names::default(),
            tickets: ticket::Tickets::new(key, limits.jobs),
            authority,
            metrics: RelayMetrics::default(),
            settings,
        })
    }

    fn dispatcher(&self) -> MutexGuard<'_, Dispatcher> {
        self.dispatcher.lock()
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Verdict>>> {
        self.waiting.lock()
    }

    fn builders(&self) -> MutexGuard<'_, HashMap<SocketAddr, Arc<BuilderClient>>> {
        self.builders.lock()
    }

    fn builder(&self, at: &SocketAddr) -> Option<Arc<BuilderClient>> {
        self.builders().get(at).cloned()
    }

    /// Bars a builder from jobs, or admits it again.
    pub(super) fn bar(&self, at: &SocketAddr, is_barred: bool) {
        self.dispatcher().pool.bar(at, is_barred);
    }

    /// For the status.
    pub(super) fn status(&self) -> RelayStatus {
        let (dispatcher, now) = (self.dispatcher(), Instant::now());
        let totals = dispatcher.pool.totals(now);
        let oldest = dispatcher.queue.oldest();
        RelayStatus {
            waiting: dispatcher.queue.waiting() as u64,
            running: dispatcher.queue.running() as u64,
            bytes: dispatcher.queue.bytes(),
            slots: totals.slots,
            slots_used: totals.jobs,
            oldest_seconds: oldest.map_or(0, |oldest| now.duration_since(oldest).as_secs()),
            jobs: self.metrics.jobs(),
            attempts: self.metrics.attempts(),
        }
    }

    /// A genuine heartbeat came; true when its process is new here.
    fn heartbeat(
        &self,
        (at, port): (SocketAddr, SocketAddr),
        (heartbeat, told): (Heartbeat, Told),
        body: &[u8],
    ) -> Result<bool, String> {
        let Heartbeat { nonce, cores } = heartbeat;
        let credentials = wire::credentials(body).map_err(|cause| cause.to_string())?;
        let info = BuilderInfo {
            nonce,
            cores,
            machine: Machine(self.settings.machine(&at, told.machine)),
        };
        let known = self.builder(&at).filter(|known| known.nonce == nonce);
        let client = match known {
            Some(known) => {
                known.answered();
                known
            }
            None => {
                let tunnels = Arc::clone(&self.tunnels);
                Arc::new(BuilderClient::new(
                    (at, port),
                    nonce,
                    &credentials,
                    tunnels,
                )?)
            }
        };
        // Both at once: no job goes to a builder that nobody could reach.
        let mut dispatcher = self.dispatcher();
        let former = self.builders().insert(at, Arc::clone(&client));
        let is_new = dispatcher.pool.heartbeat(Instant::now(), at, info);
        dispatcher.pool.has_free_memory(&at, told.memory);
        drop(dispatcher);
        if let Some(former) = former.filter(|former| former.nonce != nonce) {
            // Whoever waits for that process waits in vain.
            former.stand_still();
        }
        Ok(is_new)
    }
}

impl Front {
    /// The relay, where it is on.
    pub(super) fn relay(&self) -> Option<&Relay> {
        self.relay.as_ref()
    }

    /// Takes note of a builder's heartbeat for the relay.
    pub(super) fn introduce(
        self: &Arc<Front>,
        at: SocketAddr,
        heartbeat: (Heartbeat, Told),
        body: &[u8],
    ) {
        let Some(relay) = self.relay() else { return };
        match relay.heartbeat((at, self.port_of(at)), heartbeat, body) {
            Ok(true) => self.provide(),
            Ok(false) => self.dispatch(),
            Err(cause) => warn!("builder {at} gets no jobs: {cause}"),
        }
    }

    /// Gives jobs to builders, as far as that can be done now.
    pub(super) fn dispatch(self: &Arc<Front>) {
        let Some(relay) = self.relay() else { return };
        let decisions = relay.dispatcher().dispatch(Instant::now());
        self.deliver(relay, decisions);
    }

    /// The same, and gives toolchains to builders that lack them. It looks at all of both, and so is not for every job.
    pub(super) fn provide(self: &Arc<Front>) {
        let Some(relay) = self.relay() else { return };
        self.dispatch();
        let (pushes, unidentified) = {
            let (mut dispatcher, now) = (relay.dispatcher(), Instant::now());
            (dispatcher.pushes(now), dispatcher.unidentified())
        };
        for push in pushes {
            let front = Arc::clone(self);
            tokio::spawn(async move { front.prepare(push).await });
        }
        for (toolchain, executable) in unidentified {
            let front = Arc::clone(self);
            tokio::spawn(async move { front.identify(toolchain, &executable).await });
        }
    }

    /// Finds out for which kind of processor a toolchain is.
    async fn identify(self: &Arc<Front>, toolchain: Toolchain, executable: &str) {
        let Some(relay) = self.relay() else { return };
        let machine = relay.archives.machine(&toolchain, executable).await;
        match machine {
            Some(Machine(machine)) => {
                info!("toolchain {toolchain:.8} is for ELF's machine {machine}");
            }
            None => warn!(
                "cannot tell for which processor toolchain {toolchain:.8} is: its jobs are compiled by their clients"
            ),
        }
        relay.dispatcher().identified(&toolchain, machine);
        self.provide();
    }

    fn deliver(self: &Arc<Front>, relay: &Relay, decisions: Vec<Decision>) {
        for decision in decisions {
            match decision {
                Decision::Assign {
                    job,
                    builder,
                    nonce,
                    attempt,
                } => {
                    let waits = relay.waiting().remove(&job);
                    let client = relay.builder(&builder).filter(|one| one.nonce == nonce);
                    match client {
                        Some(client) => {
                            let slot = Slot::new(self, client, attempt);
                            // Whoever waited may have just left: the slot is free again with the message.
                            let _ = waits.map(|waits| waits.send(Verdict::Assigned(slot)));
                        }
                        None => relay.dispatcher().pool.complete(attempt, &builder),
                    }
                }
                Decision::Fallback { job } => {
                    if let Some(waits) = relay.waiting().remove(&job) {
                        let _ = waits.send(Verdict::Fallback);
                    }
                }
            }
        }
    }

    /// Looks after what only time changes, and after builders that give no sign, for ever.
    pub(super) async fn look_after_the_relay(self: &Arc<Front>) {
        if self.relay().is_none() {
            return std::future::pending().await;
        }
        tokio::join!(self.tick(), self.watch_builders());
    }

    async fn tick(self: &Arc<Front>) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tick.tick().await;
            let Some(relay) = self.relay() else { return };
            let decisions = {
                let (mut dispatcher, now) = (relay.dispatcher(), Instant::now());
                dispatcher.pool.expire(now);
                dispatcher.unplaceable(now)
            };
            self.deliver(relay, decisions);
            self.provide();
        }
    }

    async fn watch_builders(self: &Arc<Front>) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let Some(relay) = self.relay() else { return };
            let asked_at = Instant::now();
            let doubtful = relay.dispatcher().pool.doubtful(asked_at, QUIET);
            let asked = doubtful.into_iter().filter_map(|at| relay.builder(&at));
            let asked = asked.map(|client| async move { (client.ask().await, client) });
            {
                let (dispatcher, mut builders) = (relay.dispatcher(), relay.builders());
                builders.retain(|at, _| dispatcher.pool.knows(at));
                relay.tunnels.prune(|at| builders.contains_key(at));
            }
            for (says, client) in futures_util::future::join_all(asked).await {
                self.heard(relay, asked_at, says, &client);
            }
            self.dispatch();
        }
    }

    /// A builder was asked at this time how it is.
    fn heard(&self, relay: &Relay, asked: Instant, says: Says, client: &BuilderClient) {
        let (at, now) = (client.at, Instant::now());
        if says != Says::Nothing {
            client.answered();
            let mut over = Vec::new();
            {
                let pool = &mut relay.dispatcher().pool;
                pool.sign(now, &at);
                if let Says::Has(attempts) = says {
                    over = pool.has(asked, &at, &attempts);
                }
            }
            let mut registry = self.registry();
            registry.awake(&at);
            over.into_iter().for_each(|attempt| registry.over(attempt));
        } else if client.asked_in_vain() == QUESTIONS {
            warn!(
                "builder {at} does not answer on its port: its jobs go to others, and it gets no more until it does \
                 (hint: is its container paused, or its machine overloaded?)"
            );
            client.stand_still();
            relay.dispatcher().pool.silent(&at);
            self.registry().silent(now, &at);
        }
    }

    /// A builder is about to stop: it gets no more jobs.
    pub(super) fn relay_leaves(&self, at: &SocketAddr) {
        if let Some(relay) = self.relay() {
            relay.dispatcher().pool.leave(at);
        }
    }
}

impl gateway_config::Relay {
    /// The kind of processor of a builder: what the settings say, else what it tells, else our own.
    fn machine(&self, at: &SocketAddr, told: Option<u16>) -> u16 {
        let set = self.machines.get(at).copied();
        set.or(told).unwrap_or(OWN_MACHINE)
    }
}

/// Our own kind of processor, as ELF numbers it.
pub(super) const OWN_MACHINE: u16 = if cfg!(target_arch = "aarch64") {
    183
} else {
    62
};

impl Front {
    /// Says at the start what clients need.
    pub(super) fn announce_relay(&self) {
        let Some(relay) = self.relay() else { return };
        if let Some(address) = relay.settings.address {
            relay.authority.announce(address.ip());
        }
        info!(
            "the relay takes jobs: clients need this port and that of the cache, and no builder's; a job waits for at \
             most {:?}",
            relay.settings.queue_time()
        );
    }

    /// Takes up what is known of builders from the gateway before this one.
    pub(super) fn relay_recalls(&self) {
        let Some(relay) = self.relay() else { return };
        let kept = self.registry().heartbeats(Instant::now());
        for one in kept {
            if let Ok(heartbeat) = super::wire::heartbeat(&one.body)
                && let Err(cause) = relay.heartbeat(
                    (one.builder, self.port_of(one.builder)),
                    (heartbeat, Told::default()),
                    &one.body,
                )
            {
                warn!("builder {} gets no jobs: {cause}", one.builder);
            }
        }
    }
}

/// How many jobs may be here, for a port with so many connections, in a container with so many bytes of memory.
fn most_jobs(connections: usize, memory: Option<u64>) -> usize {
    // The rest is for what builders report: their jobs wait for it.
    let by_connections = connections - connections / 8;
    // The cache and the services beside it have the other half.
    let by_memory = memory.map(|bytes| bytes / 2 / MEMORY_OF_A_JOB);
    let by_memory = by_memory.and_then(|jobs| usize::try_from(jobs).ok());
    by_connections.min(by_memory.unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_leave_connections_for_builders_and_half_of_the_memory() {
        assert_eq!(most_jobs(1024, None), 896);
        assert_eq!(most_jobs(1024, Some(64 << 30)), 896);
        assert_eq!(most_jobs(1024, Some(256 << 20)), 348);
    }
}
