//! Parses quotas, pins and ages. Pure.

use super::values::{ValueError, size};
use super::{Lookup, Problem};
use crate::base::human::bytes;
use crate::contract::gateway_config::Policies;
use crate::contract::key::Key;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Maximum number of namespaces with a quota or a pin: each has its own list, whose end is examined at each eviction.
const MOST_NAMESPACES: usize = 64;
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

impl Lookup<'_> {
    pub(super) fn policies(&mut self, cache_size: Option<u64>) -> Option<Policies> {
        let quotas = self.parsed("SCCACHE_QUOTAS", quotas);
        let pinned = self.parsed("SCCACHE_PINNED", pinned);
        let write_once = self.parsed("SCCACHE_WRITE_ONCE", write_once);
        let audit_bytes = self.parsed("SCCACHE_AUDIT_LOG", audit);
        let max_age = self.parsed("SCCACHE_MAX_AGE", ages);
        let scrub = self.parsed("SCCACHE_SCRUB", scrub);
        let (quotas, pinned, cache_size) = (quotas?, pinned?, cache_size?);
        let (max_age, ages) = max_age?;
        let size = bytes(cache_size);
        for (name, quota) in quotas.iter().filter(|(_, quota)| **quota > cache_size) {
            self.problem(
                "SCCACHE_QUOTAS",
                format!(
                    "the quota of \"{name}\" is {}, more than SCCACHE_CACHE_SIZE, {size}",
                    bytes(*quota)
                ),
                Some("lower the quota, or raise SCCACHE_CACHE_SIZE".into()),
            );
        }
        let promised = quotas.iter().filter(|(name, _)| pinned.contains(*name));
        let promised = promised.fold(0, |sum: u64, (_, quota)| sum.saturating_add(*quota));
        let open = pinned.iter().map(String::as_str);
        let open: Vec<&str> = open.filter(|name| !quotas.contains_key(*name)).collect();
        if promised > cache_size {
            self.problem(
                "SCCACHE_PINNED",
                format!(
                    "the quotas of the pinned namespaces add up to {}, more than SCCACHE_CACHE_SIZE, {size}",
                    bytes(promised)
                ),
                Some("pin fewer, lower their quotas, or raise SCCACHE_CACHE_SIZE".into()),
            );
        } else if !open.is_empty() {
            self.warnings.push(Problem {
                subject: "SCCACHE_PINNED".into(),
                message: format!(
                    "{} has no quota: it could fill the whole cache, and then writes to others are refused",
                    open.join(", ")
                ),
                hint: Some(format!("set SCCACHE_QUOTAS={}=2G, for example", open[0])),
            });
        }
        let governed = quotas.keys().chain(&pinned).chain(ages.keys());
        if governed.collect::<BTreeSet<_>>().len() > MOST_NAMESPACES {
            self.problem(
                "SCCACHE_QUOTAS",
                format!("more than {MOST_NAMESPACES} namespaces have a quota, a pin or an age"),
                Some("let some of them share the common budget".into()),
            );
        }
        Some(Policies {
            quotas,
            pinned,
            write_once: write_once?,
            audit_bytes: audit_bytes?,
            max_age,
            ages,
            scrub: scrub?,
        })
    }
}

/// Flattens a TOML table of quotas or list of names into a setting's text.
pub(super) fn flat(key: &str, value: &toml::Value) -> Option<String> {
    let parts: Option<Vec<String>> = match (key, value) {
        ("quotas", toml::Value::Table(table)) => table
            .iter()
            .map(|(name, quota)| match quota {
                toml::Value::String(quota) => Some(format!("{name}={quota}")),
                toml::Value::Integer(quota) => Some(format!("{name}={quota}")),
                _ => None,
            })
            .collect(),
        ("pinned" | "write_once" | "hosts", toml::Value::Array(names)) => {
            let names = names.iter().map(|name| name.as_str().map(str::to_owned));
            names.collect()
        }
        _ => None,
    };
    parts.map(|parts| parts.join(","))
}

