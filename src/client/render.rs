//! Writes a [`Set`] in each format.
//!
//! In the shells' text the comments come last: `eval $(..)` without quotes joins all lines to one, and a comment at
//! the front would swallow the rest.

use super::set::{FIRST_PORT, PORTS, Set, Value, empty_folder};
use super::{Lane, SOCKET_PATH_MAX, conf};
use crate::contract::sccache::{ANY_VERSION, OWN_PROTOCOL};
use std::fmt::Write as _;

/// Below the home of whoever evaluates the text.
pub(super) const HOME_FOLDER: &str = ".cache/sccache-dock";
/// The shell's name for that folder while it evaluates the text; one in `/tmp` where there is no home, where it cannot be
/// written to, or where its path is too long for a socket in it.
const FOLDER: &str = "sccache_dock_folder";
/// The name of a socket in that folder takes up to 25 bytes more.
const FOLDER_MAX: usize = SOCKET_PATH_MAX - 25;
/// The same for the folder that holds `.cargo`.
const CARGO_FOLDER_MAX: usize = SOCKET_PATH_MAX - "/.sccache-dock-01234567-01234567.sock".len();
/// The shell's name for a number that tells disk levels apart, each of which has one owner: users and machines may share
/// the folder. It stays the same from start to start, or the level would be lost.
const OWNER: &str = "sccache_dock_owner";
/// Words for a shell that print what it is made from.
const WHO: &str = "id -u; uname -n";
/// The same for daemons: containers may share the folder, the name and all settings too, and a daemon would compile what
/// it sees itself.
const NUMBER: &str = "sccache_dock_number";
const WHERE: &str = "readlink /proc/self/ns/mnt 2>/dev/null";

pub(super) fn sh(set: &Set) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let mut out = format!("unset {};\n", set.strays.join(" "));
    let _ = writeln!(
        out,
        "{FOLDER}=\"${{HOME:-}}/{HOME_FOLDER}\"; \
         {{ [ -n \"${{HOME:-}}\" ] && [ \"${{#{FOLDER}}}\" -le {FOLDER_MAX} ] && mkdir -p -m 700 \"${FOLDER}\" 2>/dev/null \
         && [ -w \"${FOLDER}\" ]; }} || {{ {FOLDER}=\"/tmp/sccache-dock-$(id -u)\"; mkdir -p -m 700 \"${FOLDER}\"; \
         [ -O \"${FOLDER}\" ] || {FOLDER}=$(mktemp -d); }};"
    );
    let _ = writeln!(
        out,
        "{OWNER}=$({{ {WHO}; }} | cksum | cut -d' ' -f1); \
         {NUMBER}=$({{ {WHO}; {WHERE} || :; }} | cksum | cut -d' ' -f1);"
    );
    if let Some(lines) = own_conf(set, quoted) {
        // By way of a name of this shell's own: a daemon that starts meanwhile reads all of it or nothing.
        let _ = writeln!(
            out,
            "(umask 077; printf '%s\\n' {lines} > {0}.$$\" && mv -f {0}.$$\" {0}\");",
            own_conf_path(set)
        );
    }
    for (name, value) in &set.variables {
        let word = match value {
            Value::OwnPort => Some(format!("$(({FIRST_PORT} + {NUMBER} % {PORTS}))")),
            value => shell_word(set, value, quoted),
        };
        if let Some(word) = word {
            let _ = writeln!(out, "export {name}={word};");
        }
    }
    let _ = writeln!(out, "unset {FOLDER} {OWNER} {NUMBER};");
    let undo = format!("unset {}", names(set));
    out + &shell_comment(set, "eval \"$(this command)\"", &undo)
}

