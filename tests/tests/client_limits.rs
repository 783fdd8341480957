//! How much one client may take: rates, blocks, connections at the same time.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use sheer_tests::{Dial, Family, Host, Lab, PATIENCE, Server, Sheer, ping, wait_until};
use socket2::{Domain, Protocol, Socket, Type};

/// A SYN that gets through is answered in far less; the first retransmission comes after a second.
const UNANSWERED: Duration = Duration::from_millis(300);

fn limited(limit: &str) -> String {
    format!("[[service]]\nname = \"web\"\nport = [7, 80]\nlimit = {limit}\n")
}

/// Sends so many SYNs from an address and waits for nothing.
fn knock(client: &Host, from: IpAddr, to: SocketAddr, times: usize) {
    client.run(|| {
        for _ in 0..times {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
            let error = socket.connect(&to.into()).expect_err("the answer takes its time");
            assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::INPROGRESS.raw_os_error()));
        }
    });
}

/// New connections of a service that were let in.
fn admitted(sheer: &Sheer<'_>, service: &str) -> u64 {
    let service = sheer.service(service);
    service["hits"].as_u64().unwrap() - service["refused"].as_u64().unwrap()
}

fn gets_in(client: &Host, from: IpAddr, to: SocketAddr) -> bool {
    let dial = Dial::to(to).from(SocketAddr::new(from, 0)).within(UNANSWERED);
    match client.dial(dial) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{from} to {to}: dropped, not refused");
            false
        }
    }
}

fn run(sheer: &Sheer<'_>, command: &str, arguments: &[&str]) {
    let output = sheer.control(command, arguments);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

fn blocked(sheer: &Sheer<'_>, client: IpAddr) -> Option<serde_json::Value> {
    let list = sheer.json("blocked");
    list.as_array().unwrap().iter().find(|block| block["client"] == client.to_string()).cloned()
}

#[test]
fn a_burst_is_let_in_at_once_and_after_it_the_rate() {
    const RATE: f64 = 200.0;
    const BURST: f64 = 100.0;
    let lab = Lab::new();
    let policy = limited(&format!("{{ new_per_second = {RATE}, burst = {BURST} }}"));
    let sheer = Sheer::on(&lab).config(&policy).start();
    let mut before = 0.0;
    for family in Family::BOTH {
        let to = SocketAddr::new(lab.server().ip(family), 80);
        let from = lab.client().ip(family);
        let start = Instant::now();
        knock(lab.client(), from, to, 150);
        let at_once = admitted(&sheer, "web") as f64 - before;
        let most = BURST + RATE * start.elapsed().as_secs_f64() + 1.0;
        assert!((BURST..=most).contains(&at_once), "{family}: {at_once} at once, at most {most}");
        let second = Duration::from_millis(1000);
        wait_until("a second of knocking is over", PATIENCE, || {
            knock(lab.client(), from, to, 10);
            (start.elapsed() > second).then_some(())
        });
        // All have been judged when the counters are read, and no later than that.
        let (least, counted) = (start.elapsed().as_secs_f64(), admitted(&sheer, "web") as f64 - before);
        let most = start.elapsed().as_secs_f64();
        let bounds = BURST + 0.8 * RATE * least..=BURST + RATE * most + 2.0;
        assert!(bounds.contains(&counted), "{family}: {counted} let in after {most} s, not {bounds:?}");
        before += counted;
    }
    let service = sheer.service("web");
    assert_eq!(service["refused"].as_u64().unwrap(), sheer.verdicts("drop_rate"));
    assert!(service["refused"].as_u64().unwrap() > 100, "{service}");
    sheer.stop();
}

#[test]
fn clients_are_limited_each_by_itself() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).config(&limited("{ new_per_second = 1, burst = 3 }")).start();
    for (family, other) in [(Family::V4, "192.0.2.66"), (Family::V6, "2001:db8:1::66")] {
        let other: IpAddr = other.parse().unwrap();
        lab.give(lab.client(), other);
        let server = Server::hello(lab.server(), family, 80);
        knock(lab.client(), lab.client().ip(family), server.address(), 50);
        assert!(!gets_in(lab.client(), lab.client().ip(family), server.address()), "{family}");
        assert!(gets_in(lab.client(), other, server.address()), "{family}: another client");
    }
    sheer.stop();
}

#[test]
fn addresses_of_a_prefix_can_be_one_client() {
    let lab = Lab::new();
    let policy = limited("{ new_per_second = 1, burst = 3, per = [\"/24\", \"/64\"] }");
    let sheer = Sheer::on(&lab).config(&policy).start();
    for (family, neighbour, stranger) in
        [(Family::V4, "192.0.2.66", "203.0.113.66"), (Family::V6, "2001:db8:1::66", "2001:db8:1:66::66")]
    {
        let (neighbour, stranger): (IpAddr, IpAddr) = (neighbour.parse().unwrap(), stranger.parse().unwrap());
        lab.give(lab.client(), neighbour);
        lab.give(lab.client(), stranger);
        let server = Server::hello(lab.server(), family, 80);
        knock(lab.client(), lab.client().ip(family), server.address(), 50);
        assert!(!gets_in(lab.client(), neighbour, server.address()), "{family}: it shares the prefix");
        assert!(gets_in(lab.client(), stranger, server.address()), "{family}: another prefix");
    }
    sheer.stop();
}

