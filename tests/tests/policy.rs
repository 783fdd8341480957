//! Which service takes a connection: order, prefixes, ports, clients, interfaces, actions, both families.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, UdpSocket};
use std::time::Duration;

use sheer_tests::{Capture, Dial, Family, Host, Lab, PATIENCE, Pattern, Server, Sheer, ping, wait_until};

/// A SYN that gets through is answered in far less; the first retransmission comes after a second.
const UNANSWERED: Duration = Duration::from_millis(300);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The service that took a connection; none: it went straight to the server. All services must have
/// `source = "proxy"`, and the server is one that greets.
fn taker(sheer: &Sheer<'_>, client: &Host, from: IpAddr, to: SocketAddr) -> Option<String> {
    let mut stream = client.dial_from(from, to).unwrap_or_else(|e| panic!("{from} to {to}: {e}"));
    let own = stream.local_addr().unwrap();
    let mut greeting = String::new();
    stream.read_to_string(&mut greeting).unwrap();
    if greeting == format!("you are {own}\n") {
        return None;
    }
    drop(stream);
    let record = sheer.record_of(own);
    assert_eq!(record["original"], to.to_string());
    Some(record["service"].as_str().expect("a record without its service").to_owned())
}

/// Each connection by its destination and port, and who has to take it.
fn assert_taken(lab: &Lab, sheer: &Sheer<'_>, expected: &[(&str, u16, Option<&str>)]) {
    for &(to, port, service) in expected {
        let to = SocketAddr::new(ip(to), port);
        let from = lab.client().ip(if to.is_ipv4() { Family::V4 } else { Family::V6 });
        assert_eq!(taker(sheer, lab.client(), from, to).as_deref(), service, "to {to}");
    }
}

#[test]
fn the_first_service_in_the_files_order_takes_a_connection() {
    const HOST: &str = r#"
[[service]]
name = "host"
destination = ["203.0.113.10", "2001:db8:113::10"]
port = "80-90"
source = "proxy"
"#;
    const NET: &str = r#"
[[service]]
name = "net"
destination = ["203.0.113.0/24", "2001:db8:113::/48"]
port = [80, "85-99"]
source = "proxy"
"#;
    const REST: &str = r#"
[[service]]
name = "rest"
port = [80, 99, 100]
source = "proxy"
"#;
    let lab = Lab::new();
    let (hosts, others) = (["203.0.113.10", "2001:db8:113::10"], ["203.0.113.20", "2001:db8:113::20"]);
    for address in hosts.into_iter().chain(others) {
        lab.give(lab.server(), ip(address));
    }
    let ports = [80, 81, 90, 99, 100, 101];
    let serve = |family| ports.map(|port| Server::hello_everywhere(lab.server(), family, port));
    let _servers = Family::BOTH.map(serve);
    let sheer = Sheer::on(&lab).config(&[HOST, NET, REST].concat()).start();
    for (n, family) in Family::BOTH.into_iter().enumerate() {
        let own = lab.server().ip(family).to_string();
        assert_taken(
            &lab,
            &sheer,
            &[
                (hosts[n], 80, Some("host")),
                (hosts[n], 81, Some("host")),
                (hosts[n], 90, Some("host")),
                (hosts[n], 99, Some("net")),
                (hosts[n], 100, Some("rest")),
                (hosts[n], 101, None),
                (others[n], 80, Some("net")),
                (others[n], 81, None),
                (&own, 80, Some("rest")),
                (&own, 90, None),
            ],
        );
    }
    sheer.reload(&[NET, HOST, REST].concat());
    for host in hosts {
        let expected = [(host, 80, Some("net")), (host, 81, Some("host")), (host, 90, Some("net"))];
        assert_taken(&lab, &sheer, &expected);
    }
    sheer.stop();
}

#[test]
fn each_service_gives_the_server_its_own_source() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab)
        .config(
            r#"
[[service]]
name = "own"
port = 80
source = "proxy"
[[service]]
name = "seen"
port = 81
[[service]]
name = "fixed"
port = 82
source = "203.0.113.77"
"#,
        )
        .start();
    let expected = [
        (80, lab.server().gateway(Family::V4), "own"),
        (81, lab.client().v4(), "seen"),
        (82, ip("203.0.113.77"), "fixed"),
    ];
    for (port, source, service) in expected {
        let server = Server::hello(lab.server(), Family::V4, port);
        let client = lab.client().connect(server.address()).local_addr().unwrap();
        assert_eq!(server.peer_of_last(), source, "port {port}");
        assert_eq!(sheer.record_of(client)["service"], service);
    }
    sheer.stop();
}

