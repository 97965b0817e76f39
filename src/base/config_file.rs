//! The file that a service of ours is told everything by: the plan states it, the supervisor writes it, the service
//! reads it once.

use serde::de::DeserializeOwned;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Why the service does not know what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read \"{}\": {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// The file is not as it should be.
    #[error("cannot understand \"{}\": {cause}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        cause: toml::de::Error,
    },
}

/// What the file says.
///
/// # Errors
/// It cannot be read, or says something else.
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
