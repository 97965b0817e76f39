//! What to type for a first cached build, after `start` of the host's script. Pure.

use std::fmt::Write as _;

/// What only the host knows.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Args {
    /// The script, as it was typed
    #[arg(long)]
    pub script: String,
    /// Where this machine reaches the gateway, such as 127.0.0.1:4226
    #[arg(long)]
    pub published: String,
    #[arg(long)]
    pub home: String,
    #[arg(long)]
    pub path: String,
    /// What the machine's own sccache says to --version; empty without one
    #[arg(long)]
    pub sccache: String,
    /// The machine's own sccache-dock; empty without one
    #[arg(long)]
    pub dock: String,
}

impl Args {
    /// The steps, for a cache at `endpoint` whose sccache calls itself `wanted`; with those of a cluster if it `schedules`.
    #[must_use]
    pub fn text(&self, endpoint: &str, wanted: &str, schedules: bool) -> String {
        let (script, bin) = (&self.script, format!("{}/.local/bin", self.home));
        let mut text = format!("the cache is at {endpoint}. Your first cached build:\n");
        // A string takes all that is written.
        let mut step = |step: String| {
            let _ = writeln!(text, "    {step}");
        };
        // The steps of a cluster need our own program too.
        if self.sccache != wanted || (schedules && self.dock.is_empty()) {
            step(format!(
                "{script} install-client      # {wanted}, into {bin}"
            ));
            if !self.path.split(':').any(|folder| folder == bin) {
                step(format!("export PATH=\"{bin}:$PATH\""));
            }
        }
        if schedules {
            step(format!("eval \"$({script} env --lane dist)\""));
            step("sccache-dock warm           # the compilers to the builder, once".to_owned());
        } else {
            step(format!("eval \"$({script} env --lane webdav)\""));
        }
        step("cargo build".to_owned());
        if let Some(rest) = endpoint.strip_prefix("https://") {
            let name = rest.rsplit_once(':').map_or(rest, |(name, _)| name);
            let _ = writeln!(
                text,
                "clients know the cache by the name in its certificate, {name}, which has to lead here: by DNS or /etc/hosts"
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(args: &Args, schedules: bool) -> Vec<String> {
        let text = args.text("http://127.0.0.1:4226", "sccache 0.19.0", schedules);
        text.lines()
            .skip(1)
            .map(|line| line.trim().to_owned())
            .collect()
    }

    #[test]
    fn client_is_installed_only_where_it_lacks() {
        let mut args = Args {
            script: "./manage.sh".to_owned(),
            home: "/home/ada".to_owned(),
            path: "/usr/bin:/home/ada/.local/binaries".to_owned(),
            ..Args::default()
        };
        let bare = steps(&args, false);
        assert!(
            bare[0].starts_with("./manage.sh install-client"),
            "{bare:?}"
        );
        assert_eq!(bare[1], "export PATH=\"/home/ada/.local/bin:$PATH\"");
        assert_eq!(bare[2], "eval \"$(./manage.sh env --lane webdav)\"");

        args.path.push_str(":/home/ada/.local/bin");
        assert_eq!(steps(&args, false).len(), 3);
        args.sccache = "sccache 0.18.0".to_owned();
        assert_eq!(
            steps(&args, false).len(),
            3,
            "another version shares nothing"
        );
        args.sccache = "sccache 0.19.0".to_owned();
        assert_eq!(steps(&args, false).len(), 2);
        assert_eq!(
            steps(&args, true).len(),
            4,
            "a cluster wants our program too"
        );
        args.dock = "/home/ada/.local/bin/sccache-dock".to_owned();
        assert_eq!(steps(&args, true).len(), 3);
    }

    #[test]
    fn certificate_is_named_to_those_who_must_find_it() {
        let text = Args::default().text("https://build-cache:4226", "sccache 0.19.0", false);
        assert!(text.contains("certificate, build-cache, which"), "{text}");
    }
}
