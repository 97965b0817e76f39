//! Configuration of our own services: the plan contains the text, the supervisor writes the file or sets the variable, and the
//! service reads it once.

use serde::de::DeserializeOwned;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Why a service's configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read \"{}\": {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        cause: io::Error,
    },
    /// The file's content is invalid.
    #[error("cannot understand \"{}\": {cause}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Position and reason.
        cause: toml::de::Error,
    },
}

/// Parses the value of a variable of the environment.
///
/// # Errors
/// It is not there, or cannot be parsed.
pub fn in_variable<T: DeserializeOwned>(name: &str) -> Result<T, Error> {
    let text = std::env::var(name).unwrap_or_default();
    toml::from_str(&text).map_err(|cause| Error::Parse {
        path: name.into(),
        cause,
    })
}

/// Reads and parses the file at `path`.
///
/// # Errors
/// It cannot be read or parsed.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let text = fs::read_to_string(path).map_err(|cause| Error::Read {
        path: path.to_owned(),
        cause,
    })?;
    toml::from_str(&text).map_err(|cause| Error::Parse {
        path: path.to_owned(),
        cause,
    })
}
