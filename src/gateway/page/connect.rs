//! The lines that connect a client, for the address by which the browser came.

use crate::base::secret::Secret;
use crate::client::{EnvArgs, Facts, Format, Lane, env_text};
use maud::{Markup, html};

/// Stands where the token belongs, which no page shows.
const PLACEHOLDER: &str = "YOUR-TOKEN";

/// One way to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snippet {
    /// For whom.
    pub title: &'static str,
    /// What to do with it.
    pub usage: &'static str,
    /// The lines.
    pub text: String,
}

/// All ways that `endpoint` allows; none where it is no URL that clients can use.
pub fn snippets(
    endpoint: &str,
    namespace: Option<&str>,
    scheduler_port: Option<u16>,
) -> Vec<Snippet> {
    let facts = Facts {
        endpoint: endpoint.to_owned(),
        token: Some(Secret::new(PLACEHOLDER)),
        socket: None,
        scheduler_port,
    };
    let ways = [
        (
            Lane::Webdav,
            Format::Sh,
            "Shell",
            "Paste it into a shell, or append it to ~/.profile.",
        ),
        (
            Lane::Dist,
            Format::Sh,
            "Shell, with the builders",
            "The same, and what misses is compiled by the cluster.",
        ),
        (
            Lane::Webdav,
            Format::Cargo,
            "Cargo",
            "Append it to ~/.cargo/config.toml.",
        ),
        (
            Lane::Webdav,
            Format::Docker,
            "Containers",
            "Save it as a file for docker run --env-file.",
        ),
        (
            Lane::Webdav,
            Format::Github,
            "GitHub Actions",
            "Append it to \"$GITHUB_ENV\" in a step of the workflow.",
        ),
    ];
    let made = ways.into_iter().filter_map(|(lane, format, title, usage)| {
        let args = EnvArgs {
            lane,
            format,
            endpoint: None,
            namespace: namespace.map(str::to_owned),
            socket: None,
            scheduler: None,
            conf: None,
            write: None,
            no_token: false,
            token_name: "auth".to_owned(),
            no_disk: false,
        };
        let text = env_text(&args, &facts).ok()?;
        Some(Snippet { title, usage, text })
    });
    made.collect()
}

pub(super) fn section(snippets: &[Snippet]) -> Markup {
    html! {
        section.card aria-labelledby="connect" {
            h2 #connect { "Connect a client" }
            @if snippets.is_empty() {
                p.empty { "Run " code { "sccache-dock client-env" } " in the container: it prints the settings of a client." }
            } @else {
                p {
                    "Put your token in the place of " code { (PLACEHOLDER) } ". In the container "
                    code { "sccache-dock client-env" } " prints the same lines with the token in them."
                }
            }
            @for (place, snippet) in snippets.iter().enumerate() {
                details open[place == 0] {
                    summary { (snippet.title) }
                    p { (snippet.usage) }
                    div.lines {
                        button.copy type="button" data-keep hidden { "Copy" }
                        pre tabindex="0" role="region" aria-label={ "Lines for: " (snippet.title) } { code { (snippet.text) } }
                    }
                }
            }
        }
    }
}
