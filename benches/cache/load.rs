//! The load: one thread, one epoll, many connections that each send a request as soon as the last is answered.
//!
//! It costs two system calls a request, reads every byte of every answer, and counts an answer that is not the
//! expected one as a failure of the whole run.

use crate::now;
use rustix::event::epoll;
use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// How long a connection may wait for its answer before the run is given up.
const STALL: Duration = Duration::from_secs(20);
const SCRATCH: usize = 256 << 10;

/// How a peer answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Http,
    Redis,
    Own,
}

/// One request: its head, and the body that follows.
pub(crate) struct Request<'a> {
    pub(crate) head: Vec<u8>,
    pub(crate) body: &'a [u8],
}

/// What a run measured.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    pub(crate) per_second: f64,
    pub(crate) p50_micros: f64,
    pub(crate) p99_micros: f64,
    pub(crate) most_micros: f64,
    pub(crate) bytes: u64,
}

/// Where the answer's body ends, or `None` while its head is not complete.
fn answer_length(lane: Lane, bytes: &[u8]) -> Option<io::Result<usize>> {
    let bad = || io::Error::other(format!("unexpected answer {:?}", text(bytes)));
    match lane {
        Lane::Http => {
            let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
            let text = text(&bytes[..head]);
            let good = text.get(9..10) == Some("2");
            let length = text.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length")
                    .then(|| value.trim().parse::<usize>().ok())?
            });
            Some(if good {
                Ok(head + length.unwrap_or(0))
            } else {
                Err(bad())
            })
        }
        Lane::Redis => {
            let head = bytes.windows(2).position(|window| window == b"\r\n")? + 2;
            let number = || {
                text(&bytes[1..head - 2])
                    .parse::<usize>()
                    .map_err(|_| bad())
            };
            Some(match bytes[0] {
                b'+' => Ok(head),
                b'$' => number().map(|length| head + length + 2),
                _ => Err(bad()),
            })
        }
        Lane::Own => {
            let bytes: [u8; 9] = bytes.get(..9)?.try_into().ok()?;
            let length = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            // A get's byte 8 says that it is a hit, a put's that it failed.
            let good = match bytes[4] {
                6 => true,
                8 => bytes[8] == 1,
                9 => bytes[8] == 0,
                _ => false,
            };
            Some(if good {
                Ok(4 + length as usize)
            } else {
                Err(bad())
            })
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(400)]).into_owned()
}

struct Connection<'a> {
    stream: TcpStream,
    request: Request<'a>,
    sent: usize,
    head: Vec<u8>,
    /// Bytes of the answer that are still to come, once its head is known.
    rest: Option<usize>,
    /// Bytes of the answer.
    answer: usize,
    began: Instant,
}

impl<'a> Connection<'a> {
    fn begin(&mut self, request: Request<'a>) -> io::Result<()> {
        (self.request, self.sent, self.rest) = (request, 0, None);
        self.head.clear();
        self.began = now();
        self.send()
    }

    fn send(&mut self) -> io::Result<()> {
        let Request { head, body } = &self.request;
        while self.sent < head.len() + body.len() {
            let of_head = &head[self.sent.min(head.len())..];
            let of_body = &body[self.sent.saturating_sub(head.len())..];
            match self
                .stream
                .write_vectored(&[IoSlice::new(of_head), IoSlice::new(of_body)])
            {
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads what is there. Returns whether the answer is complete.
    fn receive(&mut self, lane: Lane, scratch: &mut [u8]) -> io::Result<bool> {
        loop {
            let read = match self.stream.read(scratch) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            };
            match &mut self.rest {
                Some(rest) => *rest -= read,
                None => {
                    self.head.extend_from_slice(&scratch[..read]);
                    if let Some(length) = answer_length(lane, &self.head) {
                        self.answer = length?;
                        self.rest = Some(self.answer - self.head.len());
                    }
                }
            }
            if self.rest == Some(0) {
                return Ok(true);
            }
            if read < scratch.len() {
                return Ok(false);
            }
        }
    }
}

/// When a run ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    /// So many requests are answered.
    Answers(usize),
    /// So much time has passed, and at least two requests of each connection are answered.
    Time(Duration),
}

impl Until {
    fn is_over(self, answered: usize, connections: usize, passed: Duration) -> bool {
        match self {
            Until::Answers(wanted) => answered >= wanted,
            Until::Time(lasting) => passed >= lasting && answered >= 2 * connections,
        }
    }
}

/// Runs `connections` against `addr`; `next` makes the requests.
pub(crate) fn run<'a>(
    addr: SocketAddr,
    lane: Lane,
    connections: usize,
    until: Until,
    mut next: impl FnMut() -> Request<'a>,
) -> io::Result<Figures> {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut crowd = Vec::with_capacity(connections);
    for number in 0..connections {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let interest = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(
            &poll,
            &stream,
            epoll::EventData::new_u64(number as u64),
            interest,
        )?;
        let request = Request {
            head: Vec::new(),
            body: &[],
        };
        crowd.push(Connection {
            stream,
            request,
            sent: 0,
            head: Vec::new(),
            rest: None,
            answer: 0,
            began: now(),
        });
    }
    let mut scratch = vec![0; SCRATCH];
    let mut taken: Vec<u64> = Vec::with_capacity(1 << 16);
    let mut bytes = 0;
    let began = now();
    for connection in &mut crowd {
        connection.begin(next())?;
    }
    let mut events = Vec::with_capacity(connections);
    loop {
        let wait = rustix::event::Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        epoll::wait(
            &poll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&wait),
        )?;
        let at = now();
        if events.is_empty() && crowd.iter().all(|one| at - one.began > STALL) {
            return Err(io::Error::other("the peer stands still"));
        }
        for event in events.drain(..) {
            let flags = event.flags;
            let connection = &mut crowd[usize::try_from(event.data.u64()).unwrap_or(0)];
            if flags.contains(epoll::EventFlags::OUT) {
                connection.send()?;
            }
            if flags.contains(epoll::EventFlags::IN) && connection.receive(lane, &mut scratch)? {
                taken
                    .push(u64::try_from(connection.began.elapsed().as_nanos()).unwrap_or(u64::MAX));
                bytes += (connection.request.body.len() + connection.answer) as u64;
                connection.begin(next())?;
            }
        }
        if until.is_over(taken.len(), connections, at - began) {
            break;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    taken.sort_unstable();
    let at = |share: f64| {
        let place = (taken.len() as f64 * share) as usize;
        taken
            .get(place.min(taken.len().saturating_sub(1)))
            .map_or(f64::NAN, |nanos| *nanos as f64 / 1000.0)
    };
    Ok(Figures {
        per_second: taken.len() as f64 / seconds,
        p50_micros: at(0.5),
        p99_micros: at(0.99),
        most_micros: at(1.0),
        bytes,
    })
}