pub(super) fn fish(set: &Set) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"));
    let mut out = format!("set -e {};\n", set.strays.join(" "));
    let _ = writeln!(
        out,
        "set -g {FOLDER} \"$HOME/{HOME_FOLDER}\"; \
         test -n \"$HOME\" -a (string length -- \"${FOLDER}\") -le {FOLDER_MAX}; \
         and mkdir -p -m 700 \"${FOLDER}\" 2>/dev/null; and test -w \"${FOLDER}\"; \
         or set -g {FOLDER} /tmp/sccache-dock-(id -u); mkdir -p -m 700 \"${FOLDER}\"; \
         test -O \"${FOLDER}\"; or set -g {FOLDER} (mktemp -d);"
    );
    let _ = writeln!(
        out,
        "set -g {OWNER} (begin; {WHO}; end | cksum | cut -d' ' -f1); \
         set -g {NUMBER} (begin; {WHO}; {WHERE}; end | cksum | cut -d' ' -f1);"
    );
    if let Some(lines) = own_conf(set, quoted) {
        let _ = writeln!(
            out,
            "install -m 600 /dev/null {0}.$fish_pid\"; and printf '%s\\n' {lines} > {0}.$fish_pid\"; \
             and mv -f {0}.$fish_pid\" {0}\";",
            own_conf_path(set)
        );
    }
    for (name, value) in &set.variables {
        let word = match value {
            Value::OwnPort => Some(format!("(math {FIRST_PORT} + ${NUMBER} % {PORTS})")),
            value => shell_word(set, value, quoted),
        };
        if let Some(word) = word {
            let _ = writeln!(out, "set -gx {name} {word};");
        }
    }
    let _ = writeln!(out, "set -e {FOLDER} {OWNER} {NUMBER};");
    let undo = format!("set -e {}", names(set));
    out + &shell_comment(set, "this command | source", &undo)
}

fn shell_word(set: &Set, value: &Value, quoted: impl Fn(&str) -> String) -> Option<String> {
    match value {
        Value::Text(text) => Some(quoted(text)),
        Value::Token(token) => Some(quoted(token.reveal())),
        Value::Inherited | Value::OwnPort => None,
        Value::Folder => Some(format!("\"${FOLDER}/disk-{}-${OWNER}\"", set.place)),
        Value::EmptyFolder => Some(format!("\"${FOLDER}/empty\"")),
        Value::OwnSocket => Some(format!("\"${FOLDER}/{}-${NUMBER}.sock\"", set.id)),
        Value::Toolchains => Some(format!("\"${FOLDER}/dist-{}-${OWNER}\"", set.place)),
        Value::OwnConf => Some(format!("{}\"", own_conf_path(set))),
    }
}

/// The config file as words for `printf`, where the shell writes it: lines of their own would not survive an `eval`
/// without quotes, which a here-document needs.
fn own_conf(set: &Set, quoted: impl Fn(&str) -> String) -> Option<String> {
    let is_ours = |(_, value): &(&str, Value)| *value == Value::OwnConf;
    set.variables.iter().find(|it| is_ours(it))?;
    let text = conf::marked(set);
    let words: Vec<String> = text.lines().map(quoted).collect();
    Some(words.join(" "))
}

/// Without its closing quote.
fn own_conf_path(set: &Set) -> String {
    format!("\"${FOLDER}/{}", conf_name(set))
}

pub(super) fn conf_name(set: &Set) -> String {
    format!("dist-{}.conf", set.id)
}

fn names(set: &Set) -> String {
    let names: Vec<&str> = set.variables.iter().map(|(name, _)| *name).collect();
    names.join(" ")
}

fn shell_comment(set: &Set, usage: &str, undo: &str) -> String {
    let warm = if set.lane == Lane::Dist {
        "# then, once: sccache-dock warm, which also says with how many jobs to build\n"
    } else {
        ""
    };
    format!(
        "# {}\n# use: {usage}\n{warm}# undo: {undo}\n# {}\n{}",
        about(set),
        daemon(set.lane),
        if set.endpoint.starts_with("https:") {
            PRIVATE_CA
        } else {
            ""
        }
    )
}

