//! `explain`: what each compile of the last build was to the cache, and why.

use super::at;
use super::build::{self, Destination, Saved};
use crate::exit;
use crate::explain::render;
use std::io::{self, Write as _};
use std::path::Path;

/// Arguments of `explain`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// A crate or a source file [default: all compiles that were not hits]
    #[arg(value_name = "CRATE|FILE")]
    pub wanted: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Write the last build's report again, as build --report does; may be repeated
    #[arg(
        long,
        value_name = "FORMAT[=FILE]",
        value_parser = build::parse_destination,
        conflicts_with_all = ["wanted", "json"]
    )]
    pub report: Vec<Destination>,
}

/// Why nothing was explained.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no report.
    #[error("no build of this checkout was recorded\nhint: sccache-dock build -- cargo build")]
    NoBuild,
    /// The build did not compile it.
    #[error(
        "the last build of this checkout did not compile {0}\n\
         hint: cargo compiles what has changed; after cargo clean it asks for everything"
    )]
    NotCompiled(String),
    /// A file of the report.
    #[error(transparent)]
    Report(#[from] build::Error),
    /// The output is closed.
    #[error("cannot print: {0}")]
    Io(#[from] io::Error),
}

/// Prints what the last build's compiles were.
///
/// # Errors
/// There was no such compile, or no such build.
pub fn run(args: &Args) -> Result<u8, Error> {
    let cwd = std::env::current_dir()?;
    let root = at::checkout_around(&cwd).unwrap_or(cwd);
    let mut saved = Saved::read(&root).ok_or(Error::NoBuild)?;
    if !args.report.is_empty() {
        build::write_report(&saved.report, &args.report)?;
        return Ok(exit::OK);
    }
    if let Some(wanted) = &args.wanted {
        narrow(&mut saved, wanted);
        if saved.report.rows.is_empty() {
            return Err(Error::NotCompiled(wanted.clone()));
        }
    }
    let report = &saved.report;
    let text = match (args.json, &args.wanted) {
        (true, _) => render::json(report),
        (false, Some(_)) => render::rows(report, None),
        (false, None) => render::text(report) + &render::misses(report),
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(exit::OK)
}

/// Keeps the compiles of a crate, or of a file.
fn narrow(saved: &mut Saved, wanted: &str) {
    let is_file = wanted.contains('/') || Path::new(wanted).extension().is_some();
    let file = Path::new(wanted.strip_prefix("./").unwrap_or(wanted));
    let mut files = std::mem::take(&mut saved.files).into_iter();
    saved.report.rows.retain(|row| {
        let files = files.next().unwrap_or_default();
        let has = |name: &String| Path::new(name).ends_with(file) || Path::new(name) == file;
        render::is_wanted(row, Some(wanted)) || (is_file && files.iter().any(has))
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::report::tests::report;

    #[test]
    fn crates_and_files_are_found() {
        let files = ["src/hit.rs", "/w/src/miss.rs", "", "", ""];
        let names = |wanted: &str| {
            let mut saved = Saved {
                report: report(),
                files: files.map(|it| vec![it.to_owned()]).into(),
            };
            narrow(&mut saved, wanted);
            let rows = saved.report.rows.into_iter();
            rows.map(|row| row.name).collect::<Vec<_>>()
        };
        assert_eq!(names("own"), ["own"]);
        assert_eq!(names("src/miss.rs"), ["miss"]);
        assert_eq!(names("./src/hit.rs"), ["hit"]);
        assert_eq!(names("hit.rs"), ["hit"]);
        assert!(names("other").is_empty());
    }
}
