//! Parses sizes, durations, addresses, levels, networks and tokens. Pure.

use super::LogFormat;
use crate::base::secret::Secret;
use crate::contract::gateway_config::{IpcPolicy, TlsVersion};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Why a value cannot be parsed.
pub(super) struct ValueError {
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl ValueError {
    pub(super) fn hint(message: impl Into<String>, hint: impl Into<String>) -> ValueError {
        ValueError {
            message: message.into(),
            hint: Some(hint.into()),
        }
    }
}

pub(super) fn optional<T>(
    parse: impl FnOnce(&str) -> Result<T, ValueError>,
) -> impl FnOnce(&str) -> Result<Option<T>, ValueError> {
    move |text| {
        if text.is_empty() {
            Ok(None)
        } else {
            parse(text).map(Some)
        }
    }
}

pub(super) fn absolute(text: &str) -> Result<PathBuf, ValueError> {
    let path = PathBuf::from(text);
    if !path.is_absolute() {
        return Err(ValueError::hint(
            "is not an absolute path",
            format!("write /{}", text.trim_start_matches("./")),
        ));
    }
    Ok(path)
}

/// Parses the absolute path of a file that contains a secret.
pub(super) fn file(text: &str) -> Result<PathBuf, ValueError> {
    // If someone enters the secret itself instead of a path, the message must not show it.
    if !text.starts_with('/') || text.contains('\n') {
        return Err(ValueError::hint(
            "is not the absolute path of a file",
            "give the path of the file, not its content, such as /run/secrets/name",
        ));
    }
    Ok(PathBuf::from(text))
}

pub(super) fn address(text: &str) -> Result<SocketAddr, ValueError> {
    if let Ok(port) = text.trim_start_matches(':').parse::<u16>() {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port));
    }
    text.parse()
        .map_err(|_| ValueError::hint("is not an address", "write it as 0.0.0.0:4226 or [::]:4226"))
}

/// Parses a size such as "10G", "500 MiB", "1.5T" or "1048576". K, M, G and T are powers of 1024, as in sccache.
pub(super) fn size(text: &str) -> Result<u64, ValueError> {
    let fault =
        |message: &str| ValueError::hint(message, "write it as 10G, 500M or a number of bytes");
    let trimmed = text.trim();
    let split = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let number: f64 = number.parse().map_err(|_| fault("is not a size"))?;
    let power = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 1,
        "M" | "MB" | "MIB" => 2,
        "G" | "GB" | "GIB" => 3,
        "T" | "TB" | "TIB" => 4,
        _ => return Err(fault("has an unknown unit")),
    };
    let bytes = number * 1024_f64.powi(power);
    if bytes < 1_048_576.0 {
        return Err(fault("is less than 1M, too small for a cache"));
    }
    if bytes > 9.0e18 {
        return Err(fault("is more than a file system can hold"));
    }
    Ok(bytes as u64)
}

pub(super) fn duration(text: &str) -> Result<Duration, ValueError> {
    let parsed = match text.parse::<u64>() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text),
    };
    match parsed {
        Ok(duration) if duration <= Duration::from_secs(24 * 3600) => Ok(duration),
        Ok(_) => Err(ValueError::hint(
            "is longer than a day",
            "write it as 8s or 500ms",
        )),
        Err(error) => Err(ValueError::hint(
            format!("is not a duration: {error}"),
            "write it as 8s or 500ms",
        )),
    }
}

pub(super) fn log_filter(text: &str) -> Result<String, ValueError> {
    const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];
    for directive in text.split(',') {
        let level = directive
            .rsplit('=')
            .next()
            .unwrap_or(directive)
            .trim()
            .to_ascii_lowercase();
        if !LEVELS.contains(&level.as_str()) {
            return Err(ValueError::hint(
                format!("\"{directive}\" is not a level"),
                "use off, error, warn, info, debug, trace, or target=level pairs",
            ));
        }
    }
    Ok(text.to_owned())
}

pub(super) fn tls_version(text: &str) -> Result<TlsVersion, ValueError> {
    match text {
        "1.2" => Ok(TlsVersion::V1_2),
        "1.3" => Ok(TlsVersion::V1_3),
        _ => Err(ValueError::hint(
            format!("\"{text}\" is not a version of TLS that can be required"),
            "write 1.2 or 1.3",
        )),
    }
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, ValueError> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        other => Err(ValueError::hint(
            format!("\"{other}\" is not a format"),
            "use text or json",
        )),
    }
}

/// Who may use sccache's own protocol: "off", or a list of "local", "bridge", networks and addresses.
pub(super) fn ipc(text: &str) -> Result<IpcPolicy, ValueError> {
    if text == "off" {
        return Ok(IpcPolicy::Off);
    }
    let (mut bridge, mut networks) = (false, Vec::new());
    for item in text.split(',').map(str::trim) {
        let network = item
            .parse::<IpNet>()
            .or_else(|_| item.parse::<IpAddr>().map(IpNet::from));
        match (item, network) {
            // Local clients always may.
            ("local", _) => {}
            ("bridge", _) => bridge = true,
            (_, Ok(network)) => networks.push(network),
            (_, Err(_)) => {
                return Err(ValueError::hint(
                    format!("\"{item}\" is neither a network nor an address"),
                    "use off, local, or a list such as bridge,10.0.0.0/8,192.168.1.7",
                ));
            }
        }
    }
    Ok(match (bridge, networks.is_empty()) {
        (false, true) => IpcPolicy::Local,
        _ => IpcPolicy::Beyond { bridge, networks },
    })
}

pub(super) fn writing_token(text: &str) -> Result<Secret, ValueError> {
    if text == "anonymous" {
        return Err(ValueError::hint(
            "nobody may write without a token",
            "SCCACHE_READ_TOKEN=anonymous lets anyone read; leave this one unset to have one generated",
        ));
    }
    token(text)
}

/// Parses one of our own tokens, which clients set in shells and files.
pub(super) fn token(text: &str) -> Result<Secret, ValueError> {
    if !Secret::new(text).is_portable() {
        return Err(ValueError::hint(
            "has a character that a shell or an env file would change on a client",
            "use letters, digits and -._+/=",
        ));
    }
    sent_token(text)
}

/// Parses a token for another server, which may contain any characters.
pub(super) fn sent_token(text: &str) -> Result<Secret, ValueError> {
    if !text.chars().all(|c| c.is_ascii_graphic()) {
        return Err(ValueError::hint(
            "has a character that an HTTP header cannot carry",
            "copy it as that server prints it",
        ));
    }
    if text != "anonymous" && text.len() < 8 {
        return Err(ValueError::hint(
            "is shorter than 8 characters",
            "leave it unset to have a strong one generated",
        ));
    }
    Ok(Secret::new(text))
}

/// URL schemes of supported upstreams.
const UPSTREAMS: &[&str] = &["s3", "redis", "rediss", "http", "https"];

pub(super) fn upstream(text: &str) -> Result<Secret, ValueError> {
    let hint =
        "write s3://BUCKET/FOLDER?endpoint=URL&region=R, redis://HOST:PORT, or http://HOST:4226";
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(ValueError::hint("is not a URL", hint));
    };
    if !UPSTREAMS.contains(&scheme) {
        return Err(ValueError::hint(
            format!("\"{scheme}\" is not a kind of store that can be the upstream"),
            hint,
        ));
    }
    if rest.split(['/', '?']).next().is_none_or(str::is_empty) {
        return Err(ValueError::hint("names no host or bucket", hint));
    }
    Ok(Secret::new(text))
}
