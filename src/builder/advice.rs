//! From the step that failed to what is missing, and to the command that has it. Pure.

use crate::base::apparmor;
use crate::base::surroundings::Surroundings;
use crate::builder::isolation::{Failure, Step};
use crate::config::settings::Isolation;

/// What mends a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hint {
    /// What is missing, in one sentence.
    text: String,
    /// The kind of isolation whose flags the command below has.
    isolation: Isolation,
}

/// The whole message: what was tried, what is missing, and the command that has it.
pub(super) fn explain(
    failures: &[(Isolation, Failure)],
    around: &Surroundings,
    mode: &str,
) -> String {
    let mut text = String::from("cannot isolate the jobs of a builder here");
    for (isolation, failure) in failures {
        text.push_str(&format!("\n  {}: {failure}", word(*isolation)));
    }
    // The first is the one that needs least.
    let Some((isolation, failure)) = failures.first() else {
        return text;
    };
    let hint = hint(*isolation, failure, around);
    if around.in_container {
        let command = command(hint.isolation, around, mode);
        text.push_str(&format!("\nhint: {}:\n{command}", hint.text));
    } else {
        text.push_str(&format!("\nhint: {}", hint.text));
    }
    text
}

fn word(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::Root => "root",
        Isolation::Auto | Isolation::Userns => "userns",
    }
}

fn hint(isolation: Isolation, failure: &Failure, around: &Surroundings) -> Hint {
    let here = |text: &str| Hint {
        text: text.to_owned(),
        isolation,
    };
    let as_root = |text: &str| Hint {
        text: text.to_owned(),
        isolation: Isolation::Root,
    };
    match failure.step {
        Step::UserNamespace if around.none_allowed => as_root(
            "this machine allows no user namespaces: set the sysctl user.max_user_namespaces to 10000 on it, or use root",
        ),
        Step::UserNamespace if around.clone_is_off => as_root(
            "users may not make namespaces here: set the sysctl kernel.unprivileged_userns_clone to 1 on this machine, or use root",
        ),
        Step::UserNamespace | Step::MapUser | Step::PrivateMounts | Step::MountNamespace
            if around.apparmor_restricts
                && around.wants_our_apparmor()
                && isolation != Isolation::Root =>
        {
            let load = match around.in_container {
                true => {
                    "load its profile for sccache-dock on this machine, once and as root, and give it to the container; \
                     where that cannot be had use root, or set the sysctl kernel.apparmor_restrict_unprivileged_userns to \
                     0, for every program of the machine"
                }
                false => {
                    "load its profile for this program, once and as root: sccache-dock apparmor program \
                     >/etc/apparmor.d/sccache-dock-program && apparmor_parser --replace \
                     /etc/apparmor.d/sccache-dock-program; where that cannot be had set the sysctl \
                     kernel.apparmor_restrict_unprivileged_userns to 0, for every program of the machine"
                }
            };
            here(&format!("AppArmor restricts user namespaces here: {load}"))
        }
        Step::MountOverlay | Step::Folder if around.folder_is_own_layer => here(
            "the builder's folder lies on the container's own layer, on which no overlay can be mounted: give SCCACHE_DIR a \
             volume or a tmpfs",
        ),
        Step::MountOverlay if failure.cause.contains("EINVAL") => here(
            "the file system of the builder's folder takes no overlay: put SCCACHE_DIR on ext4, on xfs with ftype=1 or on a tmpfs",
        ),
        Step::MapUser if isolation != Isolation::Root && around.in_container && around.is_root => {
            here(
                "root cannot make the jobs' namespaces without the capability SETFCAP, any other user can: leave out --user, or, \
             where the daemon is rootless and its root owns the folder, add --cap-add SETFCAP",
            )
        }
        Step::BeRoot => here("root isolation needs a container that runs as root"),
        Step::StepDown => here("the container may not change its user: give it one with --user"),
        Step::Folder => here("the builder's folder must be writable for the user of the services"),
        _ if isolation == Isolation::Root && failure.cause.contains("uid map") => here(
            "root isolation needs the capabilities that Docker gives by default, and CAP_SYS_ADMIN",
        ),
        Step::Sandbox
            if !around.in_container && failure.cause.contains("Function not implemented") =>
        {
            here(
                "a system call is answered as if there were none: a unit of systemd with DynamicUser= or RestrictSUIDSGID= has no \
             openat2(2), which bubblewrap needs; images/systemd/builder.conf has a user in their place",
            )
        }
        _ if around.filtered && !around.in_container => here(
            "a filter of system calls forbids it to this process, such as SystemCallFilter= or RestrictNamespaces= of a \
             systemd unit: allow there what \"sccache-dock seccomp\" prints",
        ),
        _ if around.filtered && isolation != Isolation::Root && around.wants_our_apparmor() => {
            here(
                "the container's seccomp profile forbids it, and AppArmor's may: ours are the only flags that are needed",
            )
        }
        _ if around.filtered && isolation != Isolation::Root => here(
            "the container's seccomp profile forbids it, and ours is the only flag that is needed",
        ),
        _ if isolation == Isolation::Root => {
            here("root isolation needs CAP_SYS_ADMIN and a seccomp profile that allows pivot_root")
        }
        _ if around.wants_our_apparmor() && isolation != Isolation::Root => here(
            "the container's AppArmor profile forbids mounts, and ours allows those in namespaces of the builder's own",
        ),
        _ if around.in_container => as_root(
            "the seccomp profile allows it, so the machine forbids it to this user, by AppArmor, SELinux or a sysctl: allow it \
             there, or use root",
        ),
        _ => here(
            "the machine forbids it to this user, by AppArmor, SELinux or a sysctl: allow it there",
        ),
    }
}

