//! What a client gets for a job and brings back with it: everything that the relay must know then, signed, so that it
//! need not be remembered. To the client it is opaque (`auth` of `AllocJobHttpResponse`).

use super::queue::{Tenant, Toolchain};
use std::fmt;
use std::net::IpAddr;

/// Digits of a ticket's seal.
const SEAL: usize = 64;

/// Makes and checks tickets.
pub(super) struct Tickets {
    key: [u8; 32],
}

/// A ticket that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) toolchain: Toolchain,
    pub(super) tenant: Tenant,
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

impl Tickets {
    pub(super) fn new(key: [u8; 32]) -> Tickets {
        Tickets { key }
    }

    /// A number for a token, which does not tell the token.
    pub(super) fn number(&self, token: &[u8]) -> u64 {
        let hash = blake3::keyed_hash(&self.key, token);
        let (number, _) = hash
            .as_bytes()
            .split_first_chunk()
            .unwrap_or((&[0; 8], &[]));
        u64::from_le_bytes(*number)
    }

    /// The ticket of this job.
    pub(super) fn issue(&self, job: u64, ticket: &Ticket) -> String {
        let Ticket { toolchain, tenant } = ticket;
        let text = format!("{toolchain}/{:x}/{}", tenant.token, tenant.address);
        format!("{}/{text}", self.seal(job, &text).to_hex())
    }

    /// The ticket of this job, if it is one of ours.
    pub(super) fn check(&self, job: u64, ticket: &str) -> Option<Ticket> {
        let (seal, text) = ticket.split_at_checked(SEAL)?;
        let text = text.strip_prefix('/')?;
        // The comparison of hashes takes the same time wherever they differ.
        if blake3::Hash::from_hex(seal).ok()? != self.seal(job, text) {
            return None;
        }
        let mut parts = text.split('/');
        let toolchain = parts.next()?.into();
        let token = u64::from_str_radix(parts.next()?, 16).ok()?;
        let address: IpAddr = parts.next()?.parse().ok()?;
        let tenant = Tenant { token, address };
        Some(Ticket { toolchain, tenant })
    }

    fn seal(&self, job: u64, text: &str) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&job.to_le_bytes()).update(text.as_bytes());
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticket_is_good_for_its_job_and_its_relay_only() {
        let tickets = Tickets::new([1; 32]);
        for address in ["10.0.0.9", "fd00::9"] {
            let ticket = Ticket {
                toolchain: "ab".repeat(32).into(),
                tenant: Tenant {
                    token: tickets.number(b"Bearer secret"),
                    address: address.parse().unwrap(),
                },
            };
            let text = tickets.issue(7, &ticket);
            assert!(!text.contains("secret"));
            assert!(hyper::header::HeaderValue::from_str(&text).is_ok());
            assert_eq!(tickets.check(7, &text), Some(ticket));
            assert_eq!(tickets.check(8, &text), None);
            assert_eq!(Tickets::new([2; 32]).check(7, &text), None);
            let other = text.replace("abab", "cdcd");
            assert_eq!(tickets.check(7, &other), None);
        }
        for text in ["", "/", "é", &"0".repeat(64), &"0".repeat(200)] {
            assert_eq!(tickets.check(7, text), None, "{text}");
        }
    }
}
