//! Resource usage of the gateway's process, under the names that Prometheus' own client libraries use. Values that the
//! system does not report are left out.

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use std::fmt;
use std::fs;

/// Reads `/proc` at each scrape.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = |name, help, unit, value: Option<i64>| match value {
            Some(value) => {
                let family = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
                ConstGauge::new(value).encode(family)
            }
            None => Ok(()),
        };
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let stat = Stat::parse(&stat);
        let figure = |figure: fn(&Stat) -> i64| stat.as_ref().map(figure);
        let (bytes, seconds) = (Some(&Unit::Bytes), Some(&Unit::Seconds));
        let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten();
        let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
        let help = "Number of open file descriptors";
        let open = fs::read_dir("/proc/self/fd").ok();
        // Reading the folder takes one descriptor itself.
        let open = open.and_then(|open| i64::try_from(open.count()).ok());
        gauge("process_open_fds", help, None, open.map(|open| open - 1))?;
        let most = getrlimit(Resource::RLIMIT_NOFILE).ok();
        let most = most.map(|(soft, _)| i64::try_from(soft).unwrap_or(i64::MAX));
        gauge(
            "process_max_fds",
            "Maximum number of open file descriptors",
            None,
            most,
        )?;
        let threads = figure(|stat| stat.threads);
        gauge("process_threads", "Number of threads", None, threads)?;
        let help = "Virtual memory size in bytes";
        gauge(
            "process_virtual_memory",
            help,
            bytes,
            figure(|stat| stat.virtual_bytes),
        )?;
        let resident = figure(|stat| stat.resident_pages).zip(page);
        let help = "Resident memory size in bytes";
        let resident = resident.map(|(pages, page)| pages * page);
        gauge("process_resident_memory", help, bytes, resident)?;
        let Some((stat, per_second)) = stat.zip(per_second) else {
            return Ok(());
        };
        let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
        let started = boot_time(&boot).map(|boot| boot + stat.start_ticks / per_second);
        let help = "Start time of the process since the Unix epoch in seconds";
        gauge("process_start_time", help, seconds, started)?;
        let help = "User and system CPU time in seconds";
        let family =
            encoder.encode_descriptor("process_cpu", help, seconds, MetricType::Counter)?;
        let used = stat.cpu_ticks as f64 / per_second as f64;
        ConstCounter::new(used).encode(family)
    }
}

/// The fields of `/proc/PID/stat` that are used (proc(5)).
#[derive(Debug, PartialEq)]
struct Stat {
    /// User plus system time.
    cpu_ticks: i64,
    threads: i64,
    /// Since boot.
    start_ticks: i64,
    virtual_bytes: i64,
    resident_pages: i64,
}

impl Stat {
    fn parse(text: &str) -> Option<Stat> {
        // The second field is the program's name, which may contain anything.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<i64>().ok();
        Some(Stat {
            cpu_ticks: field(14)? + field(15)?,
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

/// Boot time in Unix seconds, from the text of `/proc/stat`.
fn boot_time(text: &str) -> Option<i64> {
    let line = text.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_from_behind_the_name() {
        let text = "42 (a) b) S 1 42 42 0 -1 4194560 100 0 0 0 7 3 0 0 20 0 5 0 900 1048576 25 18446744073709551615 1";
        let expected = Stat {
            cpu_ticks: 10,
            threads: 5,
            start_ticks: 900,
            virtual_bytes: 1_048_576,
            resident_pages: 25,
        };
        assert_eq!(Stat::parse(text), Some(expected));
        assert_eq!(Stat::parse("42 (a"), None);
        assert_eq!(
            boot_time("cpu 1 2\nbtime 1700000000\nx 1"),
            Some(1_700_000_000)
        );
        assert_eq!(boot_time(""), None);
    }
}
