//! Bazel: the real one where it is installed, and its requests by hand. A result is served only with all that it names.

use crate::builders::{assert_built, counts};
use crate::dock::Dock;
use crate::harness::{Gateway, has_program};
use crate::machine::Machine;

fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut length = content.len();
    let mut out = vec![number << 3 | 2];
    while length >= 0x80 {
        out.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
        length >>= 7;
    }
    out.push(u8::try_from(length).unwrap());
    out.extend(content);
    out
}

fn digest(hash: &str) -> Vec<u8> {
    [field(1, hash.as_bytes()), vec![2 << 3, 5]].concat()
}

/// The name of a blob; what it holds does not matter here.
fn hash(letter: char) -> String {
    letter.to_string().repeat(64)
}

fn file(letter: char) -> Vec<u8> {
    let path = field(1, format!("bazel-out/{letter}").as_bytes());
    [path, field(2, &digest(&hash(letter)))].concat()
}

/// An `ActionResult` with a file `a`, a folder `c` and a standard error `e`.
fn result() -> Vec<u8> {
    let folder = [field(1, b"folder"), field(2, &digest(&hash('c')))].concat();
    [
        field(2, &file('a')),
        field(3, &folder),
        field(8, &digest(&hash('e'))),
    ]
    .concat()
}

/// The `Tree` of the folder, with a file `d` at its root and a file `f` below.
fn tree() -> Vec<u8> {
    let holding = |letter| field(1, &file(letter));
    [field(1, &holding('d')), field(2, &holding('f'))].concat()
}

fn put(gateway: &Gateway, path: &str, body: &[u8]) {
    let code = gateway.request("PUT", path, body).code;
    assert!([201, 204].contains(&code), "{path}: {code}");
}

fn get(gateway: &Gateway, path: &str) -> u16 {
    gateway.request("GET", path, b"").code
}

fn put_all(gateway: &Gateway, folder: &str) {
    for letter in ['a', 'd', 'e', 'f'] {
        put(gateway, &format!("{folder}/cas/{}", hash(letter)), b"12345");
    }
    put(gateway, &format!("{folder}/cas/{}", hash('c')), &tree());
    put(gateway, &format!("{folder}/ac/{}", hash('9')), &result());
}

#[test]
fn result_is_missing_while_a_blob_of_it_is() {
    let gateway = Gateway::start();
    for folder in ["", "/team/bazel"] {
        let action = format!("{folder}/ac/{}", hash('9'));
        put_all(&gateway, folder);
        assert_eq!(gateway.request("GET", &action, b"").body, result());
        for letter in ['a', 'c', 'd', 'e', 'f'] {
            let blob = format!("{folder}/cas/{}", hash(letter));
            let body = gateway.request("GET", &blob, b"").body;
            assert_eq!(gateway.request("DELETE", &blob, b"").code, 204);
            assert_eq!(get(&gateway, &action), 404, "{folder} without {letter}");
            put(&gateway, &blob, &body);
            assert_eq!(get(&gateway, &action), 200, "{folder} with {letter}");
        }
    }
    let status = gateway.status();
    assert_eq!(status.namespaces["ac"].misses, 5, "{status:?}");
}

#[test]
fn what_is_no_result_is_served_as_it_is() {
    let gateway = Gateway::start();
    let action = format!("/ac/{}", hash('8'));
    for body in [&b""[..], b"no message", &[0xff; 30], &vec![0x12; 5 << 20]] {
        put(&gateway, &action, body);
        assert!(gateway.request("GET", &action, b"").body == body);
    }
    // ccache has such a folder too.
    let entry = "/ac/0123456789abcdef0123456789abcdefghijklm";
    put(&gateway, entry, &result());
    assert_eq!(get(&gateway, entry), 200);
}

#[test]
fn blobs_are_not_evicted_before_the_result_that_is_used() {
    let gateway = Gateway::start_with(|config| config.budget_bytes = 2 << 20);
    put_all(&gateway, "");
    let action = format!("/ac/{}", hash('9'));
    for turn in 0..40 {
        put(&gateway, &format!("/cas/{turn:064}"), &[7; 100 << 10]);
        assert_eq!(get(&gateway, &action), 200, "after {turn} others");
    }
    assert!(gateway.status().store.evicted_entries > 10);
}

#[test]
fn bazel_stores_and_hits() {
    let dock = Dock::start(&[]);
    let machine = Machine::new();
    if !has_program("bazel") {
        return;
    }
    machine.write("WORKSPACE", "");
    machine.write("in.txt", "hello\n");
    machine.write(
        "BUILD",
        "genrule(name = \"it\", srcs = [\"in.txt\"], outs = [\"out.txt\"], cmd = \"tr a-z A-Z < $< > $@\")\n",
    );
    // What Bazel has of its own is as new each time; its files are read-only.
    let script = format!(
        "chmod -R u+w own 2>gone; rm -rf own
        case $(bazel --version) in
        'bazel '[1-5].*) own_modules= ;;
        *) own_modules='--noenable_bzlmod --enable_workspace' ;; # no registry of modules is asked
        esac
        bazel --batch --output_user_root=\"$PWD/own\" build --spawn_strategy=local $own_modules \\
            --remote_cache=http://{} --remote_header='Authorization=Bearer {}' //:it &&
        cat bazel-bin/out.txt",
        dock.address(),
        dock.token()
    );
    assert_built(&machine.sh(&script));
    let [_, _, written] = counts(&dock, "cas");
    // A miss makes no namespace: the first one counts as another's.
    assert_eq!(counts(&dock, "ac"), [0, 0, 1]);
    assert!(written >= 1);
    let warm = machine.sh(&script);
    assert_built(&warm);
    assert!(
        warm.output.contains("1 remote cache hit"),
        "{}",
        warm.output
    );
    assert_eq!(counts(&dock, "ac"), [1, 0, 1]);
    let [hits, _, written_warm] = counts(&dock, "cas");
    assert!(
        hits >= 1 && written_warm == written,
        "{hits} {written_warm}"
    );
    // Bazel 7 ends with "Missing digest" where it is given a result without its blobs.
    let purged = dock.command(&["purge", "--namespace", "cas"]);
    assert!(purged.status.success(), "{purged:?}");
    assert_built(&machine.sh(&script));
    assert_eq!(counts(&dock, "ac"), [1, 1, 2]);
}
