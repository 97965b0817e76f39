//! What the relay and a builder's port say to each other beside jobs, where both are ours. Pure.
//!
//! To a stock builder both questions are a conversation that is no TLS, which it ends, and the name in a ClientHello is one
//! of a protocol that it does not know, which it passes over (RFC 7301, 3.2).

/// Whether the process behind the port is awake: it ends the conversation.
pub const AWAKE: &[u8] = b"GET / HTTP/1.0\r\n\r\n";
/// The same, and which jobs it has, by their numbers. It ends the conversation after its answer.
pub const JOBS: &[u8] = b"GET /jobs HTTP/1.0\r\n\r\n";
/// How the answer begins.
pub const ANSWER: &[u8] = b"jobs";
/// Longest answer: more jobs than a port has connections.
pub const LONGEST_ANSWER: usize = 32 << 10;

/// What a ClientHello names beside HTTP when it brings a job.
const PROTOCOL: &str = "sccache-dock-job-";

/// What a connection for this job is to name.
pub fn protocol(job: u64) -> Vec<u8> {
    format!("{PROTOCOL}{job}").into_bytes()
}

/// The job of a connection that names this protocol.
pub fn job_of(protocol: &[u8]) -> Option<u64> {
    let protocol = std::str::from_utf8(protocol).ok()?;
    protocol.strip_prefix(PROTOCOL)?.parse().ok()
}

/// The answer of a port that has these jobs.
pub fn answer(jobs: &[u64]) -> Vec<u8> {
    let mut answer = ANSWER.to_vec();
    for job in jobs {
        answer.extend(format!(" {job}").bytes());
    }
    answer.push(b'\n');
    answer
}

/// The jobs in an answer; nothing where it is none, or not whole.
pub fn jobs(answer: &[u8]) -> Option<Vec<u64>> {
    let listed = answer.strip_prefix(ANSWER)?.strip_suffix(b"\n")?;
    let listed = std::str::from_utf8(listed).ok()?;
    let listed = listed.split_ascii_whitespace().map(str::parse);
    listed.collect::<Result<_, _>>().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_side_says_the_other_understands() {
        assert_eq!(job_of(&protocol(u64::MAX)), Some(u64::MAX));
        for other in [
            &b"http/1.1"[..],
            b"sccache-dock-job-",
            b"sccache-dock-job-x",
            b"\xff",
        ] {
            assert_eq!(job_of(other), None, "{other:?}");
        }
        for listed in [&[][..], &[7], &[7, u64::MAX, 0]] {
            assert_eq!(jobs(&answer(listed)).as_deref(), Some(listed));
        }
        let whole = answer(&[123, 456]);
        for cut in 0..whole.len() {
            assert_eq!(jobs(&whole[..cut]), None, "{cut}");
        }
        assert_eq!(jobs(b"HTTP/1.1 400 Bad Request\r\n\r\n"), None);
    }
}
