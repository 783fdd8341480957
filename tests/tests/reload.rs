//! Another policy while packets come: whom it takes, what becomes of connections that stand, and that nothing breaks.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use sheer_tests::{Dial, Family, Footprint, Lab, PATIENCE, Server, Sheer, ping, reasons, wait_until};

/// A service that proxies a port, so that the server sees this host's address.
fn proxied(name: &str, port: u16) -> String {
    format!("[[service]]\nname = \"{name}\"\nport = {port}\nsource = \"proxy\"\n")
}

/// Whether the server of a connection that was just made sees the proxy.
fn is_proxied(lab: &Lab, server: &Server, family: Family) -> bool {
    server.peer_of_last() == lab.server().gateway(family)
}

/// A reload that has to fail with this exit code: 1 at work, 2 for what the file says.
fn in_vain(sheer: &Sheer<'_>, arguments: &[&str], code: i32) -> String {
    let output = sheer.control("reload", arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "a reload that had to fail: {said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

#[test]
fn new_connections_go_by_the_new_services() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).config(&proxied("web", 80)).start();
    for family in Family::BOTH {
        let (web, other) = (Server::hello(lab.server(), family, 80), Server::hello(lab.server(), family, 81));
        sheer.reload(&proxied("web", 80));
        for round in 0..6 {
            let takes_web = round % 2 == 0;
            lab.client().ask(web.address());
            assert_eq!(is_proxied(&lab, &web, family), takes_web, "{family}, round {round}, port 80");
            lab.client().ask(other.address());
            assert_eq!(is_proxied(&lab, &other, family), !takes_web, "{family}, round {round}, port 81");
            sheer.reload(&if takes_web { proxied("other", 81) } else { proxied("web", 80) });
        }
    }
    sheer.stop();
}

#[test]
fn connections_whose_service_is_gone_go_on_by_default() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).config(&proxied("echo", 7)).start();
    for family in Family::BOTH {
        let server = Server::echo(lab.server(), family, 7);
        let mut stream = lab.client().connect(server.address());
        ping(&mut stream).unwrap();
        sheer.reload(&proxied("web", 80));
        ping(&mut stream).expect("a reload must not end it");
        let client = stream.local_addr().unwrap();
        drop(stream);
        let record = sheer.record_of(client);
        assert_eq!((&record["service"], &record["reason"]), (&"echo".into(), &"client_closed".into()));
        sheer.reload(&proxied("echo", 7));
    }
    sheer.stop();
}

#[test]
fn connections_whose_service_is_gone_are_reset_where_the_config_says_so_and_only_those() {
    let lab = Lab::new();
    let services = [proxied("gone", 7), proxied("renamed", 8), proxied("stays", 9)].concat();
    let sheer = Sheer::on(&lab).config(&services).start();
    let mut servers = Vec::new();
    let mut streams: Vec<(u16, TcpStream)> = Vec::new();
    for family in Family::BOTH {
        for port in [7, 8, 9] {
            let server = Server::echo(lab.server(), family, port);
            let mut stream = lab.client().connect(server.address());
            ping(&mut stream).unwrap();
            servers.push(server);
            streams.push((port, stream));
        }
    }
    sheer.reload(&format!("existing = \"reset\"\n{}{}", proxied("anew", 8), proxied("stays", 9)));
    for (port, stream) in &mut streams {
        if *port == 7 {
            let error = stream.read(&mut [0]).expect_err("it had to be reset");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            let record = sheer.record_of(stream.local_addr().unwrap_or_else(|e| panic!("{e}")));
            assert_eq!((&record["reason"], &record["by"]), (&"policy_changed".into(), &"proxy".into()));
        } else {
            ping(stream).unwrap_or_else(|e| panic!("the connection to port {port} had to go on: {e}"));
        }
    }
    drop(streams);
    let records = sheer.stop();
    let of_policy = reasons(&records).iter().filter(|reason| **reason == "policy_changed").count();
    assert_eq!((records.len(), of_policy), (6, 2), "{records:?}");
}

#[test]
fn a_connection_that_was_let_pass_before_a_service_came_is_not_broken_by_it() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).config(&proxied("web", 80)).start();
    let mut stood = Vec::new();
    for family in Family::BOTH {
        let server = Server::echo(lab.server(), family, 7);
        let mut stream = lab.client().connect(server.address());
        ping(&mut stream).unwrap();
        assert_eq!(server.last(), stream.local_addr().unwrap(), "{family}: untouched");
        stood.push((family, server, stream));
    }
    sheer.reload(&format!("existing = \"reset\"\n{}", proxied("echo", 7)));
    for (family, server, stream) in &mut stood {
        for _ in 0..20 {
            ping(stream).unwrap_or_else(|e| panic!("{family}: the rule that came broke it: {e}"));
        }
        let mut new = lab.client().connect(server.address());
        ping(&mut new).unwrap();
        assert!(is_proxied(&lab, server, *family), "{family}: a new one is the service's");
        ping(stream).unwrap();
    }
    drop(stood);
    assert_eq!(sheer.stop().len(), 2, "only the new ones were the proxy's");
}

