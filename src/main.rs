//! Parses the command line, runs the chosen command, and maps its outcome to an exit code. The only place that prints
//! errors.

use clap::{CommandFactory, Parser};
use sccache_dock::admin::machine::{self, Done, Failure, Output};
use sccache_dock::base::apparmor;
use sccache_dock::base::terminal::Screen;
use sccache_dock::builder::{self, shim};
use sccache_dock::cli::{Cli, Command};
use sccache_dock::client::build::record;
use sccache_dock::client::{at, build, explain, prefetch};
use sccache_dock::config::settings;
use sccache_dock::exit;
use sccache_dock::{admin, client, doctor};
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::process::CommandExt as _;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let variable = std::env::var_os(shim::VARIABLE);
    if shim::is_called(variable.as_deref(), std::env::args_os().nth(1).as_deref()) {
        return as_bubblewrap(variable.unwrap_or_default());
    }
    let wrapper = match record::recorded() {
        Some(wrapped) => Some((record::record as fn(&OsStr) -> io::Error, wrapped)),
        None => at::wrapped().map(|wrapped| (at::wrap as fn(&OsStr) -> io::Error, wrapped)),
    };
    if let Some((run, wrapped)) = wrapper {
        let error = run(&wrapped);
        let _ = writeln!(
            io::stderr(),
            "error: cannot run {}: {error}",
            wrapped.display()
        );
        return ExitCode::from(exit::NOT_RUNNABLE);
    }
    let wants_json = wants_json(std::env::args_os());
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(refused) if wants_json && refused.use_stderr() => {
            let _ = Failure::usage(&refused.to_string()).print();
            return ExitCode::from(exit::USAGE);
        }
        Err(refused) => refused.exit(),
    };
    let outcome = match command {
        Command::Builder { config, part } => {
            builder::run(config.as_deref(), part).map_err(|error| (error.code(), error.into()))
        }
        Command::Seccomp { profile } => {
            done(io::stdout().write_all(builder::seccomp(profile).as_bytes()))
        }
        Command::Apparmor {
            profile,
            path,
            parser,
        } => {
            let program = path.or_else(|| std::env::current_exe().ok());
            let program = program.unwrap_or_else(|| "/usr/local/bin/sccache-dock".into());
            let parser = parser.unwrap_or_else(apparmor::Parser::of_this_machine);
            let text = apparmor::text(profile, parser, &program);
            done(io::stdout().write_all(text.as_bytes()))
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
        Command::Build(args) => build::run(&args).map_err(|error| (error.code(), error.into())),
        Command::Explain(args) => given(explain::run(&args)),
        Command::Prefetch(args) => given(prefetch::run(&args)),
        Command::AtEnd { folder, wait } => done(at::see_off(&folder, wait)),
        Command::Login(args) => given(client::login::run(&args)),
        Command::Warm(args) if args.json => told(given(client::warm::run(&args))),
        Command::Warm(args) => given(client::warm::run(&args)),
        Command::Doctor(args) => given(doctor::run(&args)),
        Command::Version(output) => {
            // The version is shown even if the settings are invalid.
            let loaded = settings::load().map(|loaded| loaded.settings.sccache);
            done(admin::version(
                &loaded.unwrap_or_else(|_| "sccache".into()),
                output,
            ))
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
        Command::Healthcheck(output) => {
            given(admin::healthcheck(&settings::installation(), output))
        }
        Command::Restart { service, output } => match service {
            Some(service) => tell(&format!("restart {service}"), output),
            None => when(output, given(admin::restart_all(&settings::installation()))),
        },
        Command::Stop { service, output } => tell(&format!("stop {service}"), output),
        Command::Reload(output) => tell("reload", output),
        settled => match settings::load() {
            Ok(loaded) => with_settings(settled, loaded),
            Err(problems) => Err((exit::USAGE, problems.into())),
        },
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err((code, error)) => {
            // Errors are ignored: standard error may be closed.
            let _ = match wants_json {
                true => Failure::new(&*error, code).print(),
                false => writeln!(io::stderr(), "error: {error}"),
            };
            ExitCode::from(code)
        }
    }
}

/// Whether an error is to be printed as JSON: not if the word may belong to the command that `at` or `build` runs.
fn wants_json(mut words: impl Iterator<Item = OsString>) -> bool {
    let command = words.nth(1).unwrap_or_default();
    let runs_another = command == "at" || command == "build";
    !runs_another && words.any(|word| word == "--json")
}

/// `run` lives long, and does so in a program that holds nothing else. Gives the reason if it cannot be had.
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
        Command::Sessions { revoke, output } => given(admin::sessions::run(
            settings,
            revoke.as_deref(),
            output.json,
        )),
        Command::Blob { key, output } => given(admin::inspect::blob(settings, &key, output.json)),
        Command::Access { name, key, output } => {
            given(admin::inspect::access(settings, &name, &key, output.json))
        }
        Command::Config(output) if output.json => done(machine::config(&loaded)),
        Command::Config(_) => {
            let screen = Screen::of_stdout();
            done(admin::config::print(
                &loaded,
                screen,
                &mut io::stdout().lock(),
            ))
        }
        Command::ClientEnv {
            args,
            published,
            json,
        } => given(admin::client_env(settings, &args, &published, json)),
        Command::NextSteps(args) => given(admin::next_steps(settings, &args)),
        Command::Run
        | Command::Builder { .. }
        | Command::At(_)
        | Command::Build(_)
        | Command::Explain(_)
        | Command::Prefetch(_)
        | Command::AtEnd { .. }
        | Command::Seccomp { .. }
        | Command::Apparmor { .. }
        | Command::Completions { .. }
        | Command::Man { .. }
        | Command::Doctor(_)
        | Command::Status { .. }
        | Command::Healthcheck(_)
        | Command::Restart { .. }
        | Command::Stop { .. }
        | Command::Reload(_)
        | Command::Warm(_)
        | Command::Login(_)
        | Command::Version(_) => {
            unreachable!("handled without settings")
        }
    }
}

fn tell(request: &str, output: Output) -> Outcome {
    when(
        output,
        given(admin::tell(&settings::installation(), request)),
    )
}

fn when(output: Output, outcome: Outcome) -> Outcome {
    if output.json { told(outcome) } else { outcome }
}

/// Says to a program that a command has done what it was told.
fn told(outcome: Outcome) -> Outcome {
    let code = outcome?;
    done(machine::print(Done::by(code)))?;
    Ok(code)
}

fn given<E: Error + 'static>(outcome: Result<u8, E>) -> Outcome {
    outcome.map_err(|error| (exit::FAILED, error.into()))
}

fn done<E: Error + 'static>(outcome: Result<(), E>) -> Outcome {
    given(outcome.map(|()| exit::OK))
}
