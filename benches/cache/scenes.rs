//! What is measured, and the tables.

use crate::load::{self, Figures, Lane, Until};
use crate::peers::{AMPLE, Peer, TOKEN, Verb, archive};
use crate::{Options, now, say};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

const TIGHT: u64 = 64 << 20;
/// Bytes of different blobs that one peer is given of one size: of short ones no key comes twice, as it never does
/// from compilers. A file that takes another's place is a file removed, after which ext4 is slow to find room for a
/// new one, whoever asks.
const FRESH: u64 = 768 << 20;
const FRESH_SHORT: u64 = 16 << 30;
const SHORT: usize = 256 << 10;

/// One peer's figures of all rounds of one measurement.
#[derive(Default)]
struct Series {
    rounds: Vec<Figures>,
    cpu_per_gb: Vec<f64>,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Series {
    fn of(&self, figure: impl Fn(&Figures) -> f64) -> f64 {
        median(self.rounds.iter().map(figure).collect())
    }

    fn row(&self, first: Option<&Series>, what: &str, name: &str) -> String {
        let figures: [fn(&Figures) -> f64; 3] = [
            |one| one.per_second,
            |one| one.p50_micros,
            |one| one.p99_micros,
        ];
        let mut row = format!("| {what} | {name} |");
        for figure in figures {
            let own = self.of(figure);
            let ratio = first.map_or(1.0, |first| own / first.of(figure));
            row += &format!(" {own:.0} ({ratio:.2}) |");
        }
        let cpu = median(self.cpu_per_gb.clone());
        let ratio = first.map_or(1.0, |first| cpu / median(first.cpu_per_gb.clone()));
        row + &format!(" {cpu:.2} ({ratio:.2}) |")
    }
}

/// One round of one peer. A GET takes the keys of the ring in turn, a PUT new ones, as compilers do, until
/// [`FRESH`] bytes of them are there, or [`FRESH_SHORT`].
fn measure(
    peer: &Peer,
    verb: Verb,
    body: &[u8],
    connections: usize,
    until: Until,
) -> io::Result<(Figures, f64)> {
    let ring = match verb {
        Verb::Put if body.len() < SHORT => FRESH_SHORT / body.len() as u64,
        Verb::Put => FRESH / body.len() as u64,
        Verb::Get | Verb::Handshake => keys(body.len()),
    };
    let before = peer.cpu_seconds();
    let figures = load::run(peer.addr, peer.lane, connections, until, || {
        peer.request(verb, peer.next.fetch_add(1, Relaxed) % ring, body)
    })
    .map_err(|cause| io::Error::other(format!("{} {verb:?}: {cause}", peer.name)))?;
    let cpu = peer.cpu_seconds() - before;
    Ok((figures.clone(), cpu / (figures.bytes as f64 / 1e9)))
}

/// Puts every key of the ring once.
pub(crate) fn fill(peer: &Peer, body: &[u8]) -> io::Result<()> {
    let (mut key, keys) = (0, keys(body.len()));
    let all = Until::Answers(usize::try_from(keys).unwrap_or(usize::MAX));
    load::run(peer.addr, peer.lane, 1, all, || {
        key += 1;
        peer.request(Verb::Put, key % keys, body)
    })?;
    Ok(())
}

fn table(title: &str, first: &str) {
    say(&format!(
        "\n## {title}\n\nIn brackets: divided by {first}'s.\n"
    ));
    say(
        "| load | server | requests/s | p50 µs | p99 µs | server CPU s/GB |\n| --- | --- | --- | --- | --- | --- |",
    );
}

fn size_name(size: usize) -> String {
    if size >= 1 << 20 {
        format!("{} MiB", size >> 20)
    } else {
        format!("{} KiB", size >> 10)
    }
}

fn keys(size: usize) -> u64 {
    if size > 1 << 20 { 16 } else { 64 }
}

/// All rounds of one row, each peer in its turn; the first peer is the measure of the others.
fn rows(
    options: &Options,
    peers: &[Peer],
    verb: Verb,
    body: &[u8],
    connections: usize,
    what: &str,
) -> io::Result<()> {
    let mut series: Vec<Series> = peers.iter().map(|_| Series::default()).collect();
    for _ in 0..options.rounds {
        for (peer, series) in peers.iter().zip(&mut series) {
            let (figures, cpu) =
                measure(peer, verb, body, connections, Until::Time(options.lasting))?;
            series.rounds.push(figures);
            series.cpu_per_gb.push(cpu);
        }
    }
    for (peer, one) in peers.iter().zip(&series) {
        say(&one.row(series.first(), what, peer.name));
    }
    Ok(())
}

fn without_missing(started: io::Result<Peer>, name: &str) -> Option<Peer> {
    started
        .inspect_err(|cause| say(&format!("without {name}: {cause}")))
        .ok()
}

/// GET and PUT over HTTP, beside nginx, as it is and with files kept open, and Redis.
pub(crate) fn blobs(options: &Options, get: bool, put: bool) -> io::Result<()> {
    if !get && !put {
        return Ok(());
    }
    let at = |name: &str| options.folder.join(name);
    let nginx = without_missing(Peer::nginx(&at("nginx")), "nginx");
    let open = if nginx.is_some() && get {
        without_missing(Peer::nginx_with_open_files(&at("open")), "its open files")
    } else {
        None
    };
    let redis = without_missing(Peer::redis(&at("redis")), "redis");
    let ours = Peer::ours(&at("ours"), Lane::Http, AMPLE)?;
    let peers: Vec<Peer> = nginx
        .into_iter()
        .chain(open)
        .chain([ours])
        .chain(redis)
        .collect();
    get_and_put(options, &peers, get, put)
}

/// GET and PUT over HTTP, beside other builds of the gateway.
pub(crate) fn builds(options: &Options) -> io::Result<()> {
    let at = |name: &str| options.folder.join(format!("build-{name}"));
    let mut peers = vec![Peer::ours(&at("ours"), Lane::Http, AMPLE)?];
    for (name, program) in &options.builds {
        peers.push(Peer::build(name, program, &at(name))?);
    }
    get_and_put(options, &peers, true, true)
}

fn get_and_put(options: &Options, peers: &[Peer], get: bool, put: bool) -> io::Result<()> {
    for (verb, wanted) in [(Verb::Get, get), (Verb::Put, put)] {
        if !wanted {
            continue;
        }
        table(&format!("{verb:?}"), peers[0].name);
        for &size in &options.sizes {
            let body = archive(size);
            for peer in peers {
                fill(peer, &body)?;
            }
            for &connections in &options.connections {
                rows(
                    options,
                    peers,
                    verb,
                    &body,
                    connections,
                    &format!("{}, {connections} connections", size_name(size)),
                )?;
            }
        }
    }
    Ok(())
}

/// GETs of blobs in the last of three layers, next to GETs without layers.
pub(crate) fn layers(options: &Options) -> io::Result<()> {
    let folder = options.folder.join("layers");
    std::fs::create_dir_all(&folder)?;
    let tokens = folder.join("tokens.toml");
    let grant = |layers: &str| {
        let text = format!("[[token]]\nname = \"bench\"\ntoken = \"{TOKEN}\"\n{layers}\n");
        std::fs::write(&tokens, text)?;
        // The file is followed.
        std::thread::sleep(Duration::from_secs(2));
        Ok::<_, io::Error>(())
    };
    grant("read = [\"main\"]\nwrite = \"main\"")?;
    let plain = Peer::ours(&options.folder.join("plain"), Lane::Http, AMPLE)?;
    let layered = Peer::ours_with_tokens(&folder, &tokens)?;
    let bodies: Vec<Vec<u8>> = options.sizes.iter().map(|&size| archive(size)).collect();
    let peers = [plain, layered];
    table("GET through layers", peers[0].name);
    for body in &bodies {
        grant("read = [\"main\"]\nwrite = \"main\"")?;
        for peer in &peers {
            fill(peer, body)?;
        }
        grant("read = [\"pr/1\", \"team\", \"main\"]\nwrite = \"pr/1\"")?;
        for &connections in &options.connections {
            let what = format!("{}, {connections} connections", size_name(body.len()));
            rows(options, &peers, Verb::Get, body, connections, &what)?;
        }
    }
    Ok(())
}

/// sccache's own protocol, beside its own server on local disk.
pub(crate) fn own(options: &Options) -> io::Result<()> {
    let program = std::env::var_os("SCCACHE_BIN").map_or_else(
        || {
            PathBuf::from(std::env::var_os("HOME").unwrap_or_default())
                .join(".cache/sccache-dock/tools/sccache-0.19.0/bin/sccache")
        },
        PathBuf::from,
    );
    let sccache = without_missing(
        Peer::sccache(&options.folder.join("sccache"), &program),
        "sccache",
    );
    let ours = Peer::ours(&options.folder.join("own"), Lane::Own, AMPLE)?;
    let peers: Vec<Peer> = sccache.into_iter().chain([ours]).collect();
    table("sccache's own protocol", peers[0].name);
    for &connections in &options.connections {
        rows(
            options,
            &peers,
            Verb::Handshake,
            &[],
            connections,
            &format!("handshake, {connections} connections"),
        )?;
    }
    for &size in &options.sizes {
        let body = archive(size);
        for peer in &peers {
            fill(peer, &body)?;
        }
        for verb in [Verb::Get, Verb::Put] {
            for &connections in &options.connections {
                rows(
                    options,
                    &peers,
                    verb,
                    &body,
                    connections,
                    &format!("{verb:?} {}, {connections} connections", size_name(size)),
                )?;
            }
        }
    }
    Ok(())
}

/// Eight busy clients, alone and beside 64 that stand still: half in the middle of a PUT, half before their answer.
pub(crate) fn stalled(options: &Options) -> io::Result<()> {
    let peer = Peer::ours(&options.folder.join("stalled"), Lane::Http, AMPLE)?;
    let (body, large) = (archive(24 << 10), archive(6 << 20));
    fill(&peer, &body)?;
    // Its key is beyond those of the ring.
    load::run(peer.addr, peer.lane, 1, Until::Answers(1), || {
        peer.request(Verb::Put, 1 << 40, &large)
    })?;
    let (mut alone, mut beside) = (Series::default(), Series::default());
    let lasting = Until::Time(options.lasting);
    for _ in 0..options.rounds {
        let (figures, cpu) = measure(&peer, Verb::Get, &body, 8, lasting)?;
        alone.rounds.push(figures);
        alone.cpu_per_gb.push(cpu);
        let mut crowd = Vec::new();
        for number in 0..64 {
            let mut stream = TcpStream::connect(peer.addr)?;
            if number % 2 == 0 {
                stream.write_all(&peer.request(Verb::Get, 1 << 40, &[]).head)?;
            } else {
                stream.write_all(&peer.request(Verb::Put, (1 << 41) + number, &large).head)?;
                stream.write_all(&large[..100_000])?;
            }
            crowd.push(stream);
        }
        let (figures, cpu) = measure(&peer, Verb::Get, &body, 8, lasting)?;
        beside.rounds.push(figures);
        beside.cpu_per_gb.push(cpu);
    }
    table(
        "8 busy clients beside 64 stalled ones (GET 24 KiB)",
        "the 8 alone",
    );
    say(&alone.row(None, "8", "ours"));
    say(&beside.row(Some(&alone), "8 beside 64", "ours"));
    Ok(())
}

/// A gauge of our `/metrics`.
pub(crate) fn gauges(peer: &Peer, names: &[&str]) -> io::Result<Vec<u64>> {
    let mut stream = TcpStream::connect(peer.addr)?;
    stream.write_all(
        b"GET /metrics HTTP/1.1\r\nAuthorization: Bearer bench-token\r\nConnection: close\r\n\r\n",
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let value = |name: &&str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(*name)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse().ok())
            .ok_or_else(|| io::Error::other(format!("no {name} in {text}")))
    };
    names.iter().map(value).collect()
}