#[test]
fn a_bad_file_changes_nothing_and_says_what_is_wrong_with_it() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).config(&proxied("echo", 7)).start();
    let server = Server::echo(lab.server(), Family::V4, 7);
    let mut stream = lab.client().connect(server.address());
    ping(&mut stream).unwrap();
    let seen = |sheer: &Sheer<'_>| {
        let status = sheer.json("status");
        (sheer.json("services"), status["services"].clone(), sheer.map("services"), sheer.map("policies"))
    };
    let file = sheer.config_file().display().to_string();
    let bad = [
        ("[[service]]\nname = \"a\"\nports = 80\n", format!("{file}:5:1: ")),
        ("[[service]]\nname = \"a\"\nport = 99999\n", format!("{file}:5:")),
        ("[[service]\n", format!("{file}:3:")),
        ("", file.clone()),
        ("[[service]]\nname = \"a\"\ndestination_file = \"none.txt\"\n", format!("{file}:5:")),
        ("[[service]]\nname = \"a\"\n[[service]]\nname = \"b\"\nport = 80\n", format!("{file}:")),
    ];
    for (text, place) in bad {
        let before = seen(&sheer);
        sheer.rewrite(text);
        let said = in_vain(&sheer, &[], 2);
        assert!(said.contains(&place) && said.contains("goes on as it was"), "no {place} in: {said}");
        assert_eq!(seen(&sheer), before, "after the reload of {text}");
        ping(&mut stream).unwrap();
    }
    let before = seen(&sheer);
    std::fs::remove_file(sheer.config_file()).unwrap();
    assert!(in_vain(&sheer, &[], 2).contains("no such file"));
    assert_eq!(seen(&sheer), before);
    let mut another = lab.client().connect(server.address());
    ping(&mut another).unwrap();
    assert!(is_proxied(&lab, &server, Family::V4));
    drop((stream, another));
    assert_eq!(sheer.stop().len(), 2);
}

#[test]
fn what_only_a_restart_can_change_is_named() {
    let lab = Lab::builder().clients(2).build();
    let sheer = Sheer::on(&lab).config(&proxied("web", 80)).start();
    let changed = format!(
        "mark = 0x5348\ntable = 8399\nattach = \"tcx\"\n{}[proxy]\naccess_format = \"json\"\nworkers = 1\n\
         max_connections = 7\nidle_timeout = \"1m\"\nconnect_timeout = \"1s\"\nhalf_close_timeout = \"1s\"\n\
         drain_timeout = \"1s\"\naccess_log = \"off\"\n",
        proxied("other", 81)
    );
    sheer.rewrite(&changed);
    let said = in_vain(&sheer, &[], 1);
    for key in [
        "dataplane.mark",
        "dataplane.table",
        "dataplane.attach",
        "proxy.workers",
        "proxy.max_connections",
        "proxy.idle_timeout",
        "proxy.connect_timeout",
        "proxy.half_close_timeout",
        "proxy.drain_timeout",
        "proxy.access_log",
    ] {
        assert!(said.contains(key), "{key} is not named: {said}");
    }
    assert!(said.contains("restart") && !said.contains("interfaces"), "{said}");
    let fewer = "[dataplane]\ninterfaces = [\"clients0\", \"servers0\"]\n";
    std::fs::write(sheer.config_file(), format!("{fewer}{}", proxied("web", 80))).unwrap();
    let said = in_vain(&sheer, &[], 1);
    assert!(said.contains("dataplane.interfaces") && said.contains("proxy.access_format"), "{said}");
    assert_eq!(sheer.service("web")["hits"], 0);
    sheer.stop();
}

#[test]
fn sighup_reloads_the_file() {
    let lab = Lab::new();
    let mut sheer = Sheer::on(&lab).config(&proxied("web", 80)).start();
    sheer.rewrite(&proxied("mail", 25));
    sheer.process().signal(Signal::HUP);
    wait_until("the new service is in force", PATIENCE, || {
        (sheer.json("services")[0]["name"] == "mail").then_some(())
    });
    let server = Server::hello(lab.server(), Family::V4, 25);
    lab.client().ask(server.address());
    assert!(is_proxied(&lab, &server, Family::V4));
    sheer.rewrite("nonsense\n");
    sheer.process().signal(Signal::HUP);
    sheer.process().wait_for_stderr("what is wrong with the file", |line| line.contains("sheer.toml:3:"));
    assert!(sheer.process().is_running());
    assert_eq!(sheer.service("mail")["hits"], 1);
    sheer.stop();
}

