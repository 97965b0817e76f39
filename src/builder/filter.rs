//! The system calls that no job has: they are for setting up a sandbox, which bubblewrap has done by then, or for running
//! a machine. Bubblewrap puts the filters on last, so that they hold for the job and not for itself.
//!
//! Whoever may make a user namespace has root's share of the kernel in it: mounts, network filters, routing. A compiler
//! needs none of it, and it is where the holes of kernels are found.

use nix::errno::Errno;
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::ffi::OsString;
use std::io::{self, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};

/// Answered as a kernel does that does not have them: programs know what to do then.
const ABSENT: &[libc::c_long] = &[
    // Namespaces. The flags of `clone3` lie in memory, where no filter sees them; the C libraries go on with `clone`.
    libc::SYS_clone3,
    libc::SYS_setns,
    libc::SYS_unshare,
    // Mounts.
    libc::SYS_chroot,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_umount2,
    // Files by handle, past the mounts.
    libc::SYS_fanotify_init,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    // Large and young parts of the kernel, of no use to a compiler.
    libc::SYS_bpf,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    // Keys, which namespaces do not keep apart.
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    // Other processes.
    libc::SYS_kcmp,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    // Memory that belongs to no process, and that the limit of a job would not see. More of it stands at `SHARED_ANONYMOUS`.
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_mq_open,
    libc::SYS_msgget,
    libc::SYS_semget,
    libc::SYS_shmget,
    libc::SYS_vmsplice,
    // Running a machine.
    libc::SYS_acct,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_settimeofday,
    libc::SYS_syslog,
    libc::SYS_vhangup,
];

/// The same, where the processor has them.
#[cfg(target_arch = "x86_64")]
const ABSENT_HERE: &[libc::c_long] = &[
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_kexec_file_load,
    libc::SYS_modify_ldt,
];
#[cfg(not(target_arch = "x86_64"))]
const ABSENT_HERE: &[libc::c_long] = &[];

/// Flags of `clone` that make a namespace.
const NAMESPACES: &[libc::c_int] = &[
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
    // CLONE_NEWTIME has the bit of an exit signal, and `clone` takes it for one.
];

/// Kinds of sockets that a job may have; not netlink and packets, which are for namespaces of one's own, and not those
/// that no network namespace holds back (vsock).
const FAMILIES: &[libc::c_int] = &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6];

/// Flags of `mmap` for memory that processes share without a file. It stays theirs when no page table shows it any more,
/// and so no limit sees it; compilers share files.
const SHARED_ANONYMOUS: libc::c_int = libc::MAP_SHARED | libc::MAP_ANONYMOUS;

/// Options that enlarge a socket's buffers: tree.rs counts each socket with the size that it is made with.
const BUFFERS: [libc::c_int; 4] = [
    libc::SO_SNDBUF,
    libc::SO_RCVBUF,
    libc::SO_SNDBUFFORCE,
    libc::SO_RCVBUFFORCE,
];

/// Requests that type into the terminal of somebody else: TIOCSTI and TIOCLINUX, whose type differs by C library.
const TYPING: [u64; 2] = [0x5412, 0x541C];

/// The filters of a job, for bubblewrap, which reads each from a descriptor that it inherits.
#[derive(Debug)]
pub(super) struct Filters(Vec<OwnedFd>);

impl Filters {
    /// Writes them to memory.
    ///
    /// # Errors
    /// There are no filters for this processor, or no memory.
    pub(super) fn new() -> io::Result<Filters> {
        let programs = programs().map_err(io::Error::other)?;
        let files = programs.iter().map(in_memory);
        Ok(Filters(files.collect::<io::Result<_>>()?))
    }

    /// What bubblewrap (0.5 or newer) is to be called with.
    pub(super) fn arguments(&self) -> impl Iterator<Item = OsString> {
        let named = |file: &OwnedFd| {
            [
                "--add-seccomp-fd".into(),
                file.as_raw_fd().to_string().into(),
            ]
        };
        self.0.iter().flat_map(named)
    }
}

/// A file that only whoever inherits it has.
fn in_memory(program: &BpfProgram) -> io::Result<OwnedFd> {
    let mut file = std::fs::File::from(memfd_create(c"filter", MFdFlags::empty())?);
    file.write_all(&bytes(program))?;
    file.rewind()?;
    Ok(file.into())
}

/// As bubblewrap reads it: `struct sock_filter` of linux/filter.h, one after another.
pub(super) fn bytes(program: &BpfProgram) -> Vec<u8> {
    let steps = program.iter().map(|step| {
        let [low, high] = step.code.to_ne_bytes();
        let [a, b, c, d] = step.k.to_ne_bytes();
        [low, high, step.jt, step.jf, a, b, c, d]
    });
    steps.flatten().collect()
}

