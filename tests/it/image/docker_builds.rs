//! Builds inside `docker build`, by BuildKit, and the image itself by either builder.

use super::compose::docker_with_plugins;
use crate::docker::{LONG, Ran, counts, run};
use crate::harness::{clean, now, skip, tools};
use crate::site::Site;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Docker with BuildKit; `None`, and a line, where its plugin is not installed.
fn buildkit() -> Option<()> {
    let asked = docker_with_plugins("docker")
        .args(["buildx", "version"])
        .output();
    let answers = asked.is_ok_and(|output| output.status.success());
    if !answers {
        skip("no docker buildx");
    }
    answers.then_some(())
}

/// A C compiler of this machine, whose distribution is the image's, as an archive for `ADD`.
fn compiler(to: &Path) {
    let said = |program: &str, args: &[&str]| run(clean(program).args(args), LONG).ok();
    let cc1 = said("gcc", &["-print-prog-name=cc1"]);
    let mut files = BTreeSet::new();
    for program in ["/usr/bin/gcc", "/usr/bin/as", &cc1] {
        files.insert(program.to_owned());
        let libraries = said("ldd", &[program]);
        let paths = libraries
            .split_whitespace()
            .filter(|word| word.starts_with('/'));
        files.extend(paths.map(str::to_owned));
    }
    let mut tar = clean("tar");
    tar.args(["--create", "--dereference", "--absolute-names", "--file"]);
    run(tar.arg(to).args(files), LONG).ok();
}

#[test]
fn build_by_buildkit_takes_from_the_cache_and_keeps_no_token() {
    let Some(site) = Site::open() else { return };
    if buildkit().is_none() {
        return;
    }
    let script = site.script("buildkit");
    script.call(&["start", "ephemeral"]).ok();
    let settings = script
        .call(&["env", "--format", "docker", "--no-disk"])
        .ok();
    let secret = site.home.path().join("build.env");
    fs::write(&secret, settings).unwrap();
    let context = tempfile::tempdir().unwrap();
    compiler(&context.path().join("gcc.tar"));
    fs::write(
        context.path().join("a.c"),
        "int main(void) { return 42; }\n",
    )
    .unwrap();
    let client = client_image(&site);
    // Two lines more than without a cache, as in docs/docker-builds.md: a COPY, and the secret of the RUN.
    let dockerfile = format!(
        "FROM {0}\nADD gcc.tar /\nCOPY --from={client} / /opt/\n\
         WORKDIR /work\nCOPY a.c .\nRUN --mount=type=secret,id=cache \\\n    \
         set -a && . /run/secrets/cache && /opt/sccache gcc -c a.c -o a.o\n",
        site.image
    );
    fs::write(context.path().join("Dockerfile"), dockerfile).unwrap();
    let image = format!("{}-built", site.image);
    let build = |network: &[&str]| {
        let mut command = docker_with_plugins("docker");
        command
            .env("DOCKER_BUILDKIT", "1")
            .args(["build", "--no-cache", "--tag", &image]);
        command.args(network);
        command.arg(format!("--secret=id=cache,src={}", secret.display()));
        run(command.arg(context.path()), LONG)
    };
    for (hits, misses) in [(0, 1), (1, 1)] {
        let begin = now();
        let ran = build(&["--network", "host"]);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        println!("built after {:.1?}", begin.elapsed());
        let (found, missed, _) = counts(&script.status());
        assert_eq!((found, missed), (hits, misses), "{}", ran.stderr);
    }
    // What was copied is all that the client's image has.
    let container = site.docker.ok(&["create", &client]);
    let listed = format!(
        "docker export {container} | tar --list | grep -v -e /$ -e ^dev/ -e ^etc/ -e ^.dockerenv$"
    );
    let files = run(clean("sh").args(["-c", &listed]), LONG);
    site.docker.ok(&["rm", &container]);
    let mut files: Vec<&str> = files.stdout.lines().collect();
    files.sort_unstable();
    assert_eq!(files, ["sccache", "sccache-dock"]);
    install_both(&site, &client);
    site.docker.ok(&["rmi", &client]);
    // Nobody who has the image has the token.
    let token = script.token();
    let archive = context.path().join("image.tar");
    let archive = archive.to_str().unwrap();
    site.docker.ok(&["save", "--output", archive, &image]);
    let mut grep = clean("grep");
    let found = run(
        grep.args(["--count", "--text", "--fixed-strings", &token, archive]),
        LONG,
    );
    assert_eq!(found.stdout.trim(), "0", "the token is in the image");
    site.docker.ok(&["rmi", &image]);
    // What older guides say is refused, by whatever name.
    let ran = build(&["--network", "builds"]);
    assert_ne!(ran.code, Some(0));
    assert!(
        ran.stderr.contains("not supported by buildkit"),
        "{}",
        ran.stderr
    );
}