#[test]
fn clients_are_told_apart_by_their_prefix() {
    let lab = Lab::new();
    let clients = [
        ("10.1.0.5", Some("staff")),
        ("10.1.255.255", Some("staff")),
        ("10.2.0.5", None),
        ("10.3.0.5", Some("rest")),
        ("2001:db8:a::5", Some("staff")),
        ("2001:db8:b::5", None),
        ("2001:db8:c::5", Some("rest")),
    ];
    for (address, _) in clients {
        lab.give(lab.client(), ip(address));
    }
    let _servers = Family::BOTH.map(|family| Server::hello_everywhere(lab.server(), family, 80));
    let sheer = Sheer::on(&lab)
        .config(
            r#"
[[service]]
name = "staff"
client = ["10.1.0.0/16", "2001:db8:a::/48"]
source = "proxy"
[[service]]
name = "monitoring"
client = ["10.2.0.0/16", "2001:db8:b::/48"]
action = "pass"
[[service]]
name = "rest"
port = 80
source = "proxy"
"#,
        )
        .start();
    for (address, service) in clients {
        let from = ip(address);
        let to = SocketAddr::new(lab.server().ip(if from.is_ipv4() { Family::V4 } else { Family::V6 }), 80);
        assert_eq!(taker(&sheer, lab.client(), from, to).as_deref(), service, "from {from}");
    }
    assert_eq!(sheer.service("monitoring")["hits"], 2);
    sheer.stop();
}

#[test]
fn a_service_may_be_for_one_interface_and_records_name_the_right_one() {
    let lab = Lab::builder().clients(2).build();
    let sheer = Sheer::on(&lab)
        .config(
            r#"
[[service]]
name = "left"
interface = "clients0"
port = 80
source = "proxy"
[[service]]
name = "right"
interface = ["clients1"]
port = 80
source = "proxy"
[[service]]
name = "left-alone"
interface = "clients0"
port = 81
action = "pass"
[[service]]
name = "all"
port = 81
source = "proxy"
"#,
        )
        .start();
    for family in Family::BOTH {
        let servers = [80, 81].map(|port| Server::hello_everywhere(lab.server(), family, port));
        for (client, port, service) in
            [(0, 80, Some("left")), (1, 80, Some("right")), (0, 81, None), (1, 81, Some("all"))]
        {
            let client = &lab.clients()[client];
            let to = SocketAddr::new(lab.server().ip(family), port);
            let taken = taker(&sheer, client, client.ip(family), to);
            assert_eq!(taken.as_deref(), service, "{} to port {port}, {family}", client.label());
        }
        drop(servers);
    }
    for (service, hits) in [("left", 2), ("right", 2), ("left-alone", 2), ("all", 2)] {
        assert_eq!(sheer.service(service)["hits"], hits, "{service}");
    }
    sheer.stop();
}

#[test]
fn what_shall_be_dropped_does_not_reach_the_server() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab)
        .config(
            r#"
[[service]]
name = "no-telnet"
port = 23
action = "drop"
[[service]]
name = "all"
source = "proxy"
"#,
        )
        .start();
    let capture = Capture::start(lab.server());
    for family in Family::BOTH {
        let (telnet, other) =
            (Server::hello(lab.server(), family, 23), Server::hello(lab.server(), family, 24));
        let refused = lab.client().dial(Dial::to(telnet.address()).within(UNANSWERED));
        assert_eq!(refused.expect_err("it had to be dropped").kind(), ErrorKind::TimedOut, "{family}");
        assert_eq!(taker(&sheer, lab.client(), lab.client().ip(family), other.address()).unwrap(), "all");
    }
    assert_eq!(capture.count(|packet| packet.destination.port() == 23), 0);
    assert_eq!(capture.count(|packet| packet.destination.port() == 24 && packet.opens), 2);
    let dropped = sheer.service("no-telnet");
    assert_eq!((&dropped["hits"], &dropped["refused"]), (&2.into(), &0.into()));
    assert_eq!(sheer.verdicts("drop_service"), 2);
    sheer.stop();
}