/// The lines to type, whole.
fn command(isolation: Isolation, around: &Surroundings, mode: &str) -> String {
    let kind = word(isolation);
    let (load, apparmor) = match (around.wants_our_apparmor(), around.apparmor.is_some()) {
        (true, _) => (apparmor::LOAD, true),
        (false, is_confined) => ("", is_confined),
    };
    let apparmor = match apparmor {
        true => format!(" --security-opt apparmor={}", apparmor::NAME),
        false => String::new(),
    };
    let flags = match isolation {
        Isolation::Root => " --user root --cap-add SYS_ADMIN -e SCCACHE_BUILDER_ISOLATION=root",
        Isolation::Auto | Isolation::Userns => "",
    };
    let joins = match mode {
        "builder" => {
            " -e SCCACHE_SCHEDULER_URL=http://build-host:10600 -e SCCACHE_SERVER_TOKEN=..."
        }
        _ => " -p 127.0.0.1:4226:4226 -p 10600:10600",
    };
    format!(
        "{load}  docker run --rm sccache-arch seccomp {kind} >sccache-{kind}.json\n  \
         docker run -d --name sccache-server -e MODE={mode}{flags} --security-opt seccomp=sccache-{kind}.json{apparmor} \
         -v sccache:/var/sccache{joins} -p 10501:10501 sccache-arch"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(isolation: Isolation, step: Step, cause: &str, around: Surroundings, parts: &[&str]) {
        let failure = Failure {
            step,
            cause: cause.to_owned(),
        };
        let text = explain(&[(isolation, failure)], &around, "distributed-ephemeral");
        for part in parts {
            assert!(text.contains(part), "{part:?} is missing in:\n{text}");
        }
    }

    fn container() -> Surroundings {
        Surroundings {
            in_container: true,
            filtered: true,
            ..Surroundings::default()
        }
    }

    #[test]
    fn each_failure_names_what_is_missing_and_prints_the_whole_command() {
        check(
            Isolation::Userns,
            Step::UserNamespace,
            "EPERM: Operation not permitted",
            container(),
            &[
                "seccomp profile forbids it",
                "seccomp userns >sccache-userns.json",
                "--security-opt seccomp=sccache-userns.json -v sccache:/var/sccache",
                "MODE=distributed-ephemeral",
            ],
        );
        check(
            Isolation::Userns,
            Step::UserNamespace,
            "EPERM",
            Surroundings {
                apparmor_restricts: true,
                apparmor: Some("docker-default (enforce)".into()),
                ..container()
            },
            &[
                "load its profile",
                "kernel.apparmor_restrict_unprivileged_userns to 0, for every program",
                "  docker run --rm sccache-arch apparmor --parser \"$(apparmor_parser --version)\" >/etc/apparmor.d/sccache-dock\n  apparmor_parser --replace",
                "seccomp=sccache-userns.json --security-opt apparmor=sccache-dock",
            ],
        );
        check(
            Isolation::Userns,
            Step::MapUser,
            "Operation not permitted (os error 1)",
            Surroundings {
                is_root: true,
                filtered: false,
                ..container()
            },
            &[
                "leave out --user, or, where the daemon is rootless",
                "add --cap-add SETFCAP",
                "-e MODE=distributed-ephemeral --security-opt seccomp=sccache-userns.json",
            ],
        );
        check(
            Isolation::Userns,
            Step::UserNamespace,
            "ENOSPC",
            Surroundings {
                none_allowed: true,
                ..container()
            },
            &["user.max_user_namespaces"],
        );
        check(
            Isolation::Userns,
            Step::MountOverlay,
            "EINVAL: Invalid argument",
            Surroundings {
                folder_is_own_layer: true,
                ..container()
            },
            &["volume or a tmpfs"],
        );
        check(
            Isolation::Root,
            Step::Sandbox,
            "bwrap: pivot_root: Operation not permitted",
            container(),
            &["pivot_root:", "seccomp=sccache-root.json"],
        );
        check(
            Isolation::Root,
            Step::BeRoot,
            "we run as user 1000",
            container(),
            &["runs as root", "--user root"],
        );
    }

    #[test]
    fn profile_is_not_asked_for_where_it_is_applied() {
        let failure = Failure {
            step: Step::PrivateMounts,
            cause: "EPERM".into(),
        };
        let advice = |in_container, filtered| {
            let around = Surroundings {
                in_container,
                filtered,
                ..Surroundings::default()
            };
            let failures = [(Isolation::Userns, failure.clone())];
            explain(&failures, &around, "distributed-ephemeral")
        };
        let wrong = "the only flag that is needed";
        assert!(advice(true, true).contains(wrong));
        let applied = advice(true, false);
        assert!(!applied.contains(wrong), "{applied}");
        assert!(applied.contains("seccomp profile allows it"), "{applied}");
        assert!(applied.contains("seccomp=sccache-root.json"), "{applied}");
        for filtered in [false, true] {
            let alone = advice(false, filtered);
            assert!(!alone.contains(wrong) && !alone.ends_with(':'), "{alone}");
        }
    }

    #[test]
    fn outside_a_container_no_docker_command_is_printed() {
        let failure = Failure {
            step: Step::UserNamespace,
            cause: "EPERM".into(),
        };
        let around = Surroundings {
            clone_is_off: true,
            ..Surroundings::default()
        };
        let text = explain(&[(Isolation::Userns, failure)], &around, "builder");
        assert!(
            text.contains("kernel.unprivileged_userns_clone") && !text.contains("docker run"),
            "{text}"
        );
    }
}
