//! Files that are wrong in every way, and one that is very long.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sheer_tests::{Family, Lab, Server, Sheer, binary, ping, stretched};
use tempfile::TempDir;

const INTERFACES: &str = "[dataplane]\ninterfaces = [\"eth0\", \"eth1\"]\n";

fn sheer(arguments: &[&str]) -> Output {
    Command::new(binary()).args(arguments).output().unwrap()
}

/// `sheer check` where it has to find mistakes; what it said, a mistake a line.
fn mistakes(file: &Path) -> Vec<String> {
    let output = sheer(&["check", "-c", file.to_str().unwrap()]);
    let said = String::from_utf8(output.stderr).expect("what it says must be text");
    assert_eq!(output.status.code(), Some(2), "{}: {said}", file.display());
    assert!(output.stdout.is_empty(), "{}", file.display());
    assert_is_no_crash(&said);
    said.lines().map(str::to_owned).collect()
}

fn assert_is_no_crash(said: &str) {
    for word in ["panicked", "backtrace", "RUST_", "src/"] {
        assert!(!said.contains(word), "{said}");
    }
}

fn write(directory: &TempDir, name: &str, contents: impl AsRef<[u8]>) -> std::path::PathBuf {
    let path = directory.path().join(name);
    std::fs::write(&path, contents).unwrap();
    path
}