#[test]
fn of_udp_each_datagram_is_passed_or_dropped() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab)
        .config(
            r#"
[[service]]
name = "resolver"
protocol = "udp"
destination = ["198.51.100.2", "2001:db8:2::2"]
client = ["203.0.113.9", "2001:db8:9::9"]
port = 53
action = "pass"
[[service]]
name = "no-dns"
protocol = "udp"
port = 53
action = "drop"
[[service]]
name = "tcp-too"
port = 53
source = "proxy"
"#,
        )
        .start();
    for (family, allowed) in [(Family::V4, "203.0.113.9"), (Family::V6, "2001:db8:9::9")] {
        lab.give(lab.client(), ip(allowed));
        let [dns, ntp] = [53, 123].map(|port| {
            let address = SocketAddr::new(lab.server().ip(family), port);
            let socket = lab.server().run(|| UdpSocket::bind(address).unwrap());
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        });
        let [own, other] = [lab.client().ip(family), ip(allowed)].map(|from| {
            let socket = lab.client().run(|| UdpSocket::bind(SocketAddr::new(from, 0)).unwrap());
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        });
        let (dns_at, ntp_at) = (dns.local_addr().unwrap(), ntp.local_addr().unwrap());
        own.send_to(b"dropped", dns_at).unwrap();
        own.send_to(b"passes", ntp_at).unwrap();
        // An empty datagram is one too.
        other.send_to(b"", dns_at).unwrap();
        let mut datagram = [0; 64];
        assert_eq!(ntp.recv_from(&mut datagram).unwrap(), (6, own.local_addr().unwrap()), "{family}");
        // Packets of one link keep their order, so that the first one would have been here by now.
        assert_eq!(dns.recv_from(&mut datagram).unwrap(), (0, other.local_addr().unwrap()), "{family}");
        // The answer, from port 53, is to another port.
        dns.send_to(b"answer", other.local_addr().unwrap()).unwrap();
        assert_eq!(other.recv_from(&mut datagram).unwrap(), (6, dns_at), "{family}");
        let over_tcp = Server::hello(lab.server(), family, 53);
        let taken = taker(&sheer, lab.client(), lab.client().ip(family), over_tcp.address());
        assert_eq!(taken.as_deref(), Some("tcp-too"));
    }
    assert_eq!(sheer.service("no-dns")["hits"], 2);
    assert_eq!(sheer.service("resolver")["hits"], 2);
    sheer.stop();
}

