//! Parses the command line, runs the chosen command, and maps its outcome to an exit code. The only place that prints
//! errors.

use clap::{CommandFactory, Parser};
use sccache_dock::base::terminal::Screen;
use sccache_dock::builder::{self, shim};
use sccache_dock::cli::{Cli, Command};
use sccache_dock::client::at;
use sccache_dock::config::settings;
use sccache_dock::exit;
use sccache_dock::{admin, client, doctor};
use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::process::CommandExt as _;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let variable = std::env::var_os(shim::VARIABLE);
    if shim::is_called(variable.as_deref(), std::env::args_os().nth(1).as_deref()) {
        return as_bubblewrap(variable.unwrap_or_default());
    }
    if let Some(wrapped) = at::wrapped() {
        let error = at::wrap(&wrapped);
        let _ = writeln!(
            io::stderr(),
            "error: cannot run {}: {error}",
            wrapped.display()
        );
        return ExitCode::from(exit::NOT_RUNNABLE);
    }
    let outcome = match Cli::parse().command {
        Command::Builder { config, part } => {
            builder::run(&config, part).map_err(|error| (error.code(), error.into()))
        }
        Command::Seccomp { profile } => {
            done(io::stdout().write_all(builder::seccomp(profile).as_bytes()))
        }
        Command::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "sccache-dock",
                &mut io::stdout(),
            );
            Ok(exit::OK)
        }
        Command::Man { folder } => {
            let written = clap_mangen::generate_to(Cli::command(), &folder);
            let failed = |cause| format!("cannot write manual pages to {folder:?}: {cause}");
            let outcome = written.map(|()| exit::OK).map_err(failed);
            outcome.map_err(|text| (exit::FAILED, text.into()))
        }
        Command::At(args) => match at::run(&args) {
            Ok(never) => match never {},
            Err(error) => Err((error.code(), error.into())),
        },
        Command::AtEnd { folder, wait } => done(at::see_off(&folder, wait)),
        Command::Login(args) => given(client::login::run(&args)),
        Command::Warm(args) => given(client::warm::run(&args)),
        Command::Doctor(args) => given(doctor::run(&args)),
        Command::Version => {
            // The version is shown even if the settings are invalid.
            let loaded = settings::load().map(|loaded| loaded.settings.sccache);
            done(admin::version(&loaded.unwrap_or_else(|_| "sccache".into())))
        }
        Command::Run => Err((exit::USAGE, become_supervisor().into())),
        // A running sccache-dock can be queried even if the settings are invalid.
        Command::Status {
            watch: Some(seconds),
            ..
        } => {
            let period = Duration::from_secs(seconds.into());
            given(admin::watch(&settings::installation(), period))
        }
        Command::Status { json, watch: None } => {
            given(admin::status(&settings::installation(), json))
        }
        Command::Healthcheck => given(admin::healthcheck(&settings::installation())),
        Command::Restart {
            service: Some(service),
        } => tell(&format!("restart {service}")),
        Command::Restart { service: None } => given(admin::restart_all(&settings::installation())),
        Command::Stop { service } => tell(&format!("stop {service}")),
        Command::Reload => tell("reload"),
        settled => match settings::load() {
            Ok(loaded) => with_settings(settled, loaded),
            Err(problems) => Err((exit::USAGE, problems.into())),
        },
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err((code, error)) => {
            // Errors are ignored: standard error may be closed.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::from(code)
        }
    }
}

/// Replaces this process with the program for the long-running supervisor. Returns the reason if that fails.
fn become_supervisor() -> String {
    let program = std::env::current_exe().unwrap_or_else(|_| "sccache-dock".into());
    let program = program.with_file_name("sccache-dock-run");
    let cause = std::process::Command::new(&program).exec();
    format!(
        "cannot run \"{}\": {cause}\nhint: the programs sccache-dock, sccache-dock-run and sccache-dock-gateway must \
         be in one folder",
        program.display()
    )
}

/// `sccache-dist` started this process for a job.
fn as_bubblewrap(terms: OsString) -> ExitCode {
    let arguments = std::env::args_os().skip(1).collect();
    match shim::run(&terms.to_string_lossy(), arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => shim::complain(&error),
    }
}

type Outcome = Result<u8, (u8, Box<dyn Error>)>;

fn with_settings(command: Command, loaded: settings::Loaded) -> Outcome {
    let settings = &loaded.settings;
    match command {
        Command::Purge(args) => given(admin::purge::run(settings, &args)),
        Command::Sessions { revoke } => given(admin::sessions::run(settings, revoke.as_deref())),
        Command::Blob { key } => given(admin::inspect::blob(settings, &key)),
        Command::Access { name, key } => given(admin::inspect::access(settings, &name, &key)),
        Command::Config => {
            let screen = Screen::of_stdout();
            done(admin::config::print(
                &loaded,
                screen,
                &mut io::stdout().lock(),
            ))
        }
        Command::ClientEnv { args, published } => {
            given(admin::client_env(settings, &args, &published))
        }
        Command::NextSteps(args) => given(admin::next_steps(settings, &args)),
        Command::Run
        | Command::Builder { .. }
        | Command::At(_)
        | Command::AtEnd { .. }
        | Command::Seccomp { .. }
        | Command::Completions { .. }
        | Command::Man { .. }
        | Command::Doctor(_)
        | Command::Status { .. }
        | Command::Healthcheck
        | Command::Restart { .. }
        | Command::Stop { .. }
        | Command::Reload
        | Command::Warm(_)
        | Command::Login(_)
        | Command::Version => {
            unreachable!("handled without settings")
        }
    }
}

fn tell(request: &str) -> Outcome {
    given(admin::tell(&settings::installation(), request))
}

fn given<E: Error + 'static>(outcome: Result<u8, E>) -> Outcome {
    outcome.map_err(|error| (exit::FAILED, error.into()))
}

fn done<E: Error + 'static>(outcome: Result<(), E>) -> Outcome {
    given(outcome.map(|()| exit::OK))
}