#[test]
fn who_goes_too_fast_can_be_shut_out_for_a_time() {
    let lab = Lab::new();
    let policy = limited("{ new_per_second = 1000, burst = 5, block = \"1s\" }");
    let sheer = Sheer::on(&lab).config(&policy).start();
    for family in Family::BOTH {
        let server = Server::hello(lab.server(), family, 80);
        let client = lab.client().ip(family);
        let start = Instant::now();
        knock(lab.client(), client, server.address(), 400);
        let block = blocked(&sheer, client).expect("it must be shut out");
        let remaining = block["remaining_s"].as_f64().unwrap();
        assert_eq!(block["service"], "web");
        assert!(remaining > 0.0 && remaining <= 1.0, "{block}");
        // At a thousand a second a single one is within the rate again.
        let refused_before = sheer.verdicts("drop_blocked");
        assert!(!gets_in(lab.client(), client, server.address()), "{family}");
        assert!(start.elapsed() < Duration::from_secs(1), "the machine is too busy for this test");
        assert!(sheer.verdicts("drop_blocked") > refused_before);
        wait_until("the time is over", PATIENCE, || {
            gets_in(lab.client(), client, server.address()).then_some(())
        });
        assert!(start.elapsed() > Duration::from_millis(950), "{family}: after {:?}", start.elapsed());
        assert!(blocked(&sheer, client).is_none());
    }
    sheer.stop();
}

#[test]
fn who_was_shut_out_is_let_in_by_unblock_at_once() {
    let lab = Lab::new();
    let policy = limited("{ new_per_second = 1000, burst = 5, block = \"1h\", per = [\"/24\", \"/64\"] }");
    let sheer = Sheer::on(&lab).config(&policy).start();
    for (family, shown) in [(Family::V4, "192.0.2.0/24"), (Family::V6, "2001:db8:1::/64")] {
        let server = Server::hello(lab.server(), family, 80);
        let client = lab.client().ip(family);
        knock(lab.client(), client, server.address(), 400);
        assert!(!gets_in(lab.client(), client, server.address()), "{family}");
        let list = String::from_utf8(sheer.control("blocked", &[]).stdout).unwrap();
        assert!(list.contains(shown) && list.contains("web") && list.contains("59m"), "{list}");
        run(&sheer, "unblock", &[&client.to_string()]);
        assert!(gets_in(lab.client(), client, server.address()), "{family}");
        assert_eq!(sheer.json("blocked").as_array().unwrap().len(), 0);
    }
    sheer.stop();
}

#[test]
fn a_client_can_be_shut_out_of_all_services_by_hand() {
    let lab = Lab::new();
    let services = r#"
[[service]]
name = "echo"
port = 7
[[service]]
name = "aside"
port = 80
action = "pass"
"#;
    let sheer = Sheer::on(&lab).config(services).start();
    for (family, other) in [(Family::V4, "192.0.2.66"), (Family::V6, "2001:db8:1::66")] {
        let other: IpAddr = other.parse().unwrap();
        lab.give(lab.client(), other);
        let (echo, aside) = (Server::echo(lab.server(), family, 7), Server::hello(lab.server(), family, 80));
        let client = lab.client().ip(family);
        let mut stood = lab.client().connect(echo.address());
        ping(&mut stood).unwrap();
        let said = sheer.control("unblock", &[&client.to_string()]);
        assert_eq!(said.status.code(), Some(1), "nobody was shut out");
        assert!(String::from_utf8_lossy(&said.stderr).contains("was not shut out"));
        run(&sheer, "block", &[&client.to_string(), "10m"]);
        let block = blocked(&sheer, client).unwrap();
        assert!(block["service"].is_null() && block["remaining_s"].as_f64().unwrap() > 590.0, "{block}");
        for to in [echo.address(), aside.address()] {
            assert!(!gets_in(lab.client(), client, to), "{family}: {to}");
            assert!(gets_in(lab.client(), other, to), "{family}: {to}, another client");
        }
        assert_eq!(blocked(&sheer, client).unwrap()["refused"], 2);
        ping(&mut stood).expect("it is shut out, not cut off");
        run(&sheer, "unblock", &[&client.to_string()]);
        assert!(gets_in(lab.client(), client, echo.address()), "{family}");
        assert!(gets_in(lab.client(), client, aside.address()), "{family}");
    }
    assert_eq!(sheer.service("echo")["refused"], 2);
    assert_eq!(sheer.service("aside")["refused"], 2);
    assert_eq!(sheer.control("block", &["192.0.2.2", "soon"]).status.code(), Some(2));
    assert_eq!(sheer.control("block", &["somebody", "10m"]).status.code(), Some(2));
    sheer.stop();
}

