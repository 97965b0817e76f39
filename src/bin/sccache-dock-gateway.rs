//! The gateway's program. It is separate from `sccache-dock`, so that PID 1 maps no HTTP, TLS or object store code.

use clap::Parser;
use sccache_dock::base::time::unix_seconds;
use sccache_dock::contract::gateway_config::TlsFiles;
use sccache_dock::contract::service::CERTIFICATE_IS_GOOD;
use sccache_dock::exit;
use sccache_dock::gateway::tls;
use sccache_dock::serve;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Serve the cache. Started by `sccache-dock run`, which writes the file and holds the listeners.
#[derive(Debug, Parser)]
#[command(name = "sccache-dock-gateway", version)]
struct Arguments {
    /// The gateway's configuration file, as `run` writes it
    #[arg(long, required_unless_present = "certificate")]
    config: Option<PathBuf>,
    /// Receive the listeners over standard input, a Unix socket, and report readiness there
    #[arg(long)]
    inherit: bool,
    /// Check this certificate and print "good" or what is wrong with it
    #[arg(
        long = "check-certificate",
        value_name = "FILE",
        requires = "key",
        conflicts_with_all = ["config", "inherit"]
    )]
    certificate: Option<PathBuf>,
    /// The private key of the certificate to check
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// CAs of client certificates, to be checked with it
    #[arg(long, value_name = "FILE", requires = "certificate")]
    client_ca: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let (Some(cert), Some(key)) = (arguments.certificate, arguments.key) {
        return check_certificate(TlsFiles {
            cert,
            key,
            min_version: Default::default(),
            client_ca: arguments.client_ca,
        });
    }
    let config = arguments.config.unwrap_or_default();
    let Err(error) = serve::serve(&config, arguments.inherit) else {
        return ExitCode::from(exit::OK);
    };
    // Standard error may be closed; there is nobody else to tell.
    let _ = writeln!(io::stderr(), "error: {error}");
    // The supervisor gives up at once on the code for usage: the same file would be as wrong the next time.
    ExitCode::from(if error.is_in_the_file() {
        exit::USAGE
    } else {
        exit::FAILED
    })
}

fn check_certificate(files: TlsFiles) -> ExitCode {
    let (answer, code) = match tls::load(&files, unix_seconds()) {
        Ok(_) => (CERTIFICATE_IS_GOOD.to_owned(), exit::OK),
        Err(error) => (error.to_string(), exit::USAGE),
    };
    match writeln!(io::stdout(), "{answer}") {
        Ok(()) => ExitCode::from(code),
        Err(_) => ExitCode::from(exit::FAILED),
    }
}
