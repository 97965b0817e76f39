//! The only place that waits: one `poll(2)` for all events, until the next deadline.

use super::{Runtime, Signals, Supervisor, now};
use crate::contract::service::Id;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::time::TimeSpec;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// After orphans were reaped, further exits are collected for this long. If thousands end together, each would wake us,
/// and each search for the next would pass all that still live.
const LULL: Duration = Duration::from_millis(5);

/// Positions in the list of polled descriptors.
const CONTROL: usize = 2;
const NOTIFY: usize = 3;

/// Result of one call of `poll`.
#[derive(Default)]
pub(super) struct PollResult {
    pub(super) signals: bool,
    pub(super) control: bool,
    pub(super) notify: bool,
    pub(super) handovers: Vec<Id>,
    pub(super) stop_answers: Vec<Id>,
    pub(super) reload: bool,
    pub(super) sources: Vec<usize>,
}

impl Supervisor {
    /// Waits for events, or for the next deadline.
    pub(super) fn wait(&mut self, signals: &Signals) -> io::Result<PollResult> {
        let now = now();
        let has_room = self.log.has_room(now);
        // Signals are unblocked everywhere else, so that children need not restore anything.
        let lull = std::mem::take(&mut self.orphans_came);
        let mask = lull.then(|| SigSet::from_iter([Signal::SIGCHLD]));
        let deadlines = [
            lull.then(|| now + LULL),
            self.machine.deadline(),
            self.control.deadline(),
            self.notify.deadline(),
            self.reload.as_ref().and_then(|reload| reload.until),
            self.log.deadline().filter(|_| !has_room),
        ];
        let timeout = deadlines
            .into_iter()
            .flatten()
            .min()
            .map(|at| TimeSpec::from_duration(at.saturating_duration_since(now)));
        let input = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(8 + self.sources.len());
        fds.push(input(signals.get_read().as_fd()));
        fds.push(input(self.log.wake_fd()));
        for (peers, place) in [(&self.control, CONTROL), (&self.notify, NOTIFY)] {
            debug_assert_eq!(fds.len(), place);
            fds.push(PollFd::new(peers.listener.as_fd(), peers.interest(now)));
        }
        let controls = fds.len();
        let connected = self.control.connected.iter();
        fds.extend(connected.map(|peer| input(peer.stream.as_fd())));
        let notifies = fds.len();
        let connected = self.notify.connected.iter();
        fds.extend(connected.map(|peer| input(peer.stream.as_fd())));
        let handovers = fds.len();
        let have = |kept: fn(&Runtime) -> Option<&UnixStream>| -> Vec<(Id, &UnixStream)> {
            let runtimes = self.runtimes.iter().enumerate();
            runtimes
                .filter_map(|(index, runtime)| Some((Id(index), kept(runtime)?)))
                .collect()
        };
        let handing = have(|runtime| runtime.handover.as_ref());
        fds.extend(handing.iter().map(|(_, stream)| input(stream.as_fd())));
        let stop_answers = fds.len();
        let leaving = have(|runtime| runtime.stop_request.as_ref());
        fds.extend(leaving.iter().map(|(_, stream)| input(stream.as_fd())));
        let reload = fds.len();
        fds.extend(self.reload.iter().map(|reload| input(reload.done.as_fd())));
        let sources = fds.len();
        if has_room {
            fds.extend(self.sources.iter().map(|source| input(source.pipe.as_fd())));
        }
        match nix::poll::ppoll(&mut fds, timeout, mask) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let fired = |index: usize| fds.get(index).is_some_and(|fd| fd.any().unwrap_or(true));
        Ok(PollResult {
            signals: fired(0),
            control: fired(CONTROL) || (controls..notifies).any(fired),
            notify: fired(NOTIFY) || (notifies..handovers).any(fired),
            handovers: (0..handing.len())
                .filter(|i| fired(handovers + i))
                .map(|i| handing[i].0)
                .collect(),
            stop_answers: (0..leaving.len())
                .filter(|i| fired(stop_answers + i))
                .map(|i| leaving[i].0)
                .collect(),
            reload: (reload..sources).any(fired),
            sources: (0..self.sources.len())
                .filter(|index| fired(sources + index))
                .collect(),
        })
    }
}