#[test]
fn a_file_that_is_fine_is_said_to_be() {
    let directory = TempDir::new().unwrap();
    let file = write(&directory, "a.toml", format!("{INTERFACES}[[service]]\nname = \"web\"\nport = 80\n"));
    let output = sheer(&["check", "-c", file.to_str().unwrap()]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert!(String::from_utf8(output.stdout).unwrap().ends_with(": fine\n"));
}

#[test]
fn every_mistake_is_told_at_its_place() {
    let directory = TempDir::new().unwrap();
    let service = "[[service]]\nname = \"a\"\n";
    // Each text comes after two lines that are fine; each mistake by its line and a word of it.
    let bad: &[(&str, &[(usize, &str)])] = &[
        ("", &[(0, "service")]),
        ("[[service]]\nport = 80\n", &[(3, "name")]),
        ("[[service]]\nname = \"a\"\nprot = 80\nactoin = \"drop\"\n", &[(5, "`port`"), (6, "`action`")]),
        ("[[service]]\nname = \"a\"\naction = \"porxy\"\n", &[(5, "proxy")]),
        (
            "[[service]]\nname = \"a b\"\nport = [0, 65536, \"9-1\", \"x\"]\n",
            &[(4, "name"), (5, "port"), (5, "9-1")],
        ),
        (
            "[[service]]\nname = \"a\"\ndestination = [\"10.0.0.1/8\", \"nowhere\", \"::ffff:10.0.0.1\"]\n",
            &[(5, "10.0.0.0/8"), (5, "nowhere"), (5, "write 10.0.0.1")],
        ),
        ("[[service]]\nname = \"a\"\nport = []\n", &[(5, "port")]),
        ("[[service]]\nname = \"a\"\ninterface = \"eth7\"\n", &[(5, "eth7")]),
        ("[[service]]\nname = \"a\"\nprotocol = \"udp\"\n", &[(5, "UDP")]),
        (
            "[[service]]\nname = \"a\"\naction = \"drop\"\nsource = \"proxy\"\nwhen_down = \"open\"\n",
            &[(6, "source"), (7, "when_down")],
        ),
        (
            "[[service]]\nname = \"a\"\nlimit = { burst = 3, block = \"1ms\" }\n",
            &[(5, "limits nothing"), (5, "too short")],
        ),
        ("[[service]]\nname = \"a\"\nport = 80\n[[service]]\nname = \"a\"\nport = 81\n", &[(7, "a")]),
        ("[[service]]\nname = \"a\"\n[[service]]\nname = \"b\"\nport = 81\n", &[(0, "never match")]),
        (
            "mark = 0\ntable = -1\nwhen_down = \"shut\"\nexisting = \"kepe\"\n[[service]]\nname = \"a\"\n",
            &[(3, "mark"), (4, "table"), (5, "closed"), (6, "keep")],
        ),
        (
            "[proxy]\nworkers = 0\nidle_timeout = \"7\"\naccess_format = 3\n[[service]]\nname = \"a\"\n",
            &[(4, "workers"), (5, "idle_timeout"), (6, "access_format")],
        ),
        ("[[service]]\nname = \"a\"\nname = \"b\"\n", &[(5, "duplicate key")]),
        ("[servcie]\nname = \"a\"\n", &[(3, "service")]),
        ("[[service\nname = \"a\"\n", &[(3, "syntax")]),
        ("[[service]]\nname = \"a\n", &[(4, "syntax")]),
        ("= = =\n\u{0}\n", &[(3, "syntax")]),
    ];
    for (text, expected) in bad {
        let file = write(&directory, "bad.toml", format!("{INTERFACES}{text}"));
        let told = mistakes(&file);
        let name = file.display();
        for (line, word) in *expected {
            let place = if *line == 0 { format!("{name}:") } else { format!("{name}:{line}:") };
            let found = told.iter().any(|mistake| mistake.starts_with(&place) && mistake.contains(word));
            assert!(found, "no `{word}` at {place} for\n{text}\nbut:\n{}", told.join("\n"));
        }
    }
    assert!(
        sheer(&[
            "check",
            "-c",
            write(&directory, "good.toml", format!("{INTERFACES}{service}")).to_str().unwrap()
        ])
        .status
        .success()
    );
}

#[test]
fn what_is_no_configuration_file_is_refused_by_name() {
    let directory = TempDir::new().unwrap();
    let junk: Vec<u8> = (0..10_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let text = "x = [\n".repeat(1_700_000);
    let deep = format!("x = {}", "[".repeat(200_000));
    let many = format!("{INTERFACES}{}", "nonsense = 1\n".repeat(3) + &"[x]\ny = 1\n".repeat(100_000));
    let odd = [
        (directory.path().to_owned(), "directory"),
        (directory.path().join("none.toml"), "no such file"),
        (write(&directory, "garbage.toml", &junk[..4096]), "UTF-8"),
        (write(&directory, "junk.toml", &junk), "UTF-8"),
        (write(&directory, "zeros.toml", vec![0; 4096]), "zeros.toml:1:"),
        (write(&directory, "open.toml", text), "open.toml"),
        (write(&directory, "deep.toml", deep), "deep.toml"),
        (write(&directory, "many.toml", many), "many.toml"),
        (write(&directory, "huge.toml", vec![b'#'; 17 * 1024 * 1024]), "larger than 16 MiB"),
        (write(&directory, "empty.toml", ""), "interfaces"),
        ("/dev/null".into(), "interfaces"),
    ];
    for (file, word) in odd {
        let start = Instant::now();
        let told = mistakes(&file);
        assert!(told.iter().any(|mistake| mistake.contains(word)), "{}: {told:.300?}", file.display());
        assert!(told.iter().all(|mistake| mistake.starts_with(file.to_str().unwrap())), "{told:.300?}");
        assert!(
            start.elapsed() < stretched(Duration::from_secs(5)),
            "{}: {:?}",
            file.display(),
            start.elapsed()
        );
    }
}

#[test]
fn a_bad_line_of_a_file_of_prefixes_is_named_by_its_number() {
    let directory = TempDir::new().unwrap();
    let config =
        |list: &str| format!("{INTERFACES}[[service]]\nname = \"a\"\ndestination_file = \"{list}\"\n");
    let list =
        write(&directory, "list.txt", "10.0.0.0/8\r\n# fine\r\n  10.0.0.1/8 # not\r\n2001:db8::/32\r\nx\r\n");
    let file = write(&directory, "a.toml", config("list.txt"));
    let told = mistakes(&file);
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].starts_with(&format!("{}:3:3: ", list.display())) && told[0].contains("10.0.0.0/8"),
        "{told:?}"
    );
    assert!(told[1].starts_with(&format!("{}:5:1: ", list.display())), "{told:?}");
    write(&directory, "empty.txt", "# nothing\n");
    for (list, word) in [
        ("none.txt", "none.txt"),
        (".", "no regular file"),
        ("/dev/null", "no regular file"),
        ("empty.txt", "empty.txt"),
    ] {
        let told = mistakes(&write(&directory, "a.toml", config(list)));
        assert!(told[0].starts_with(&format!("{}:5:", file.display())), "{list}: {told:?}");
        assert!(told[0].contains(word), "{list}: {told:?}");
    }
    let binary: Vec<u8> = (0..5_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    write(&directory, "binary.txt", binary);
    let told = mistakes(&write(&directory, "a.toml", config("binary.txt")));
    assert!(told.len() <= 21 && told[0].contains("binary.txt:1:"), "{} lines: {:.300?}", told.len(), told);
}

#[test]
fn run_does_not_start_with_a_bad_file_and_leaves_nothing() {
    let lab = Lab::new();
    let builder = Sheer::on(&lab).config("[[service]]\nname = \"web\"\nport = 0\nwhen_down = \"shut\"\n");
    let output = builder.command().output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("sheer.toml:5:8: ") && said.contains("sheer.toml:6:"), "{said}");
    assert_is_no_crash(&said);
    builder.assert_nothing_left();
}

#[test]
fn a_file_that_names_what_the_host_has_not_fails_at_work_and_leaves_nothing() {
    let lab = Lab::new();
    let builder =
        Sheer::on(&lab).interfaces(&["clients0", "eth99"]).config("[[service]]\nname = \"web\"\nport = 80\n");
    assert!(builder.start_in_vain().contains("eth99"));
    builder.assert_nothing_left();
}

