//! Requests in flight at `sccache-dist`: it has a connection for each, and closes it with the answer.

use std::fs;

/// Connections that clients hold to this port of ours.
pub(super) fn requests(port: u16) -> usize {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .map(|table| established(&fs::read_to_string(table).unwrap_or_default(), port))
        .sum()
}

/// Rows of the kernel's table (proc(5)) with this local port and the state 1, established.
fn established(table: &str, port: u16) -> usize {
    let ours = |line: &&str| -> bool {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let local = fields.next().and_then(|local| local.rsplit(':').next());
        let state = fields.nth(1);
        local.is_some_and(|local| u16::from_str_radix(local, 16) == Ok(port)) && state == Some("01")
    };
    table.lines().skip(1).filter(ours).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn open_connections_are_counted_on_the_server_side_only() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(requests(port), 0);
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let accepted = listener.accept().unwrap();
        assert_eq!(requests(port), 1);
        drop((client, accepted));
        assert_eq!(requests(port), 0);
    }

    #[test]
    fn table_of_the_kernel_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n   \
            0: 00000000:2905 00000000:0000 0A 00000000:00000000 00:00000000\n   \
            1: 020011AC:2905 010011AC:C350 01 00000000:00000000 00:00000000\n   \
            2: 020011AC:C350 010011AC:2905 01 00000000:00000000 00:00000000\n";
        assert_eq!(established(table, 0x2905), 1);
    }
}
