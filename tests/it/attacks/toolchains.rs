//! Toolchains that are not what their names say, at the real sccache-dist.

use super::outputs::{build, pack, set_up};
use crate::distributed::{Farm, STOCK, distributed};
use std::process::Command;

/// A client of sccache-dist that speaks its protocol by hand (bincode of version 1).
pub(super) struct Attacker<'a> {
    pub(super) farm: &'a Farm,
}

/// What the scheduler gives for a job.
pub(super) struct Allocation {
    auth: String,
    job: u64,
    builder: String,
    pub(super) needs_toolchain: bool,
}

impl Attacker<'_> {
    /// The body of an answer; `None` where it is an error.
    fn post(&self, url: &str, token: &str, body: &[u8]) -> Option<Vec<u8>> {
        let file = self.farm.client.work().join("body");
        std::fs::write(&file, body).unwrap();
        let output = Command::new("curl")
            .args([
                "--silent",
                "--insecure",
                "--fail-with-body",
                "--data-binary",
            ])
            .arg(format!("@{}", file.display()))
            .args(["--header", "Content-Type: application/octet-stream"])
            .args(["--header", &format!("Authorization: Bearer {token}")])
            .arg(url)
            .output()
            .unwrap();
        println!("{url}: {:?}", output.status.code());
        output.status.success().then_some(output.stdout)
    }

    /// A job with the toolchain of this name.
    pub(super) fn allocate(&self, name: &str) -> Allocation {
        let url = format!(
            "http://127.0.0.1:{}/api/v1/scheduler/alloc_job",
            self.farm.front
        );
        let body = text(name);
        let answer = self.post(&url, &self.farm.dock.token(), &body).unwrap();
        let number = |at: usize| u64::from_le_bytes(answer[at..at + 8].try_into().unwrap());
        assert_eq!(answer[..4], [0; 4], "{answer:?}");
        let length = usize::try_from(number(4)).unwrap();
        let after = 12 + length;
        // The job's number, then an address of the fourth version: a tag, four bytes, a port.
        let address = &answer[after + 8..];
        let [a, b, c, d] = address[4..8].try_into().unwrap();
        let port = u16::from_le_bytes([address[8], address[9]]);
        Allocation {
            auth: String::from_utf8(answer[12..after].to_vec()).unwrap(),
            job: number(after),
            builder: format!("{}:{port}", std::net::Ipv4Addr::new(a, b, c, d)),
            needs_toolchain: address[10] == 1,
        }
    }

    /// Sends an archive for the toolchain of this name, whatever is in it, and runs a job with it; gives whether it ran.
    fn send_and_run(&self, name: &str, archive: &[u8]) -> bool {
        let job = self.allocate(name);
        assert!(job.needs_toolchain);
        let answer = self.send(&job, archive);
        assert_eq!(
            answer.unwrap(),
            [2, 0, 0, 0],
            "it says that it could not take it"
        );
        // An empty archive, compressed by not at all.
        let inputs = [
            &[0x78, 0x01, 0x01, 0x00, 0x04, 0xff, 0xfb][..],
            &[0; 1024],
            &[0x04, 0x00, 0x00, 0x01],
        ];
        self.run(&job, &inputs.concat()).is_some()
    }

    fn url(job: &Allocation, what: &str) -> String {
        format!(
            "https://{}/api/v1/distserver/{what}/{}",
            job.builder, job.job
        )
    }

    /// Sends an archive as the toolchain of a job.
    pub(super) fn send(&self, job: &Allocation, archive: &[u8]) -> Option<Vec<u8>> {
        self.post(&Self::url(job, "submit_toolchain"), &job.auth, archive)
    }

    /// Runs a job with these inputs.
    pub(super) fn run(&self, job: &Allocation, inputs: &[u8]) -> Option<Vec<u8>> {
        let none = 0_u64.to_le_bytes();
        // Program, arguments, environment, folder, outputs.
        let command = [&text("/usr/bin/cc")[..], &none, &none, &text("/"), &none].concat();
        let length = u32::try_from(command.len()).unwrap().to_be_bytes();
        let body = [&length[..], &command, inputs].concat();
        self.post(&Self::url(job, "run_job"), &job.auth, &body)
    }
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// The name that sccache makes of an archive.
pub(super) fn name(archive: &[u8]) -> String {
    let hash = blake3::hash(archive);
    let bytes = hash.as_bytes().iter();
    bytes
        .map(|byte| format!("{:02x}", byte.rotate_left(4)))
        .collect()
}