/// One for each answer, because a filter has one; of several, the kernel takes the one that refuses.
fn programs() -> Result<[BpfProgram; 3], seccompiler::BackendError> {
    let (mut absent, mut refused) = (Vec::new(), Vec::new());
    for call in ABSENT.iter().chain(ABSENT_HERE) {
        absent.push((*call, Vec::new()));
    }
    let flags = NAMESPACES.iter().fold(0, |all, flag| all | *flag as u32);
    let mut kinds = Vec::new();
    for bit in (0..u32::BITS)
        .map(|shift| 1 << shift)
        .filter(|bit| flags & bit != 0)
    {
        let is_set = SeccompCmpOp::MaskedEq(bit.into());
        kinds.push(rule(&[(CLONE_FLAGS, is_set, bit.into())])?);
    }
    refused.push((libc::SYS_clone, kinds));
    let other: Vec<_> = FAMILIES
        .iter()
        .map(|family| (0, SeccompCmpOp::Ne, *family as u64))
        .collect();
    refused.push((libc::SYS_socket, vec![rule(&other)?]));
    let typing = TYPING.iter();
    let typing = typing.map(|request| rule(&[(1, SeccompCmpOp::Eq, *request)]));
    refused.push((libc::SYS_ioctl, typing.collect::<Result<_, _>>()?));
    let shared = SHARED_ANONYMOUS.unsigned_abs().into();
    let is_shared = rule(&[(MMAP_FLAGS, SeccompCmpOp::MaskedEq(shared), shared)])?;
    refused.push((libc::SYS_mmap, vec![is_shared]));
    let buffers = BUFFERS.iter().map(|option| {
        let level = (1, SeccompCmpOp::Eq, libc::SOL_SOCKET as u64);
        rule(&[level, (2, SeccompCmpOp::Eq, *option as u64)])
    });
    refused.push((libc::SYS_setsockopt, buffers.collect::<Result<_, _>>()?));
    let pipes = rule(&[(1, SeccompCmpOp::Eq, libc::F_SETPIPE_SZ as u64)])?;
    refused.push((libc::SYS_fcntl, vec![pipes]));
    // What it takes of the disk nobody has written, and a file that was removed since hides it. The answer is that of a
    // file system that cannot do it: the C library and LLVM go on without.
    let unsupported = vec![(libc::SYS_fallocate, Vec::new())];
    Ok([
        program(absent, SeccompAction::Errno(Errno::ENOSYS as u32))?,
        program(refused, SeccompAction::Errno(Errno::EPERM as u32))?,
        program(unsupported, SeccompAction::Errno(Errno::EOPNOTSUPP as u32))?,
    ])
}

/// Linux takes them first on all processors that we run on (CONFIG_CLONE_BACKWARDS only moves the others).
const CLONE_FLAGS: u8 = 0;
const MMAP_FLAGS: u8 = 3;

/// Holds where all conditions do: argument, comparison, value. All of them are numbers of 32 bits to the kernel.
pub(super) fn rule(
    conditions: &[(u8, SeccompCmpOp, u64)],
) -> Result<SeccompRule, seccompiler::BackendError> {
    let condition = |(argument, comparison, value): &(u8, SeccompCmpOp, u64)| {
        SeccompCondition::new(
            *argument,
            SeccompCmpArgLen::Dword,
            comparison.clone(),
            *value,
        )
    };
    SeccompRule::new(conditions.iter().map(condition).collect::<Result<_, _>>()?)
}

/// Answers these calls by `action`, and ends whoever calls as a program of another architecture, whose calls have other
/// numbers.
pub(super) fn program(
    rules: Vec<(libc::c_long, Vec<SeccompRule>)>,
    action: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let filter = SeccompFilter::new(
        rules.into_iter().collect(),
        SeccompAction::Allow,
        action,
        TargetArch::try_from(std::env::consts::ARCH)?,
    )?;
    let mut program = BpfProgram::try_from(filter)?;
    #[cfg(target_arch = "x86_64")]
    program.splice(0..0, without_x32());
    Ok(program)
}

/// x32 has the architecture of x86_64 and numbers of its own, with one bit set in all of them.
#[cfg(target_arch = "x86_64")]
fn without_x32() -> [seccompiler::sock_filter; 3] {
    const X32_BIT: u32 = 0x4000_0000;
    let step = |code: u32, jf, k| seccompiler::sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    };
    [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 1, X32_BIT),
        step(
            libc::BPF_RET | libc::BPF_K,
            0,
            libc::SECCOMP_RET_KILL_PROCESS,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_short_and_refuse_what_is_listed_first() {
        let programs = programs().unwrap();
        assert!(programs.iter().all(|program| program.len() < 500));
        let filters = Filters::new().unwrap();
        let arguments: Vec<_> = filters.arguments().collect();
        assert_eq!(arguments.len(), 6);
        assert!(
            arguments
                .iter()
                .step_by(2)
                .all(|word| word == "--add-seccomp-fd")
        );
    }
}