#[test]
fn without_a_file_sighup_ends_it_and_reload_asks_for_one() {
    let lab = Lab::new();
    let mut sheer = Sheer::on(&lab).tcp("80").start();
    assert!(in_vain(&sheer, &[], 1).contains("sheer reload -c"));
    sheer.process().signal(Signal::HUP);
    let (status, _) = sheer.wait();
    assert!(status.success(), "{status}");
}

#[test]
fn another_file_can_be_named_and_is_the_file_from_then_on() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).config(&proxied("web", 80)).start();
    let other = sheer.config_file().with_file_name("other.toml");
    let write = |services: String| {
        let text = std::fs::read_to_string(sheer.config_file()).unwrap();
        std::fs::write(&other, text.replace(&proxied("web", 80), &services)).unwrap();
    };
    write(proxied("mail", 25));
    assert!(sheer.control("reload", &["-c", other.to_str().unwrap()]).status.success());
    assert_eq!(sheer.service("mail")["hits"], 0);
    write(proxied("news", 119));
    assert!(sheer.control("reload", &[]).status.success());
    assert_eq!(sheer.service("news")["hits"], 0, "the file before was read");
    sheer.stop();
}

#[test]
fn counters_go_on_for_services_that_stay_and_begin_at_zero_for_new_ones() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).config(&[proxied("stays", 80), proxied("goes", 81)].concat()).start();
    let servers = [80, 81].map(|port| Server::hello(lab.server(), Family::V4, port));
    let ask_both = || servers.iter().for_each(|server| drop(lab.client().ask(server.address())));
    let ended = |name: &str, hits: u64| {
        wait_until(&format!("{name} has {hits} hits and no connection"), PATIENCE, || {
            let service = sheer.service(name);
            (service["hits"] == hits && service["live"] == 0).then_some(service)
        })
    };
    ask_both();
    ask_both();
    let before = ended("stays", 2);
    ended("goes", 2);
    assert!(before["bytes_down"].as_u64().unwrap() > 0);
    // In another place of the list, and another way.
    let stays = "[[service]]\nname = \"stays\"\nport = [80, 82]\nsource = \"proxy\"\n";
    sheer.reload(&[&proxied("comes", 81), stays].concat());
    assert_eq!(sheer.service("stays"), before);
    let fresh = sheer.service("comes");
    assert_eq!((&fresh["hits"], &fresh["bytes_down"]), (&0.into(), &0.into()));
    ask_both();
    assert_eq!(
        ended("stays", 3)["bytes_down"].as_u64().unwrap() * 2,
        before["bytes_down"].as_u64().unwrap() * 3
    );
    ended("comes", 1);
    // A name that comes again begins anew.
    sheer.reload(&[proxied("goes", 81), proxied("stays", 80)].concat());
    assert_eq!((&sheer.service("goes")["hits"], &sheer.service("stays")["hits"]), (&0.into(), &3.into()));
    ask_both();
    ended("goes", 1);
    sheer.stop();
}

/// What a process holds.
#[derive(Debug)]
struct Holds {
    files: usize,
    maps: usize,
    resident_kib: u64,
}

impl Holds {
    fn of(pid: u32) -> Self {
        let entries = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap().flatten();
        let infos: Vec<String> = entries.filter_map(|e| std::fs::read_to_string(e.path()).ok()).collect();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        Self {
            files: infos.len(),
            maps: infos.iter().filter(|info| info.contains("map_type:")).count(),
            resident_kib: resident.trim().trim_end_matches(" kB").parse().unwrap(),
        }
    }
}