/// What becomes of a client's jobs after an attacker has sent another archive under the name of its toolchain; with each,
/// whether a builder did it.
fn jobs_after_an_attack(farm: &Farm) -> Vec<bool> {
    pack(&farm.client, "own.tar.gz", "right");
    pack(&farm.client, "evil.tar.gz", "wrong");
    set_up(&farm.client, "own.tar.gz");
    let archive = |name: &str| std::fs::read(farm.client.work().join(name)).unwrap();
    let own = name(&archive("own.tar.gz"));
    let attacker = Attacker { farm };
    let ran = attacker.send_and_run(&own, &archive("evil.tar.gz"));
    assert!(!ran);
    let object = |word: &str| {
        build(farm, word);
        let object = farm.client.work().join(format!("{word}.o"));
        let object = std::fs::read(object).unwrap();
        assert_ne!(object, b"wrong", "{word}: the attacker's");
        object == b"right"
    };
    let by_builder: Vec<bool> = ["one", "two", "three", "four"].map(object).into();
    println!("compiled by the builder: {by_builder:?}");
    by_builder
}

#[test]
fn toolchain_of_an_attacker_is_run_for_nobody_else() {
    let Some(farm) = Farm::start_stock() else {
        return;
    };
    // The client compiles by itself, until the builder asks for its toolchain.
    let by_builder = jobs_after_an_attack(&farm);
    assert_eq!(by_builder, [false, true, true, true]);
    assert_eq!(distributed(&farm.statistics()), (3, 1));
    let said = farm.dock.wait_log("a job was refused");
    assert!(
        said.contains("another archive under the name of toolchain"),
        "{said}"
    );
}

#[test]
fn toolchain_of_an_attacker_does_not_get_past_the_relay() {
    let Some(farm) = Farm::start() else { return };
    let by_builder = jobs_after_an_attack(&farm);
    assert_eq!(by_builder, [true; 4], "{}", farm.dock.log());
    assert_eq!(distributed(&farm.statistics()), (4, 0));
    farm.dock
        .wait_log("what was sent is another archive than its name says");
}

#[test]
fn toolchain_that_unpacks_to_too_much_is_refused_and_takes_no_disk() {
    let settings = [("SCCACHE_TOOLCHAIN_SIZE", "64M"), STOCK];
    let Some(farm) = Farm::start_with(&settings) else {
        return;
    };
    let archive = build_with_too_large_a_toolchain(&farm);
    let attacker = Attacker { farm: &farm };
    assert!(
        attacker.allocate(&name(&archive)).needs_toolchain,
        "it is struck off"
    );
}

/// The relay has sent it, and tries again now and then; jobs do not wait for that.
#[test]
fn toolchain_that_no_builder_takes_holds_up_no_client() {
    let Some(farm) = Farm::start_with(&[("SCCACHE_TOOLCHAIN_SIZE", "64M")]) else {
        return;
    };
    build_with_too_large_a_toolchain(&farm);
    let took = build(&farm, "two");
    assert!(took.as_secs() < 10, "{took:?}");
    assert_eq!(distributed(&farm.statistics()), (0, 2));
}

/// Compiles with an archive that unpacks to more than a builder takes; the archive.
fn build_with_too_large_a_toolchain(farm: &Farm) -> Vec<u8> {
    pack(&farm.client, "cc.tar.gz", "an object");
    // Two GiB of zeros after the compiler.
    let bomb = "mkdir zeros && for n in 1 2 3 4 5 6 7 8; do truncate -s 256M zeros/$n; done &&
        tar -cf - -C cc.tar.gz-root usr -C $PWD zeros | gzip -1 >bomb.tar.gz";
    let made = farm.client.sh(bomb);
    assert_eq!(made.code, Some(0), "{}", made.output);
    set_up(&farm.client, "bomb.tar.gz");
    let took = build(farm, "one");
    println!("{took:.2?}");
    assert!(took.as_secs() < 60, "{took:?}");
    assert_eq!(distributed(&farm.statistics()), (0, 1));
    let dir = farm.dock.dir.path().join("builder");
    let left = std::fs::read_dir(dir.join("build/toolchains")).unwrap();
    assert_eq!(left.count(), 0);
    farm.dock
        .wait_log("a toolchain unpacks to more than 64 MiB");
    std::fs::read(farm.client.work().join("bomb.tar.gz")).unwrap()
}
