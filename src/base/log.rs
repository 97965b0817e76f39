//! The log: one line per event on stderr, `LEVEL message fields`. The supervisor stamps and tags each line.

use std::fmt;
use std::io;

/// Starts logging to stderr, at the level of `SCCACHE_LOG`, or `info` if that is not set.
pub(crate) fn to_stderr() {
    let level = std::env::var("SCCACHE_LOG").unwrap_or_default();
    let filter =
        tracing_subscriber::EnvFilter::try_new(if level.is_empty() { "info" } else { &level })
            .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // Fails if a test has already set a logger, which then stays.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .event_format(Plain)
        .try_init();
}

struct Plain;

impl<S, N> tracing_subscriber::fmt::FormatEvent<S, N> for Plain
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    N: for<'a> tracing_subscriber::fmt::FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &tracing_subscriber::fmt::FmtContext<'_, S, N>,
        mut writer: tracing_subscriber::fmt::format::Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> fmt::Result {
        write!(writer, "{} ", event.metadata().level())?;
        tracing_subscriber::fmt::FormatFields::format_fields(
            context.field_format(),
            writer.by_ref(),
            event,
        )?;
        writeln!(writer)
    }
}