/// sccache trusts what the system trusts, and Mozilla's list.
const PRIVATE_CA: &str = "# a private CA: add it to the system's store, or export SSL_CERT_FILE=/path/to/ca.pem before \
     the first compile\n";

fn about(set: &Set) -> String {
    match set.lane {
        Lane::Webdav => format!("sccache with the shared cache at {}", set.endpoint),
        Lane::Dist => format!(
            "sccache with the shared cache at {} and the compile cluster at {}",
            set.endpoint,
            set.dist.as_ref().map_or("", |dist| &dist.scheduler)
        ),
        Lane::Ipc => own_protocol("on this host"),
        Lane::Socket => own_protocol("behind a socket"),
    }
}

fn own_protocol(place: &str) -> String {
    let (oldest, newest) = (OWN_PROTOCOL.start(), OWN_PROTOCOL.end());
    format!(
        "sccache in client-side mode ({oldest} to {newest}; for a newer one, which is untested, {ANY_VERSION}) with the \
         shared cache {place}"
    )
}

fn daemon(lane: Lane) -> &'static str {
    match lane {
        Lane::Webdav | Lane::Dist => {
            "a daemon with other settings is not in the way: this set has a socket of its own; \
             an idle one ends by itself after 10 minutes"
        }
        Lane::Ipc | Lane::Socket => {
            "if an sccache daemon of yours runs on the gateway's address, stop it once: sccache --stop-server"
        }
    }
}

pub(super) fn docker(set: &Set) -> String {
    let mut out = format!(
        "# {}\n# use: docker run --env-file FILE .., or env_file in Compose; the image needs sccache on its PATH\n",
        about(set)
    );
    for (name, value) in &set.variables {
        let _ = match literal(set, value) {
            Some(text) => writeln!(out, "{name}={text}"),
            // A bare name makes Docker take the value from its own environment.
            None => writeln!(out, "{name}"),
        };
    }
    // An image may have some of its own.
    out + &neutral(set)
}

fn neutral(set: &Set) -> String {
    let lines = set
        .neutral()
        .map(|(name, value)| format!("{name}={value}\n"));
    lines.collect()
}

/// No comments: the runner takes every line for a variable.
pub(super) fn github(set: &Set) -> String {
    let mut out = String::new();
    for (name, value) in &set.variables {
        if let Some(text) = literal(set, value) {
            let _ = writeln!(out, "{name}={text}");
        }
    }
    out + &neutral(set)
}

/// Where nothing expands `$HOME`: a container's or a runner's own `/tmp`.
fn literal(set: &Set, value: &Value) -> Option<String> {
    match value {
        Value::Text(text) => Some(text.clone()),
        Value::Token(token) => Some(token.reveal().to_owned()),
        Value::Inherited => None,
        Value::Folder => Some(format!("/tmp/sccache-dock-{}", set.place)),
        Value::EmptyFolder => Some(empty_folder(set)),
        Value::OwnSocket => Some(format!("/tmp/sccache-dock-{}.sock", set.id)),
        Value::OwnPort => Some(set.port().to_string()),
        Value::Toolchains => Some(format!("/tmp/sccache-dock-dist-{}", set.place)),
        Value::OwnConf => None,
    }
}

