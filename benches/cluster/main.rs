//! A small C++ build on one, two and three builders, each in a container with a part of a processor, beside the
//! same build on the client alone and by distcc or icecc: `just bench-cluster`. About nine minutes; wants Docker.
//!
//! Builders and client are containers of one image with one network; only their share of the processors is theirs.
//! The first builder of each kind also does what its cluster needs once (cache and scheduler; icecc's scheduler).
//! Every build compiles sources that nobody has compiled, with the toolchain already on all builders. Within a round
//! each tool has its turn, so that whatever else the machine does meets all of them.
//!
//! ```text
//! --files N         compiles of a build              --size N      work of each, 170 is about a second
//! --rounds N        the median counts                --builders N  from 1 to N
//! --peers A,B       of: distcc icecc                 --cpus A,B    of each builder, of the client
//! --before FOLDER   of another build's programs: one tool more, "before"
//! ```

mod containers;
mod tools;

use containers::{Site, fail};
use std::path::PathBuf;
use std::time::Instant;
use tools::{Build, Tool};

/// What is to be measured.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) files: usize,
    pub(crate) size: usize,
    rounds: usize,
    builders: usize,
    peers: Vec<Tool>,
    pub(crate) builder_cpus: f64,
    pub(crate) client_cpus: f64,
    pub(crate) before: Option<PathBuf>,
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::print_stdout, reason = "the table is the result")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}

fn options() -> Options {
    let mut options = Options {
        files: 12,
        size: 170,
        rounds: 3,
        builders: 3,
        peers: vec![Tool::Distcc],
        builder_cpus: 0.4,
        client_cpus: 0.2,
        before: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        // Cargo adds it.
        if argument == "--bench" {
            continue;
        }
        let value = arguments.next().unwrap_or_default();
        let number = || match value.parse::<usize>() {
            Ok(number) if number > 0 => number,
            _ => fail(&format!("{argument} wants a number above 0, not {value:?}")),
        };
        match argument.as_str() {
            "--files" => options.files = number(),
            "--size" => options.size = number(),
            "--rounds" => options.rounds = number(),
            "--builders" => options.builders = number(),
            "--peers" => options.peers = value.split(',').filter_map(Tool::named).collect(),
            "--before" => options.before = Some(PathBuf::from(&value)),
            "--cpus" => {
                let cpus: Vec<f64> = value.split(',').flat_map(str::parse).collect();
                let [builder, client] = cpus[..] else {
                    fail("--cpus wants two numbers, such as 0.4,0.2");
                };
                (options.builder_cpus, options.client_cpus) = (builder, client);
            }
            _ => fail(&format!(
                "unknown option {argument}; benches/cluster/main.rs lists them"
            )),
        }
    }
    options
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// All rounds of one setting.
struct Row {
    tool: Tool,
    builders: usize,
    builds: Vec<Build>,
}

impl Row {
    fn wall(&self) -> f64 {
        median(self.builds.iter().map(|build| build.wall))
    }
}

/// Every setting of every tool; the builds of this machine alone are spread between those of the clusters.
fn measure(options: &Options, site: &Site) -> (Row, Vec<Row>) {
    let mut tools = vec![Tool::Ours];
    tools.extend(options.before.iter().map(|_| Tool::Before));
    tools.extend(&options.peers);
    let alone = Tool::Alone;
    let mut local = Row {
        tool: alone,
        builders: 0,
        builds: Vec::new(),
    };
    let mut rows = Vec::new();
    let mut sequence = 0;
    let mut build = |tool: Tool, builders: usize| {
        sequence += 1;
        let build = tool.build(site, options, builders, sequence);
        say(&format!(
            "{:<7} {builders} builders: {:>6.2} s wall, {:>5.2} s of the client's processor, {} of {} remote",
            tool.name(),
            build.wall,
            build.client_cpu,
            build.remote,
            options.files
        ));
        build
    };
    for builders in 1..=options.builders {
        for tool in &tools {
            tool.add_builder(site, options, builders);
        }
        let mut group: Vec<Row> = tools
            .iter()
            .map(|&tool| Row {
                tool,
                builders,
                builds: Vec::new(),
            })
            .collect();
        local.builds.push(build(alone, 0));
        for round in 0..options.rounds {
            for turn in 0..group.len() {
                // Who goes first alternates.
                let row = (turn + round) % tools.len();
                let built = build(group[row].tool, builders);
                group[row].builds.push(built);
            }
        }
        rows.extend(group);
    }
    (local, rows)
}

fn report(options: &Options, local: &Row, rows: &[Row]) {
    let alone = local.wall();
    let Options {
        files,
        rounds,
        builder_cpus,
        client_cpus,
        ..
    } = options;
    say(&format!(
        "\n## {files} files on builders of {builder_cpus} cores for a client of {client_cpus}, median of {rounds} rounds\n\n\
         Ideal: all those cores compile all the time; of the builders': theirs alone. In brackets: least and most.\n\n\
         | builders | tool | wall s | speed-up | of the ideal | of the builders' | client CPU s | remote | ours / this |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    ));
    for row in [local].into_iter().chain(rows) {
        let walls = || row.builds.iter().map(|build| build.wall);
        let of_builders = builder_cpus * row.builders as f64 / client_cpus;
        let ideal = of_builders + 1.0;
        let speed_up = alone / row.wall();
        let ours = rows
            .iter()
            .find(|one| one.tool == Tool::Ours && one.builders == row.builders);
        let remote: usize = row.builds.iter().map(|build| build.remote).sum();
        say(&format!(
            "| {} | {} | {:.2} ({:.2}, {:.2}) | {speed_up:.2} | {:.2} | {} | {:.2} | {remote} of {} | {} |",
            row.builders,
            row.tool.name(),
            row.wall(),
            walls().fold(f64::INFINITY, f64::min),
            walls().fold(0.0, f64::max),
            speed_up / ideal,
            match row.builders {
                0 => "-".to_owned(),
                _ => format!("{:.2}", speed_up / of_builders),
            },
            median(row.builds.iter().map(|build| build.client_cpu)),
            files * row.builds.len(),
            ours.map_or("-".to_owned(), |ours| format!(
                "{:.2}",
                ours.wall() / row.wall()
            )),
        ));
    }
    for row in rows.iter().filter(|row| row.tool == Tool::Ours) {
        for build in &row.builds {
            assert_eq!(
                build.remote, *files,
                "compiles that no builder of ours has done"
            );
        }
    }
}

fn main() {
    let options = options();
    let began = now();
    let site = Site::open(&options);
    let (local, rows) = measure(&options, &site);
    report(&options, &local, &rows);
    say(&format!(
        "\nthe whole run took {:.0} s",
        began.elapsed().as_secs_f64()
    ));
}