#[test]
fn this_hosts_own_addresses_are_taken_only_where_an_entry_names_exactly_them() {
    let lab = Lab::new();
    let policy = |destination: &str| {
        format!("[[service]]\nname = \"web\"\nport = 80\nsource = \"proxy\"\n{destination}\n")
    };
    let sheer = Sheer::on(&lab).config(&policy("")).start();
    let own = Family::BOTH.map(|family| SocketAddr::new(lab.client().gateway(family), 80));
    let refused_by_the_host = |why: &str| {
        for to in own {
            let error = lab.client().dial(Dial::to(to)).expect_err("nobody listens there");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}, {why}");
        }
        assert_eq!(sheer.json("status")["connections"]["accepted"], 0, "{why}");
    };
    refused_by_the_host("by default");
    sheer.reload(&policy(r#"destination = ["0.0.0.0/0", "::/0"]"#));
    refused_by_the_host("with a prefix that contains everything");
    let net = own.map(|to| ipnet::IpNet::new(to.ip(), if to.is_ipv4() { 30 } else { 64 }).unwrap().trunc());
    sheer.reload(&policy(&format!("destination = [\"{}\", \"{}\"]", net[0], net[1])));
    refused_by_the_host("with the prefix of the link");
    sheer.reload(&policy(&format!("destination = [\"{}\", \"{}\"]", own[0].ip(), own[1].ip())));
    for to in own {
        // The proxy accepts, and finds out that nobody listens: the client is reset, maybe before connect(2) returns.
        let client =
            SocketAddr::new(lab.client().ip(if to.is_ipv4() { Family::V4 } else { Family::V6 }), 43210);
        let _ = lab.client().dial(Dial::to(to).from(client));
        let record = sheer.record_of(client);
        assert_eq!((&record["service"], &record["original"]), (&"web".into(), &to.to_string().into()));
        assert_eq!(record["reason"], "refused", "{record}");
    }
    sheer.stop();
}

#[test]
fn a_connection_to_an_own_address_that_is_taken_does_not_go_round_for_ever() {
    let lab = Lab::new();
    let own = lab.client().gateway(Family::V4);
    let policy = format!("[[service]]\nname = \"web\"\ndestination = \"{own}\"\nport = 80\n");
    let sheer = Sheer::on(&lab).config(&policy).start();
    // The reset may be as fast as connect(2).
    let _ = lab.client().dial(Dial::to(SocketAddr::new(own, 80)));
    assert_eq!(sheer.record()["reason"], "refused");
    assert_eq!(sheer.json("status")["connections"]["accepted"], 1);
    sheer.stop();
}

#[test]
fn a_connection_to_what_only_a_route_makes_local_does_not_go_round_for_ever() {
    let lab = Lab::new();
    lab.middle().configure("route add local 203.0.113.0/24 dev lo\n");
    let sheer =
        Sheer::on(&lab).config("[[service]]\nname = \"web\"\nport = 80\nsource = \"proxy\"\n").start();
    let client = SocketAddr::new(lab.client().v4(), 43210);
    let _ = lab.client().dial(Dial::to("203.0.113.5:80".parse().unwrap()).from(client));
    assert_eq!(sheer.record_of(client)["reason"], "refused");
    assert_eq!(sheer.json("status")["connections"]["accepted"], 1);
    sheer.stop();
}

#[test]
fn link_local_destinations_are_taken_only_where_an_entry_lies_within_their_range() {
    let lab = Lab::new();
    lab.give(lab.server(), ip("169.254.77.7"));
    let _server = Server::hello_everywhere(lab.server(), Family::V4, 80);
    let policy = |destination: &str| {
        format!("[[service]]\nname = \"web\"\nport = 80\nsource = \"proxy\"\n{destination}\n")
    };
    let sheer = Sheer::on(&lab).config(&policy("")).start();
    assert_taken(&lab, &sheer, &[("169.254.77.7", 80, None), ("198.51.100.2", 80, Some("web"))]);
    sheer.reload(&policy(r#"destination = "0.0.0.0/0""#));
    assert_taken(&lab, &sheer, &[("169.254.77.7", 80, None), ("198.51.100.2", 80, Some("web"))]);
    sheer.reload(&policy(r#"destination = "169.254.0.0/16""#));
    assert_taken(&lab, &sheer, &[("169.254.77.7", 80, Some("web")), ("198.51.100.2", 80, None)]);
    sheer.stop();
}

#[test]
fn prefixes_may_come_from_a_file() {
    let lab = Lab::new();
    for address in ["203.0.113.10", "203.0.113.20", "2001:db8:113::10", "2001:db8:114::20"] {
        lab.give(lab.server(), ip(address));
    }
    let _servers = Family::BOTH.map(|family| Server::hello_everywhere(lab.server(), family, 80));
    let list = "\u{feff}# the second site\r\n\r\n  203.0.113.10\t# one host\r\n2001:db8:113::/48\r\n#203.0.113.20\r\n";
    let sheer = Sheer::on(&lab)
        .config(
            r#"
[[service]]
name = "listed"
destination = "192.0.2.128/25"
destination_file = "list.txt"
source = "proxy"
"#,
        )
        .beside("list.txt", list)
        .start();
    assert_taken(
        &lab,
        &sheer,
        &[
            ("203.0.113.10", 80, Some("listed")),
            ("203.0.113.20", 80, None),
            ("2001:db8:113::10", 80, Some("listed")),
            ("2001:db8:114::20", 80, None),
        ],
    );
    sheer.stop();
}

#[test]
fn services_counts_what_each_service_does() {
    const UP: u64 = 1_000_003;
    let lab = Lab::new();
    let sheer = Sheer::on(&lab)
        .config(
            r#"
[[service]]
name = "echo"
port = 7
[[service]]
name = "aside"
port = 8
action = "pass"
[[service]]
name = "idle"
port = 9
"#,
        )
        .start();
    for (round, family) in (1..).zip(Family::BOTH) {
        let (echo, aside) = (Server::echo(lab.server(), family, 7), Server::hello(lab.server(), family, 8));
        let mut stream = lab.client().connect(echo.address());
        ping(&mut stream).unwrap();
        assert_eq!(sheer.service("echo")["live"], 1, "{family}");
        let mut sender = stream.try_clone().unwrap();
        let sent = std::thread::spawn(move || {
            Pattern::new(7).send(&mut sender, UP).unwrap();
            sender.shutdown(Shutdown::Write).unwrap();
        });
        assert_eq!(Pattern::new(7).receive(&mut stream).unwrap(), UP);
        sent.join().unwrap();
        drop(stream);
        wait_until("the connection is counted as ended", PATIENCE, || {
            (sheer.service("echo")["live"] == 0).then_some(())
        });
        lab.client().ask(aside.address());
        let moved = round * (UP + 4);
        let (echo, aside) = (sheer.service("echo"), sheer.service("aside"));
        assert_eq!((&echo["bytes_up"], &echo["bytes_down"]), (&moved.into(), &moved.into()), "{family}");
        assert_eq!((&echo["hits"], &echo["refused"]), (&round.into(), &0.into()), "{family}");
        assert_eq!((&aside["hits"], &aside["refused"]), (&round.into(), &0.into()), "{family}");
        assert!(aside["live"].is_null(), "the proxy does not stand behind it: {aside}");
    }
    assert_eq!(sheer.service("idle")["hits"], 0);
    sheer.stop();
}

#[test]
fn each_service_says_what_its_connections_do_while_the_proxy_is_down() {
    let lab = Lab::new();
    let mut sheer = Sheer::on(&lab)
        .config(
            r#"
when_down = "closed"
[[service]]
name = "open"
port = 80
source = "proxy"
when_down = "open"
[[service]]
name = "closed"
port = 81
source = "proxy"
"#,
        )
        .start();
    sheer.kill();
    for family in Family::BOTH {
        let (open, closed) =
            (Server::hello(lab.server(), family, 80), Server::hello(lab.server(), family, 81));
        let stream = lab.client().connect(open.address());
        assert_eq!(open.last(), stream.local_addr().unwrap(), "{family}: nobody stands between them");
        let refused = lab.client().dial(Dial::to(closed.address()).within(UNANSWERED));
        assert_eq!(refused.expect_err("closed").kind(), ErrorKind::TimedOut, "{family}");
        assert_eq!(closed.count(), 0, "{family}");
    }
    sheer.cleanup();
}

#[test]
fn bpftool_shows_services_classes_limits_and_blocks_by_the_names_of_their_fields() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab)
        .config(
            r#"
[[service]]
name = "web"
port = 80
limit = { new_per_second = 10, burst = 20, block = "10m" }
"#,
        )
        .start();
    let server = Server::hello(lab.server(), Family::V4, 80);
    lab.client().ask(server.address());
    assert!(sheer.control("block", &["203.0.113.66", "10m"]).status.success());
    let shows = |map: &str, words: &[&str]| {
        let shown = sheer.map(map);
        for word in words {
            assert!(shown.contains(word), "{map} shows no {word}:\n{}", shown.replace("\n", " "));
        }
    };
    shows(
        "services",
        &["\"limit\"", "\"interval_ns\": 100000000", "\"name\": [119,101,98,0", "\"when_down\""],
    );
    shows("services", &["\"action\": \"Proxy\""]);
    shows("classes", &["\"summary\"", "\"services\""]);
    shows("limits", &["\"address\"", "\"family\": \"V4\"", "\"allowed_at_ns\"", "\"admitted\": 1"]);
    shows("blocked_by_hand", &["\"until_ns\"", "\"since_ns\"", "\"refused\": 0"]);
    shows("service_counters", &["\"hits\": 1"]);
    sheer.reload("[[service]]\nname = \"mail\"\nport = 25\naction = \"drop\"\n");
    shows("services", &["\"name\": [109,97,105,108,0", "\"action\": \"Drop\""]);
    assert!(!sheer.map("services").contains("[119,101,98,0"), "the services before are still shown");
    shows("classes", &["\"summary\""]);
    shows("limits", &["\"allowed_at_ns\""]);
    shows("blocked_by_hand", &["\"until_ns\""]);
    sheer.stop();
}

#[test]
fn answers_come_back_by_interfaces_that_no_service_names() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab)
        .config(
            r#"
[[service]]
name = "echo"
interface = "clients0"
client = ["192.0.2.0/24", "2001:db8:1::/48"]
port = 7
"#,
        )
        .start();
    for family in Family::BOTH {
        let server = Server::echo(lab.server(), family, 7);
        let mut stream = lab.client().connect(server.address());
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        let client = stream.local_addr().unwrap();
        drop(stream);
        assert_eq!(sheer.record_of(client)["service"], "echo", "{family}");
    }
    sheer.stop();
}
