//! Where a report goes.

use super::Error;
use crate::explain::render;
use crate::explain::report::Report;
use clap::ValueEnum;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::PathBuf;

/// How a report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For a terminal or a log
    Text,
    /// For programs
    Json,
    /// For a pull request's comment, or $GITHUB_STEP_SUMMARY; a file is appended to
    Markdown,
    /// A page for browsers
    Html,
    /// A trace for <https://ui.perfetto.dev>
    Trace,
}

/// A format, and the file for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// How it is written.
    pub format: Format,
    /// Standard output without one, and standard error for text.
    pub file: Option<PathBuf>,
}

/// Reads `FORMAT` or `FORMAT=FILE`.
pub(crate) fn parse(text: &str) -> Result<Destination, String> {
    let (format, file) = match text.split_once('=') {
        Some((format, file)) if !file.is_empty() => (format, Some(PathBuf::from(file))),
        Some((format, _)) => (format, None),
        None => (text, None),
    };
    let format = Format::from_str(format, true).map_err(|_| {
        "write text, json, markdown, html or trace, and a file after = if it is to go into one"
            .to_owned()
    })?;
    Ok(Destination { format, file })
}

/// A report in a format.
pub(crate) fn rendered(report: &Report, format: Format) -> String {
    match format {
        Format::Text => render::text(report),
        Format::Json => render::json(report),
        Format::Markdown => render::markdown(report),
        Format::Html => render::page(report),
        Format::Trace => render::trace(report),
    }
}

/// Writes the report to all its destinations.
pub(crate) fn write(report: &Report, destinations: &[Destination]) -> Result<(), Error> {
    let text = Destination {
        format: Format::Text,
        file: None,
    };
    let only_text = [text];
    let destinations = match destinations.is_empty() {
        true => &only_text,
        false => destinations,
    };
    for destination in destinations {
        let text = rendered(report, destination.format);
        let Some(path) = &destination.file else {
            // Whoever has closed it does not want it.
            let _ = match destination.format {
                Format::Text => io::stderr().write_all(text.as_bytes()),
                _ => io::stdout().write_all(text.as_bytes()),
            };
            continue;
        };
        let file = match destination.format {
            // Steps share the file of their job's summary.
            Format::Markdown => OpenOptions::new().append(true).create(true).open(path),
            _ => File::create(path),
        };
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|cause| Error::Report {
            path: path.clone(),
            cause,
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_and_file_are_told_apart() {
        let of = |text: &str| parse(text).map(|it| (it.format, it.file));
        assert_eq!(of("json"), Ok((Format::Json, None)));
        assert_eq!(of("markdown="), Ok((Format::Markdown, None)));
        let file = Some(PathBuf::from("a=b.html"));
        assert_eq!(of("html=a=b.html"), Ok((Format::Html, file)));
        assert!(of("pdf=x").is_err());
    }
}
