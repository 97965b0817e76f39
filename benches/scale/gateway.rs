//! The real gateway, and what it uses.

use sccache_dock::base::secret::Secret;
use sccache_dock::contract::gateway_config::{Config, Dist, Relay, Scheduler, WrongToken};
use std::fmt;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub(crate) const CLIENT: &str = "client-token";
pub(crate) const SERVER: &str = "server-token";

/// Of the gateway's process.
pub(crate) struct Usage {
    pub(crate) cpu: f64,
    resident_mib: u64,
    files: usize,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB, {} open files", self.resident_mib, self.files)
    }
}

pub(crate) struct Gateway {
    child: Child,
    pub(crate) front: SocketAddr,
    _folder: tempfile::TempDir,
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

impl Gateway {
    pub(crate) fn start() -> Gateway {
        let folder = tempfile::tempdir().unwrap();
        let (path, front) = (folder.path(), free_port());
        let config = Config {
            listen: free_port(),
            write_tokens: vec![Secret::new(CLIENT)],
            dist: Some(Dist {
                listen: front,
                // Nobody is there: the relay needs none.
                scheduler: Scheduler::Local(free_port()),
                scheduler_token: Secret::new(CLIENT),
                builder_token: Secret::new(SERVER),
                wrong_token: WrongToken::Fail,
                local_builder: None,
                local_builder_port: None,
                jobs_socket: path.join("jobs.sock"),
                heartbeats: path.join("heartbeats"),
                plain: false,
                builder_jwt_key: None,
                client_certificate: None,
                tunnels_to: None,
                relay: Some(Relay {
                    address: None,
                    public_ip: None,
                    queue_millis: 600_000,
                    queue_bytes: 4 << 30,
                    archive_bytes: 10 << 30,
                    spool: path.join("spool"),
                    authority: path.join("authority"),
                    machines: Default::default(),
                }),
            }),
            ..Config::in_folder(path)
        };
        let file = path.join("gateway.toml");
        std::fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
        let log = std::env::var("SCCACHE_LOG").unwrap_or_else(|_| "error".to_owned());
        let child = Command::new(env!("CARGO_BIN_EXE_sccache-dock-gateway"))
            .arg("--config")
            .arg(file)
            .env("SCCACHE_LOG", log)
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        while TcpStream::connect(front).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        Gateway {
            child,
            front,
            _folder: folder,
        }
    }

    pub(crate) fn usage(&self) -> Usage {
        let proc = format!("/proc/{}", self.child.id());
        let stat = std::fs::read_to_string(format!("{proc}/stat")).unwrap();
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        let ticks: u64 = fields[11..13]
            .iter()
            .map(|time| time.parse::<u64>().unwrap())
            .sum();
        let status = std::fs::read_to_string(format!("{proc}/status")).unwrap();
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|kib| kib.parse::<u64>().ok());
        Usage {
            cpu: ticks as f64 / 100.0,
            resident_mib: resident.unwrap_or(0) >> 10,
            files: std::fs::read_dir(format!("{proc}/fd")).unwrap().count(),
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}
