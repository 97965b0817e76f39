//! The profiles of AppArmor that let the builder and `at` make their namespaces, on machines that forbid that to others.

use clap::ValueEnum;
use std::path::Path;

/// The name of the container's profile, for `--security-opt apparmor=` and for Kubernetes.
pub(crate) const NAME: &str = "sccache-dock";

/// The lines, each with two spaces before it, by which root loads the container's profile, once for the machine.
pub(crate) const LOAD: &str = "  docker run --rm sccache-arch apparmor container >/etc/apparmor.d/sccache-dock\n  \
     apparmor_parser --replace /etc/apparmor.d/sccache-dock\n";

/// What is to be confined, or let free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// A builder's container: the container default plus namespaces, mounts and `pivot_root`
    Container,
    /// This program on the host, for `at` and a builder without a container: user namespaces
    Program,
}

/// The text of a profile for `apparmor_parser`, with `program` as the path of the program on the host.
pub fn text(profile: Profile, program: &Path) -> String {
    match profile {
        Profile::Container => include_str!("../../images/apparmor/container").to_owned(),
        Profile::Program => include_str!("../../images/apparmor/program")
            .replace("@PROGRAM@", &escaped(&program.display().to_string())),
    }
}

/// In AppArmor's patterns these stand for other characters; between quotes a space does not end the path.
fn escaped(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for one in path.chars() {
        if "\\\"*?[]{}^,@$".contains(one) {
            text.push('\\');
        }
        text.push(one);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_with_signs_of_a_pattern_stays_one_path() {
        let text = text(Profile::Program, Path::new("/opt/a b/{x}*/sccache-dock"));
        let line =
            r#"profile sccache-dock-program "/opt/a b/\{x\}\*/sccache-dock" flags=(unconfined)"#;
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn container_has_the_profile_that_messages_name() {
        let text = text(Profile::Container, Path::new("/"));
        assert!(text.contains(&format!("\nprofile {NAME} ")), "{text}");
    }
}