/// 64 writers of new keys, with room and without.
pub(crate) fn full(options: &Options) -> io::Result<()> {
    let ample = Peer::ours(&options.folder.join("ample"), Lane::Http, AMPLE)?;
    let tight = Peer::ours(&options.folder.join("tight"), Lane::Http, TIGHT)?;
    let body = archive(24 << 10);
    let next = AtomicU64::new(0);
    let write = |peer: &Peer, lasting| {
        let new = || peer.request(Verb::Put, next.fetch_add(1, Relaxed), &body);
        let before = peer.cpu_seconds();
        let figures = load::run(peer.addr, peer.lane, 64, Until::Time(lasting), new)?;
        let cpu = (peer.cpu_seconds() - before) / (figures.bytes as f64 / 1e9);
        io::Result::Ok((figures, cpu))
    };
    while gauges(&tight, &["sccache_dock_store_evicted_entries_total"])?[0] == 0 {
        write(&tight, Duration::from_millis(100))?;
    }
    let (done, most) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut both = [Series::default(), Series::default()];
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !done.load(Relaxed) {
                let found = gauges(
                    &tight,
                    &[
                        "sccache_dock_store_size_bytes",
                        "sccache_dock_store_reserved_bytes",
                    ],
                )?;
                most.fetch_max(found.iter().sum(), Relaxed);
                std::thread::sleep(Duration::from_millis(100));
            }
            io::Result::Ok(())
        });
        let mut measured = || {
            for _ in 0..options.rounds {
                for (peer, series) in [&ample, &tight].into_iter().zip(&mut both) {
                    let (figures, cpu) = write(peer, options.lasting)?;
                    series.rounds.push(figures);
                    series.cpu_per_gb.push(cpu);
                }
            }
            io::Result::Ok(())
        };
        let measured = measured();
        done.store(true, Relaxed);
        watcher
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the watcher panicked")))
            .and(measured)
    })?;
    table("64 writers of new blobs of 24 KiB", "the cache with room");
    say(&both[0].row(None, "with room", "ours"));
    say(&both[1].row(Some(&both[0]), "each PUT evicts", "ours"));
    // Files come and go while they are counted, so this waits for the end.
    most.fetch_max(on_disk(&tight.folder.join("cache")), Relaxed);
    let most = most.load(Relaxed);
    say(&format!(
        "\nmost bytes in use and reserved, of the budget: {most} of {TIGHT} ({:.3})",
        most as f64 / TIGHT as f64
    ));
    Ok(())
}