#[test]
fn flags_beside_a_file_are_refused() {
    let directory = TempDir::new().unwrap();
    let file = write(&directory, "a.toml", format!("{INTERFACES}[[service]]\nname = \"web\"\nport = 80\n"));
    let file = file.to_str().unwrap();
    for flags in
        [["-i", "eth0"], ["--tcp", "80"], ["--source", "proxy"], ["--access-format", "json"], ["--mark", "5"]]
    {
        let output = sheer(&[&["run", "-c", file][..], &flags].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {said}");
        assert!(said.contains("cannot be used with"), "{flags:?}: {said}");
    }
}

#[test]
fn udp_ports_are_refused_with_a_way_out() {
    let output = sheer(&["run", "-i", "eth0", "--udp", "53"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("UDP is not proxied") && said.contains("leave --udp out"), "{said}");
}

/// As many services as there may be, the last of which takes port 7 of a million prefixes; the server's are among them.
fn a_million(lab: &Lab) -> (String, String) {
    let mut services = String::new();
    for n in 0..4095_u32 {
        let net = Ipv4Addr::from(0x0a00_0000 + n * 256);
        writeln!(
            services,
            "[[service]]\nname = \"s{n}\"\ndestination = \"{net}/24\"\nport = \"{n}-{}\"",
            n + 9
        )
        .unwrap();
    }
    let mut services = services.replace("port = \"0-", "port = \"1-");
    services.push_str(
        "[[service]]\nname = \"million\"\ndestination_file = \"million.txt\"\nport = 7\nsource = \"proxy\"\n",
    );
    let mut list = String::with_capacity(24_000_000);
    for n in 0..699_999_u32 {
        writeln!(list, "{}", Ipv4Addr::from(0x1400_0000 + n * 23)).unwrap();
    }
    for n in 0..299_999_u128 {
        writeln!(list, "{}/64", Ipv6Addr::from((0x2a00_u128 << 112) + (n << 68))).unwrap();
    }
    writeln!(list, "{}\n{}", lab.server().v4(), lab.server().v6()).unwrap();
    (services, list)
}

#[test]
fn four_thousand_services_and_a_million_prefixes_are_loaded_and_reloaded_under_traffic() {
    let lab = Lab::new();
    let (services, list) = a_million(&lab);
    let builder = Sheer::on(&lab).config(&services).beside("million.txt", &list);
    let start = Instant::now();
    let sheer = builder.start();
    let started = start.elapsed();
    let start = Instant::now();
    let output = sheer_check(sheer.config_file());
    let checked = start.elapsed();
    assert!(output.contains("4096 services") && output.contains("1004095 prefixes"), "{output}");
    let over = AtomicBool::new(false);
    let (reloaded, worst, pings) = std::thread::scope(|scope| {
        let pinging = scope.spawn(|| {
            let server = Server::echo(lab.server(), Family::V4, 7);
            let mut stream = lab.client().connect(server.address());
            ping(&mut stream).unwrap();
            assert_eq!(server.peer_of_last(), lab.server().gateway(Family::V4), "the million's");
            let (mut worst, mut pings) = (Duration::ZERO, 0);
            while !over.load(Ordering::Relaxed) {
                let start = Instant::now();
                ping(&mut stream).expect("a reload must break nothing");
                worst = worst.max(start.elapsed());
                pings += 1;
            }
            (worst, pings)
        });
        let start = Instant::now();
        let output = sheer.control("reload", &[]);
        let reloaded = start.elapsed();
        over.store(true, Ordering::Relaxed);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let (worst, pings) = pinging.join().unwrap();
        (reloaded, worst, pings)
    });
    eprintln!(
        "ready after {started:?}, checked in {checked:?}, reloaded in {reloaded:?}; of {pings} pings the slowest took \
         {worst:?}"
    );
    assert!(checked < stretched(Duration::from_secs(10)), "sheer check took {checked:?}");
    assert!(
        pings > 100 && worst < stretched(Duration::from_millis(500)),
        "{pings} pings, the slowest {worst:?}"
    );
    for (family, to) in [(Family::V4, "20.0.0.23"), (Family::V6, "2a00:0:0:10::9")] {
        let to = SocketAddr::new(to.parse().unwrap(), 7);
        lab.give(lab.server(), to.ip());
        let server = Server::hello_everywhere(lab.server(), family, 7);
        lab.client().ask(to);
        assert_eq!(server.peer_of_last(), lab.server().gateway(family), "{to}");
    }
    assert_eq!(sheer.service("million")["hits"], 3);
    sheer.stop();
}

fn sheer_check(file: &Path) -> String {
    let output = sheer(&["check", "-c", file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
