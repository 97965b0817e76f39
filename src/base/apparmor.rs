//! The profiles of AppArmor that let the builder and `at` make their namespaces, on machines that forbid that to others.

use clap::ValueEnum;
use std::path::Path;
use std::process::{Command, Stdio};
use std::str::FromStr;

/// The name of the container's profile, for `--security-opt apparmor=` and for Kubernetes.
pub(crate) const NAME: &str = "sccache-dock";

/// The lines, each with two spaces before it, by which root loads the container's profile, once for the machine.
pub(crate) const LOAD: &str = "  docker run --rm sccache-arch apparmor --parser \"$(apparmor_parser --version)\" \
     >/etc/apparmor.d/sccache-dock\n  \
     apparmor_parser --replace /etc/apparmor.d/sccache-dock\n";

/// What is to be confined, or let free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// A builder's container: the container default plus namespaces, mounts and `pivot_root`
    Container,
    /// This program on the host, for `at` and a builder without a container: user namespaces
    Program,
}

/// What the `apparmor_parser` understands that is to read a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parser {
    /// AppArmor 3 has no rule for user namespaces, and restricts none.
    Three,
    /// AppArmor 4 and newer.
    Four,
}

impl FromStr for Parser {
    type Err = String;

    /// Reads a version, or all that `apparmor_parser --version` prints. Without a number it is the newest.
    fn from_str(text: &str) -> Result<Parser, String> {
        let words = text.split_whitespace();
        let number = words
            .map(|word| word.split('.').next().unwrap_or(word))
            .find_map(|word| word.parse::<u32>().ok());
        match number {
            None if text.trim().is_empty() => Ok(Parser::Four),
            None => Err("is no version: 3, 4, or what apparmor_parser --version prints".into()),
            Some(3) => Ok(Parser::Three),
            Some(4..) => Ok(Parser::Four),
            Some(0..3) => Err("is too old: AppArmor 3 or newer is needed".into()),
        }
    }
}

impl Parser {
    /// That of this machine, if it has one; else the newest.
    pub fn of_this_machine() -> Parser {
        // A user's PATH often lacks the folder of root's programs.
        let programs = ["apparmor_parser", "/usr/sbin/apparmor_parser"];
        let asked = programs.iter().find_map(|program| {
            let mut command = Command::new(program);
            command.arg("--version").stdin(Stdio::null()).output().ok()
        });
        let said = asked.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        said.and_then(|said| said.parse().ok())
            .unwrap_or(Parser::Four)
    }
}

/// The text of a profile for a parser, with `program` as the path of the program on the host.
pub fn text(profile: Profile, parser: Parser, program: &Path) -> String {
    let text = match profile {
        Profile::Container => include_str!("../../images/apparmor/container").to_owned(),
        Profile::Program => include_str!("../../images/apparmor/program")
            .replace("@PROGRAM@", &escaped(&program.display().to_string())),
    };
    match parser {
        Parser::Four => text,
        // Everything else is the same in both.
        Parser::Three => text
            .replace(
                "AppArmor 4 and newer.",
                "AppArmor 3, which knows no rule for user namespaces.",
            )
            .replace("abi <abi/4.0>,", "abi <abi/3.0>,")
            .replace("  userns,\n", ""),
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
        let path = Path::new("/opt/a b/{x}*/sccache-dock");
        let text = text(Profile::Program, Parser::Four, path);
        let line =
            r#"profile sccache-dock-program "/opt/a b/\{x\}\*/sccache-dock" flags=(unconfined)"#;
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn container_has_the_profile_that_messages_name() {
        for parser in [Parser::Three, Parser::Four] {
            let text = text(Profile::Container, parser, Path::new("/"));
            assert!(text.contains(&format!("\nprofile {NAME} ")), "{text}");
        }
    }

    #[test]
    fn version_is_read_from_what_the_parser_says_of_itself() {
        for (said, parser) in [
            ("3", Parser::Three),
            (
                "AppArmor parser version 3.0.8\nCopyright (C) 1999-2008",
                Parser::Three,
            ),
            (
                "AppArmor parser version 4.1.0\nCopyright (C) 1999-2008",
                Parser::Four,
            ),
            ("5.0.0~alpha1", Parser::Four),
            ("", Parser::Four),
        ] {
            assert_eq!(said.parse(), Ok(parser), "{said}");
        }
        for wrong in ["2.13.6", "AppArmor parser version 2.13.6", "new"] {
            assert!(wrong.parse::<Parser>().is_err(), "{wrong}");
        }
    }
}
