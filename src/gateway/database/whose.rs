//! Who sees which builds.

use crate::explain::report::Report;

/// Which builds are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose<'a> {
    /// All.
    Anybodys,
    /// Those that were begun with the token of this name.
    Tokens(&'a str),
}

impl Whose<'_> {
    pub(super) fn has(self, report: &Report) -> bool {
        match self {
            Whose::Anybodys => true,
            Whose::Tokens(name) => report.token.as_deref() == Some(name),
        }
    }
}