fn quotas(text: &str) -> Result<BTreeMap<String, u64>, ValueError> {
    let mut quotas = BTreeMap::new();
    for part in parts(text) {
        let Some((name, quota)) = part.split_once('=') else {
            return Err(ValueError::hint(
                format!("\"{part}\" is not NAMESPACE=SIZE"),
                "write it as ci=20G,team-a=5G",
            ));
        };
        let name = namespace(name.trim())?;
        let quota = size(quota).map_err(|fault| ValueError {
            message: format!("the quota of \"{name}\" {}", fault.message),
            hint: fault.hint,
        })?;
        if quotas.insert(name.clone(), quota).is_some() {
            return Err(ValueError::hint(
                format!("\"{name}\" has two quotas"),
                "write one for each namespace",
            ));
        }
    }
    Ok(quotas)
}

fn pinned(text: &str) -> Result<BTreeSet<String>, ValueError> {
    parts(text).map(namespace).collect()
}

fn write_once(text: &str) -> Result<BTreeSet<String>, ValueError> {
    let name = |part: &str| match part {
        "*" => Ok(part.to_owned()),
        part => namespace(part),
    };
    parts(text).map(name).collect()
}

fn audit(text: &str) -> Result<Option<u64>, ValueError> {
    match text {
        "off" => Ok(None),
        text => size(text).map(Some).map_err(|fault| ValueError {
            message: fault.message,
            hint: Some("write it as 64M, or off".into()),
        }),
    }
}

/// Host names under which anonymous reads are allowed.
pub(super) fn hosts(text: &str) -> Result<Vec<String>, ValueError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let host = |part: &str| {
        let name = part.strip_prefix("*.").unwrap_or(part);
        if part != "*" && (name.is_empty() || !name.bytes().all(is_plain)) {
            return Err(ValueError::hint(
                format!("\"{part}\" is not a host name"),
                "write names without scheme and port, such as cache.example.com,*.ci.example.com; \"*\" is any name",
            ));
        }
        Ok(part.to_owned())
    };
    parts(text).map(host).collect()
}

fn parts(text: &str) -> impl Iterator<Item = &str> {
    let parts = text.split(',').map(str::trim);
    parts.filter(|part| !part.is_empty())
}

/// Checks that `name` can be the namespace of a key.
fn namespace(name: &str) -> Result<String, ValueError> {
    let hint = "a namespace is the path before the entries in a client's URL, such as \"ci\" or \"team/x\"; \
                \"default\" is the one without a name";
    if name == "default" {
        return Ok(name.to_owned());
    }
    let entry = format!("{name}/0/0/0/{:064}", 0);
    match Key::parse(&entry) {
        Ok(key) if key.namespace() == name => Ok(name.to_owned()),
        Ok(_) => Err(ValueError::hint(
            format!("\"{name}\" is not a namespace"),
            hint,
        )),
        Err(cause) => Err(ValueError::hint(
            format!("\"{name}\" is not a namespace: {cause}"),
            hint,
        )),
    }
}

/// The age of all namespaces, and those of single ones: `30d`, or `30d,pr/*=7d`.
fn ages(text: &str) -> Result<(Option<Duration>, BTreeMap<String, u64>), ValueError> {
    let (mut of_all, mut ages) = (None, BTreeMap::new());
    for part in parts(text) {
        let is_second = match part.split_once('=') {
            None => of_all.replace(age(part)?).is_some(),
            Some((name, part)) => {
                let name = namespace(name.trim())?;
                ages.insert(name, age(part.trim())?.as_secs()).is_some()
            }
        };
        if is_second {
            let hint = "write one for all and one for each namespace: 30d,pr/*=7d";
            return Err(ValueError::hint("has two ages for the same", hint));
        }
    }
    Ok((of_all, ages))
}

fn age(text: &str) -> Result<Duration, ValueError> {
    let hint = "write it as 30d or 12h";
    match humantime::parse_duration(text) {
        Ok(age) if age < Duration::from_secs(1) => {
            Err(ValueError::hint("is less than a second", hint))
        }
        Ok(age) if age > LONGEST => Err(ValueError::hint("is longer than ten years", hint)),
        Ok(age) => Ok(age),
        Err(error) => Err(ValueError::hint(
            format!("is not a duration: {error}"),
            hint,
        )),
    }
}

fn scrub(text: &str) -> Result<Option<Duration>, ValueError> {
    match text {
        "off" => Ok(None),
        text => age(text).map(Some).map_err(|fault| ValueError {
            message: fault.message,
            hint: Some("write it as 7d, or off".into()),
        }),
    }
}