/// Bytes in blocks of all files under `folder`, those that vanish meanwhile not counted.
fn on_disk(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => on_disk(&entry.path()),
        Ok(found) if entry.file_name() != "ceiling" => found.blocks() * 512,
        Ok(_) | Err(_) => 0,
    });
    bytes.sum()
}

/// Adds so many entries to a store that has some: names of one file in each folder, which is all that a start looks at.
pub(crate) fn populate(folder: &Path, entries: u64) -> io::Result<()> {
    let blobs = folder.join("cache/blobs");
    let namespace = std::fs::read_dir(&blobs)?
        .flatten()
        .next()
        .ok_or_else(|| io::Error::other("no blob was stored"))?
        .path();
    let file = |start: &str| namespace.join(start).join(format!("{start:0<32}"));
    for start in 0..256 {
        let start = format!("{start:02x}");
        std::fs::create_dir_all(namespace.join(&start))?;
        std::fs::write(file(&start), [0; 100])?;
    }
    for number in 0..entries {
        let name = format!(
            "{:032x}",
            u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
        );
        let start = &name[..2];
        match std::fs::hard_link(file(start), namespace.join(start).join(&name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            linked => linked?,
        }
    }
    Ok(())
}

/// Start of a gateway on a large cache.
pub(crate) fn million(options: &Options) -> io::Result<()> {
    let folder = options.folder.join("million");
    let body = archive(1 << 10);
    let peer = Peer::ours(&folder, Lane::Http, AMPLE)?;
    fill(&peer, &body)?;
    drop(peer);
    populate(&folder, options.entries)?;
    let began = now();
    let peer = Peer::ours(&folder, Lane::Http, AMPLE)?;
    let figures = load::run(peer.addr, peer.lane, 1, Until::Answers(1), || {
        peer.request(Verb::Get, 3, &[])
    })?;
    let first = began.elapsed();
    let entries = loop {
        let found = gauges(
            &peer,
            &["sccache_dock_store_indexing", "sccache_dock_store_entries"],
        )?;
        if found[0] == 0 {
            break found[1];
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let all = began.elapsed();
    say(&format!("\n## Start with {entries} entries\n"));
    say(&format!(
        "first blob served after {:.3} s (itself {:.0} µs), all entries known after {:.2} s, at most {:.0} MiB of memory",
        first.as_secs_f64(),
        figures.p50_micros,
        all.as_secs_f64(),
        peer.peak_mib()
    ));
    Ok(())
}