/// A step of CI takes its programs from the client's image, and leaves no other version's gateway beside them.
fn install_both(site: &Site, client: &str) {
    let bin = site.home.path().join("ci-bin");
    fs::create_dir(&bin).unwrap();
    fs::write(bin.join("sccache-dock-gateway"), "of an older image").unwrap();
    let mut command = site.script("step").command();
    command
        .env("SCCACHE_DOCK_IMAGE", client)
        .arg("install-client");
    let ran = run(command.arg(&bin), LONG);
    ran.refused(0, &["has no sccache-dock-gateway, which"]);
    let mut installed: Vec<_> = fs::read_dir(&bin)
        .unwrap()
        .map(|it| it.unwrap().file_name())
        .collect();
    installed.sort_unstable();
    assert_eq!(installed, ["sccache", "sccache-dock"]);
}

/// The client's image, with programs of this machine: static ones take minutes to compile.
fn client_image(site: &Site) -> String {
    let context = tempfile::tempdir().unwrap();
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("images");
    let prebuilt = context.path().join("images/prebuilt/client");
    fs::create_dir_all(&prebuilt).unwrap();
    for file in ["binaries.sh", "common.sh", "sccache.sha256"] {
        fs::copy(images.join(file), context.path().join("images").join(file)).unwrap();
    }
    fs::copy(stripped(site), prebuilt.join("sccache-dock")).unwrap();
    fs::copy(crate::harness::sccache_bin(), prebuilt.join("sccache")).unwrap();
    let image = format!("{}-client", site.image);
    let mut build = docker_with_plugins("docker");
    build
        .env("DOCKER_BUILDKIT", "1")
        .args(["build", "--tag", &image, "--file"]);
    build.arg(images.join("client.Dockerfile"));
    build.arg(format!("--build-arg=BUILD_IMAGE={}", site.base().unwrap()));
    let ran = run(build.arg(context.path()), LONG);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    image
}

/// What an image is, as far as its user sees it, and what is in it.
fn nature(site: &Site, image: &str) -> String {
    let config = site
        .docker
        .ok(&["image", "inspect", "--format", "{{json .Config}}", image]);
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let mut text = String::new();
    for field in [
        "Env",
        "Entrypoint",
        "Cmd",
        "Healthcheck",
        "Volumes",
        "ExposedPorts",
        "StopSignal",
        "User",
        "WorkingDir",
    ] {
        let value = &config[field];
        let nothing = value.is_null() || value == "" || value == "/";
        text += &format!(
            "{field}: {}\n",
            if nothing {
                String::new()
            } else {
                value.to_string()
            }
        );
    }
    let labels = config["Labels"].as_object().unwrap();
    for (name, value) in labels.iter().filter(|(name, _)| name.starts_with("org.")) {
        text += &format!("{name}: {value}\n");
    }
    let files =
        "cd /usr/local/bin && sha256sum * && stat -c '%a %u %g %n' /var/sccache * && id sccache";
    text + &site
        .docker
        .ok(&["run", "--rm", "--entrypoint", "sh", image, "-c", files])
}

#[test]
fn image_is_the_same_by_either_builder_whatever_the_default_of_buildx_is() {
    let Some(site) = Site::open() else { return };
    if buildkit().is_none() {
        return;
    }
    // A default builder that keeps images to itself, and here could not even start.
    let config = tempfile::tempdir().unwrap();
    let plugins = tools().join("docker/cli-plugins");
    std::os::unix::fs::symlink(plugins, config.path().join("cli-plugins")).unwrap();
    let with =
        |command: &mut Command| -> Ran { run(command.env("DOCKER_CONFIG", config.path()), LONG) };
    let driver = [
        "--driver",
        "docker-container",
        "--name",
        "sdit-elsewhere",
        "--use",
    ];
    with(
        site.docker
            .command()
            .args(["buildx", "create"])
            .args(driver),
    )
    .ok();
    let script = site.script("either");
    let build = |image: &str, kit: &str| {
        let program = stripped(&site);
        let mut command = script.command();
        command
            .args(["build", "debian"])
            .env("SCCACHE_IMAGE_NAME", image)
            .env("SCCACHE_DOCK_PROGRAM", program)
            .env("DOCKER_BUILDKIT", kit);
        with(&mut command)
    };
    let images = ["0", "1"].map(|kit| (format!("{}-by{kit}", site.image), kit));
    let natures = images.map(|(image, kit)| {
        let begin = now();
        let ran = build(&image, kit);
        assert_eq!(ran.code, Some(0), "DOCKER_BUILDKIT={kit}: {}", ran.stderr);
        println!("DOCKER_BUILDKIT={kit}: {:.1?}", begin.elapsed());
        let nature = nature(&site, &image);
        site.docker.ok(&["rmi", &image]);
        nature
    });
    assert_eq!(natures[0], natures[1]);
    assert!(natures[0].contains("healthcheck"), "{}", natures[0]);
    with(
        site.docker
            .command()
            .args(["buildx", "rm", "--force", "sdit-elsewhere"]),
    );
}

/// The programs under test without their debug information, which is nine tenths of them.
fn stripped(site: &Site) -> PathBuf {
    for built in [
        crate::dock::program(),
        crate::dock::supervisor_program(),
        crate::dock::gateway_program(),
    ] {
        let copy = site.home.path().join(built.file_name().unwrap());
        run(
            clean("strip").arg("-g").arg("-o").arg(&copy).arg(&built),
            LONG,
        )
        .ok();
    }
    site.home.path().join("sccache-dock")
}
