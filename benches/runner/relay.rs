//! A network in between: a delay in each direction and one bandwidth for all connections, in user space. netem would do the same
//! and needs a kernel that has it.

use crate::{fail, now};
use parking_lot::Mutex;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Read at a time: small enough for the bandwidth to be even.
const PIECE: usize = 16 << 10;
/// Pieces in flight of one connection: more than the bandwidth fills in a delay.
const IN_FLIGHT: usize = 256;

pub(crate) struct Relay {
    pub(crate) addr: SocketAddr,
}

/// When the line is free again.
type Line = Arc<Mutex<Instant>>;

impl Relay {
    /// Relays to `to` for as long as the process lives, with half of `delay` in each direction.
    pub(crate) fn start(to: SocketAddr, delay: Duration, bytes_per_second: u64) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0");
        let listener = listener.unwrap_or_else(|cause| fail(&format!("cannot relay: {cause}")));
        let addr = listener.local_addr().unwrap_or(to);
        let lines: [Line; 2] = [Arc::new(Mutex::new(now())), Arc::new(Mutex::new(now()))];
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let lines = lines.clone();
                std::thread::spawn(move || {
                    // A connection costs a round trip.
                    std::thread::sleep(delay);
                    let Ok(far) = TcpStream::connect(to) else {
                        return;
                    };
                    for stream in [&near, &far] {
                        let _ = stream.set_nodelay(true);
                    }
                    let [up, down] = lines;
                    pump(&near, &far, delay / 2, bytes_per_second, up);
                    pump(&far, &near, delay / 2, bytes_per_second, down);
                });
            }
        });
        Relay { addr }
    }
}

/// Carries one direction of a connection, on two threads.
fn pump(from: &TcpStream, to: &TcpStream, delay: Duration, bytes_per_second: u64, line: Line) {
    let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else {
        return;
    };
    let (sender, receiver) = sync_channel(IN_FLIGHT);
    std::thread::spawn(move || read(from, &sender, delay, bytes_per_second, &line));
    std::thread::spawn(move || write(to, &receiver));
}

fn read(
    mut from: TcpStream,
    to: &SyncSender<(Instant, Vec<u8>)>,
    delay: Duration,
    bytes_per_second: u64,
    line: &Line,
) {
    let mut piece = vec![0; PIECE];
    while let Ok(read @ 1..) = from.read(&mut piece) {
        let takes = Duration::from_secs_f64(read as f64 / bytes_per_second as f64);
        let sent = {
            let mut free = line.lock();
            *free = (*free).max(now()) + takes;
            *free
        };
        if to.send((sent + delay, piece[..read].to_vec())).is_err() {
            return;
        }
    }
}

fn write(mut to: TcpStream, from: &Receiver<(Instant, Vec<u8>)>) {
    for (arrives, piece) in from {
        std::thread::sleep(arrives.saturating_duration_since(now()));
        if to.write_all(&piece).is_err() {
            return;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