/// A few by default, since each waits for the kernel several times; `SHEER_RELOADS` asks for more.
#[test]
fn reloads_under_load_break_no_connection_and_let_none_by() {
    let reloads = std::env::var("SHEER_RELOADS").map_or(24, |number| number.parse().unwrap());
    let lab = Lab::new();
    let both = |first: &str, second: &str| {
        let narrow = |name: &str| {
            format!(
                "[[service]]\nname = \"{name}\"\nclient = [\"192.0.2.0/24\", \"2001:db8:1::/48\"]\nport = 7\n\
                 source = \"proxy\"\n"
            )
        };
        [narrow(first), proxied(second, 7)].concat()
    };
    let policies = [both("a", "b"), both("b", "a"), proxied("c", 7), both("a", "c")];
    let mut sheer = Sheer::on(&lab).config(&policies[0]).start();
    let servers = Family::BOTH.map(|family| Server::echo(lab.server(), family, 7));
    let targets: [SocketAddr; 2] = [servers[0].address(), servers[1].address()];
    let (over, made) = (AtomicBool::new(false), AtomicUsize::new(0));
    let pid = sheer.process().pid();
    let (warm, cold) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|n| {
                let (lab, over, made) = (&lab, &over, &made);
                scope.spawn(move || {
                    lab.client().run(|| {
                        while !over.load(Ordering::Relaxed) {
                            let mut stream = sheer_tests::connect(
                                Dial::to(targets[n % 2]).within(Duration::from_millis(900)),
                            )
                            .expect("without a SYN that is lost");
                            ping(&mut stream).expect("not one connection may break");
                            made.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                })
            })
            .collect();
        let reload = |from: usize, to: usize| {
            for n in from..to {
                if clients.iter().any(std::thread::ScopedJoinHandle::is_finished) {
                    return None;
                }
                sheer.reload(&policies[n % policies.len()]);
            }
            Some((Holds::of(pid), Footprint::of(sheer.instance()).maps.len()))
        };
        let measured = (reload(0, reloads / 2), reload(reloads / 2, reloads));
        over.store(true, Ordering::Relaxed);
        clients.into_iter().for_each(|client| client.join().unwrap());
        measured
    });
    let ((warm, maps_warm), (cold, maps_cold)) = (warm.unwrap(), cold.unwrap());
    let connections = made.into_inner();
    eprintln!("{connections} connections during {reloads} reloads; {warm:?}, then {cold:?}");
    assert!(connections > reloads, "{connections} connections are no load");
    for (server, family) in servers.iter().zip(Family::BOTH) {
        let gateway = lab.server().gateway(family);
        let by = server.connections().iter().filter(|connection| connection.peer.ip() != gateway).count();
        assert_eq!(by, 0, "{family}: connections that went by the proxy, of {}", server.count());
    }
    assert_eq!((warm.maps, maps_warm), (cold.maps, maps_cold), "maps are kept");
    // Eight clients at most are half-way at any time, with two files each, and a worker's pipes.
    assert!(cold.files <= warm.files + 24, "files are kept: {warm:?}, {cold:?}");
    // The allocator keeps of each reload what the next one needs, after some of them.
    assert!(cold.resident_kib < warm.resident_kib + 12 * 1024, "memory is kept: {warm:?}, {cold:?}");
    wait_until("all connections have ended", PATIENCE, || {
        (sheer.json("status")["connections"]["live"] == 0).then_some(())
    });
    let records = sheer.stop();
    assert_eq!(records.len(), connections);
    let ended = |record: &Value| record["reason"] == "client_closed" && record["service"].is_string();
    let odd: Vec<&Value> = records.iter().filter(|record| !ended(record)).collect();
    assert!(odd.is_empty(), "{} of them, the first: {:?}", odd.len(), odd[0]);
}

#[test]
fn of_reloads_at_the_same_time_each_is_done_or_says_that_another_is_under_way() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).config(&proxied("web", 80)).start();
    let prefixes: String =
        (0..200_000_u32).map(|n| format!("{}\n", std::net::Ipv4Addr::from(n * 97 + (1 << 28)))).collect();
    std::fs::write(sheer.config_file().with_file_name("list.txt"), prefixes).unwrap();
    sheer.rewrite(&format!(
        "{}[[service]]\nname = \"long\"\ndestination_file = \"list.txt\"\n",
        proxied("web", 80)
    ));
    let outputs: Vec<_> = std::thread::scope(|scope| {
        let reloads: Vec<_> = (0..4).map(|_| scope.spawn(|| sheer.control("reload", &[]))).collect();
        reloads.into_iter().map(|reload| reload.join().unwrap()).collect()
    });
    let done = outputs.iter().filter(|output| output.status.success()).count();
    assert!(done >= 1, "{outputs:?}");
    for output in outputs.iter().filter(|output| !output.status.success()) {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("another reload is under way"), "{said}");
    }
    let server = Server::hello(lab.server(), Family::V4, 80);
    lab.client().ask(server.address());
    assert!(is_proxied(&lab, &server, Family::V4));
    sheer.reload(&proxied("mail", 25));
    assert_eq!(sheer.json("services").as_array().unwrap().len(), 1);
    sheer.stop();
}

#[test]
fn a_reload_works_after_a_kill_and_a_restart() {
    let lab = Lab::new();
    let mut sheer = Sheer::on(&lab).config(&proxied("web", 80)).start();
    sheer.reload(&proxied("mail", 25));
    sheer.kill();
    sheer.rewrite(&[proxied("mail", 25), proxied("news", 119)].concat());
    let sheer = sheer.restart();
    assert_eq!(sheer.service("news")["hits"], 0);
    sheer.reload(&proxied("web", 80));
    let server = Server::hello(lab.server(), Family::V6, 80);
    lab.client().ask(server.address());
    assert!(is_proxied(&lab, &server, Family::V6));
    assert_eq!(sheer.stop().len(), 1);
}