pub(super) fn cargo(set: &Set) -> String {
    let mut out = format!(
        "# {}\n# use: append to ~/.cargo/config.toml, or to .cargo/config.toml of a project; undo: remove it again\n\
         # variables of the environment beat this file, so that a container or a shell can choose another cache;\n\
         # sccache-dock doctor names those that are left over\n",
        about(set)
    );
    if !matches!(set.lane, Lane::Webdav | Lane::Dist) {
        out.push_str("# SCCACHE_LOG turns client-side mode off, and this file cannot unset it\n");
    }
    let export = "export SCCACHE_SERVER_UDS=\"$HOME/.cache/sccache-daemon\"";
    if set.is_shared() {
        let _ = writeln!(
            out,
            "# on a machine with several users, each of them: {export}"
        );
    } else if matches!(set.lane, Lane::Webdav | Lane::Dist) {
        let _ = writeln!(
            out,
            "# the daemon's socket is in the folder that holds .cargo; if that one is read-only, has a path of more than \
             {CARGO_FOLDER_MAX}\n# bytes, or is shared by containers, each of them: {export}"
        );
    }
    let _ = writeln!(out, "# {}", daemon(set.lane));
    out.push_str("[build]\nrustc-wrapper = \"sccache\"\nincremental = false\n\n[env]\n");
    for (name, value) in &set.variables {
        let (name, value) = match value {
            // CARGO_INCREMENTAL stays, though `incremental` says the same: as a variable it is part of every key.
            Value::Text(_) if *name == "RUSTC_WRAPPER" => continue,
            // Sccache's default folders for toolchains and for the disk level are as good. One setting of the disk level is
            // enough to turn it on: SCCACHE_LOCAL_RW_MODE, among the neutral ones below.
            Value::Inherited | Value::Toolchains | Value::OwnConf | Value::Folder => continue,
            // Not beside this file, where a checkout may be read-only: a compiler needs `/tmp` anyway.
            Value::EmptyFolder => (*name, empty_folder(set)),
            // A file that several people, containers and systems share names no path.
            Value::OwnSocket if set.is_shared() => continue,
            // Beside the `.cargo` folder that holds this file: in `/tmp` any user could bind the name first, and would be
            // sent the whole environment. Each print has another name, as machines may share the folder.
            Value::OwnSocket => {
                let random = getrandom::u32().unwrap_or_default();
                let socket = format!(".sccache-dock-{}-{random:08x}.sock", set.id);
                let _ = writeln!(out, "{name} = {{ value = \"{socket}\", relative = true }}");
                continue;
            }
            Value::OwnPort => (*name, set.port().to_string()),
            Value::Text(text) => (*name, text.clone()),
            Value::Token(token) => (*name, token.reveal().to_owned()),
        };
        let _ = writeln!(out, "{name} = {}", toml::Value::String(value));
    }
    for (name, value) in set.neutral() {
        let _ = writeln!(out, "{name} = \"{value}\"");
    }
    out
}

pub(super) fn toml(set: &Set) -> String {
    let mut out = format!(
        "{}\n# {}\n# use: save as ~/.config/sccache/config, or anywhere and set SCCACHE_CONF; undo: remove it again\n\
         # sccache before 0.19 refuses this file: use another format there\n\
         # environment variables beat this file; sccache reads these from the environment only:\n",
        conf::MARK,
        about(set)
    );
    for (name, value) in &set.variables {
        let value = match value {
            Value::Text(_) if conf::covers(name) => continue,
            Value::Text(text) => text.clone(),
            Value::OwnSocket => format!("\"$HOME/.sccache-dock-{}-$(uname -n).sock\"", set.id),
            Value::OwnPort => set.port().to_string(),
            Value::Token(_)
            | Value::Folder
            | Value::EmptyFolder
            | Value::Toolchains
            | Value::OwnConf => continue,
            Value::Inherited => {
                out.push_str("#   SCCACHE_WEBDAV_TOKEN has no effect: add token = \"..\" to [cache.webdav]\n");
                continue;
            }
        };
        let _ = writeln!(out, "#   export {name}={value}");
    }
    out.push_str(
        "# and these must not be set there:\n#   unset SCCACHE_CONF, unless it names this file\n",
    );
    for names in set.strays.chunks(3) {
        let _ = writeln!(out, "#   unset {}", names.join(" "));
    }
    out.push_str("# a daemon that runs already keeps its old settings: stop it once with sccache --stop-server\n\n");
    out + &conf::text(set)
}