#[test]
fn no_more_connections_at_the_same_time_than_the_limit() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).config(&limited("{ concurrent = 2 }")).start();
    for (round, family) in (1..).zip(Family::BOTH) {
        let server = Server::echo(lab.server(), family, 7);
        let client = lab.client().ip(family);
        let mut held: Vec<_> = (0..2).map(|_| lab.client().connect(server.address())).collect();
        held.iter_mut().for_each(|stream| ping(stream).unwrap());
        assert!(!gets_in(lab.client(), client, server.address()), "{family}: a third one");
        assert_eq!(sheer.verdicts("drop_concurrent"), round, "{family}");
        assert_eq!(sheer.service("web")["refused"], round, "{family}");
        held.iter_mut().for_each(|stream| ping(stream).unwrap());
        held.pop();
        wait_until("the first one's end is known", PATIENCE, || {
            (sheer.service("web")["live"] == 1).then_some(())
        });
        let mut third = lab.client().connect(server.address());
        ping(&mut third).unwrap();
        drop((held, third));
        wait_until("all have ended", PATIENCE, || (sheer.service("web")["live"] == 0).then_some(()));
    }
    assert_eq!(sheer.map("concurrent").matches("\"key\"").count(), 0, "nobody is remembered who has none");
    sheer.stop();
}

#[test]
fn many_at_once_never_exceed_the_limit_of_connections() {
    const LIMIT: usize = 5;
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).config(&limited(&format!("{{ concurrent = {LIMIT} }}"))).start();
    for family in Family::BOTH {
        let server = Server::echo(lab.server(), family, 7);
        let to = server.address();
        let dials: Vec<_> = (0..40)
            .map(|_| {
                lab.client().spawn("dial", move || {
                    let mut stream = sheer_tests::connect(Dial::to(to).within(UNANSWERED)).ok()?;
                    ping(&mut stream).ok()?;
                    Some(stream)
                })
            })
            .collect();
        let served: Vec<_> = dials.into_iter().filter_map(|dial| dial.join().unwrap()).collect();
        assert_eq!((served.len(), server.count()), (LIMIT, LIMIT), "{family}");
        drop(served);
        wait_until("all have ended", PATIENCE, || (sheer.service("web")["live"] == 0).then_some(()));
    }
    let records = sheer.stop();
    let (served, refused): (Vec<_>, Vec<_>) =
        records.iter().partition(|record| record["reason"] == "client_closed");
    assert_eq!(served.len(), 2 * LIMIT);
    for record in refused {
        assert_eq!(
            (&record["reason"], &record["by"]),
            (&"client_limit".into(), &"client".into()),
            "{record}"
        );
        assert!(record["upstream"].is_null(), "the server must not hear of it: {record}");
    }
}

#[test]
fn blocks_and_counts_go_on_over_a_reload() {
    let lab = Lab::new();
    let rate = limited("{ new_per_second = 1000, burst = 5, block = \"1h\" }");
    let sheer = Sheer::on(&lab).config(&rate).start();
    let (by_limit, by_hand) = (lab.client().v4(), lab.client().v6());
    let servers = Family::BOTH.map(|family| Server::echo(lab.server(), family, 7));
    knock(lab.client(), by_limit, servers[0].address(), 400);
    run(&sheer, "block", &[&by_hand.to_string(), "1h"]);
    let mail = "[[service]]\nname = \"mail\"\nport = 25\n";
    sheer.reload(&format!("{mail}{rate}"));
    assert!(!gets_in(lab.client(), by_limit, servers[0].address()));
    assert!(!gets_in(lab.client(), by_hand, servers[1].address()));
    assert_eq!(sheer.json("blocked").as_array().unwrap().len(), 2);
    // A limit that is gone shuts nobody out any more; who was shut out by hand stays so.
    sheer.reload("[[service]]\nname = \"web\"\nport = 7\n");
    assert!(gets_in(lab.client(), by_limit, servers[0].address()));
    assert!(!gets_in(lab.client(), by_hand, servers[1].address()));
    let list = sheer.json("blocked");
    assert_eq!(list.as_array().unwrap().len(), 1, "{list}");
    run(&sheer, "unblock", &[&by_hand.to_string()]);
    // Connections that stand count under a limit that comes.
    sheer.reload(&limited("{ concurrent = 1 }"));
    let mut held = lab.client().connect(servers[1].address());
    ping(&mut held).unwrap();
    sheer.reload(&format!("{mail}{}", limited("{ concurrent = 1 }")));
    assert!(!gets_in(lab.client(), by_hand, servers[1].address()));
    ping(&mut held).unwrap();
    drop(held);
    sheer.stop();
}

#[test]
fn services_that_are_passed_can_be_limited_too() {
    let lab = Lab::new();
    let policy = r#"
[[service]]
name = "aside"
port = 80
action = "pass"
limit = { new_per_second = 1, burst = 3 }
"#;
    let sheer = Sheer::on(&lab).config(policy).start();
    for family in Family::BOTH {
        let server = Server::hello(lab.server(), family, 80);
        for _ in 0..3 {
            lab.client().ask(server.address());
        }
        assert!(!gets_in(lab.client(), lab.client().ip(family), server.address()), "{family}");
        assert_eq!(server.count(), 3, "{family}");
    }
    assert_eq!(sheer.service("aside")["refused"], 2);
    assert_eq!(sheer.stop().len(), 0);
}
