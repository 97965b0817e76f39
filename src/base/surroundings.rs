//! What the kernel permits here with respect to namespaces and mounts.

use super::apparmor;
use super::mount::{Loss, in_container, lost};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chroot, geteuid};
use std::fs;
use std::path::Path;

/// The facts that decide which advice applies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Surroundings {
    pub(crate) in_container: bool,
    /// We are root, with capabilities or without.
    pub(crate) is_root: bool,
    /// A filter denies the system calls that create namespaces and mounts.
    pub(crate) filtered: bool,
    /// The AppArmor profile that confines us.
    pub(crate) apparmor: Option<String>,
    /// `kernel.apparmor_restrict_unprivileged_userns`.
    pub(crate) apparmor_restricts: bool,
    /// `kernel.unprivileged_userns_clone` is 0.
    pub(crate) clone_is_off: bool,
    /// `user.max_user_namespaces` is 0.
    pub(crate) none_allowed: bool,
    /// The builder's folder is on the container's own layer.
    pub(crate) folder_is_own_layer: bool,
}

impl Surroundings {
    /// AppArmor is in the way as far as we can see: by a profile other than ours, or by what it forbids to all without one.
    pub(crate) fn wants_our_apparmor(&self) -> bool {
        let is_ours = |profile: &String| profile.split(' ').next() == Some(apparmor::NAME);
        self.apparmor
            .as_ref()
            .map_or(self.apparmor_restricts, |it| !is_ours(it))
    }
}

impl Surroundings {
    /// Reads them from the kernel.
    pub(crate) fn look(dir: &Path) -> Surroundings {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let sysctl = |name: &str| read(&format!("/proc/sys/{name}")).trim().to_owned();
        let apparmor = read("/proc/self/attr/apparmor/current");
        let apparmor = apparmor.trim_matches(['\0', '\n', ' ']);
        Surroundings {
            in_container: in_container(),
            is_root: geteuid().is_root(),
            filtered: is_filtered(),
            apparmor: (!apparmor.is_empty() && apparmor != "unconfined")
                .then(|| apparmor.to_owned()),
            apparmor_restricts: sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1",
            clone_is_off: sysctl("kernel/unprivileged_userns_clone") == "0",
            none_allowed: sysctl("user/max_user_namespaces") == "0",
            folder_is_own_layer: lost(dir) == Some(Loss::OwnLayer),
        }
    }
}

/// Makes calls whose arguments the kernel rejects before it checks permissions. If the answer is "not permitted"
/// nevertheless, a filter gave it.
fn is_filtered() -> bool {
    let none = None::<&Path>;
    let answers = [
        unshare(CloneFlags::from_bits_retain(i32::MAX)),
        umount2("", MntFlags::from_bits_retain(i32::MAX)),
        mount(none, "", none, MsFlags::empty(), none),
        chroot(""),
    ];
    answers.contains(&Err(Errno::EPERM)) || answers.contains(&Err(Errno::ENOSYS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_filtered_where_the_kernel_answers_itself() {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        if status.lines().any(|line| line == "Seccomp:\t0") {
            assert!(!is_filtered());
        }
    }
}
